#!/usr/bin/env bash
# From nothing to the picture model of six Meta-World tasks, metaworld-64: record episodes, train, publish, measure.
# Every command goes on where it stopped: start the script again after an interruption.
#
#   runs/metaworld.sh                        # the published size: about three hours of one core
#   EPISODES=2 QUICK=1 runs/metaworld.sh    # minutes, to see that everything runs
set -euo pipefail

RUNS=${RUNS:-runs/metaworld-64}
DATA=${DATA:-datasets}
EPISODES=${EPISODES:-20}    # of each task: scripts; three times as many of each of the other behaviours
TEST_EPISODES=${TEST_EPISODES:-5}
IVIDEOGPT=${IVIDEOGPT:-ivideogpt}
PYTHON=${PYTHON:-python}

options=()
if [ -n "${QUICK:-}" ]; then
    options=(training.steps=20)
fi
record() { # NAME FIRST_SEED COUNT OPTIONS
    "$IVIDEOGPT" collect metaworld/all --seeds "$2:$(($2 + $3))" --out "$DATA/metaworld-$1" "${@:4}"
}
random=(--noise 0.3 --random-share 1 --longest-stretch 60)

# episodes: scripts, scripts with noise and short random stretches, random stretches alone
record scripts 0 "$EPISODES"
record shaken 30 "$((3 * EPISODES))" --noise 0.3 --random-share 0.2
record explore 200 "$((3 * EPISODES))" "${random[@]}"
record test-shaken 10000 "$TEST_EPISODES" --noise 0.3 --random-share 0.2
record test-explore 10100 "$TEST_EPISODES" "${random[@]}"
printf '[[sources]]\npath = "metaworld-%s"\n' scripts shaken explore > "$DATA/metaworld.toml"

"$IVIDEOGPT" train-pictures metaworld-64 --data "$DATA/metaworld.toml" --run "$RUNS/training" "${options[@]}"

# checkpoint with a held-out episode of each task; figures on episodes that nobody trained on
"$PYTHON" "$(dirname "$0")/publish_metaworld.py" "$RUNS/training" --test "$DATA/metaworld-test-shaken" \
    --out "$RUNS/checkpoint"
for name in shaken explore; do
    "$IVIDEOGPT" evaluate "$RUNS/checkpoint" --data "$DATA/metaworld-test-$name" --horizon 14 --output "$RUNS/$name"
done
