#!/usr/bin/env bash
# Post-training of the token model of PushT, beside as many supervised updates of as many clips, and both against the start model.
# Every command goes on where it stopped: start the script again after an interruption.
#
#   runs/posttrain_pusht.sh              # 60 batches: 180 updates
#   STEPS=1 SEEDS=20000:20004 runs/posttrain_pusht.sh    # to see that everything runs
set -euo pipefail

RUNS=${RUNS:-runs/posttrain-pusht}
DATA=${DATA:-datasets}
STEPS=${STEPS:-60}
SEEDS=${SEEDS:-20000:20064}
START=${START:-pusht-64-tokens}
IVIDEOGPT=${IVIDEOGPT:-ivideogpt}
PYTHON=${PYTHON:-python}

# episodes to train on
"$IVIDEOGPT" collect pusht --seeds 0:1600 --out "$DATA/pusht-1600"

# post-training: 3 updates of 64 futures a batch
"$IVIDEOGPT" posttrain cpu "$START" --data "$DATA/pusht-1600" --run "$RUNS/grpo" --steps "$STEPS" \
    --reward perceptual+mae+0.01*block_position+0.01*block_angle

# as many supervised updates of 64 recorded futures, at the same rate
"$IVIDEOGPT" train-transformer pusht-64 --init "$START" --data "$DATA/pusht-1600" --run "$RUNS/supervised" \
    --transformer.steps $((3 * STEPS)) --transformer.batch-size 64 --transformer.gradient-accumulation 4 \
    --transformer.learning-rate 3e-4 --transformer.schedule constant --transformer.warmup-steps 0

# differences of each clip of fresh episodes, with intervals
"$PYTHON" "$(dirname "$0")/../benchmarks/compare.py" "$START" "$RUNS/supervised" "$RUNS/grpo" --seeds "$SEEDS"
