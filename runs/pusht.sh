#!/usr/bin/env bash
# From nothing to the picture model of PushT, pusht-64: record episodes, train, publish, measure.
# Every command goes on where it stopped: start the script again after an interruption.
#
#   runs/pusht.sh                        # the published size: hours of one core
#   EPISODES=40 QUICK=1 runs/pusht.sh    # minutes, to see that everything runs
set -euo pipefail

RUNS=${RUNS:-runs/pusht-64}
DATA=${DATA:-datasets}
EPISODES=${EPISODES:-3200}
TEST_SEEDS=${TEST_SEEDS:-10000:10100}
IVIDEOGPT=${IVIDEOGPT:-ivideogpt}
PYTHON=${PYTHON:-python}

training=()
if [ -n "${QUICK:-}" ]; then
    training=(training.steps=40 training.rounds.first=20 training.rounds.every=10 training.rounds.transitions=64)
fi

# episodes: scripted drags and a person's far targets
"$IVIDEOGPT" collect pusht --behaviour mixed --seeds "0:$EPISODES" --out "$DATA/pusht-mixed"
"$IVIDEOGPT" collect pusht --seeds "$TEST_SEEDS" --out "$DATA/pusht-test"

# forecast, rigid objects and reward, with rounds of corrections by the simulator
"$IVIDEOGPT" train-pictures pusht-64 --data "$DATA/pusht-mixed" --run "$RUNS/training" "${training[@]}"

# checkpoint with a few held-out episodes and its figures in the card
"$PYTHON" "$(dirname "$0")/publish_pusht.py" "$RUNS/training" --test "$DATA/pusht-test" --out "$RUNS/checkpoint" \
    --name pusht-64

# the expected error of a frame, for the page; figures on episodes that nobody trained on
"$IVIDEOGPT" evaluate "$RUNS/checkpoint" --protocol pusht --seeds 10100:10164 --horizon 45 --metrics none --calibrate \
    --output "$RUNS/calibration"
"$IVIDEOGPT" evaluate "$RUNS/checkpoint" --protocol pusht --output "$RUNS/evaluation"
