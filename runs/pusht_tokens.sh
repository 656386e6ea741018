#!/usr/bin/env bash
# From nothing to the token model of PushT, pusht-64-tokens: record episodes, train the tokenizer, train the world model, publish, measure.
# Every command goes on where it stopped: start the script again after an interruption.
#
#   runs/pusht_tokens.sh                        # the published size
#   EPISODES=40 QUICK=1 runs/pusht_tokens.sh    # minutes, to see that everything runs
set -euo pipefail

RUNS=${RUNS:-runs/pusht-64-tokens}
DATA=${DATA:-datasets}
EPISODES=${EPISODES:-3200}
TEST_SEEDS=${TEST_SEEDS:-10000:10100}
IVIDEOGPT=${IVIDEOGPT:-ivideogpt}
PYTHON=${PYTHON:-python}

tokenizer=() transformer=()
if [ -n "${QUICK:-}" ]; then
    tokenizer=(tokenizer.steps=20 tokenizer.continuous_steps=10)
    transformer=(forecasts.0.steps=10 forecasts.1.steps=10 transformer.steps=20)
fi

# episodes
"$IVIDEOGPT" collect pusht --seeds "0:$EPISODES" --out "$DATA/pusht"
"$IVIDEOGPT" collect pusht --seeds "$TEST_SEEDS" --out "$DATA/pusht-test"

# tokenizer and tokens
"$IVIDEOGPT" train-tokenizer pusht-64 --data "$DATA/pusht" --run "$RUNS/tokenizer" "${tokenizer[@]}"
"$IVIDEOGPT" tokenize "$RUNS/tokenizer" --data "$DATA/pusht" --out "$RUNS/tokens" --frames 48

# world model
"$IVIDEOGPT" train-transformer pusht-64 --data "$RUNS/tokens" --tokenizer "$RUNS/tokenizer" \
    --run "$RUNS/transformer" "${transformer[@]}"

# checkpoint in bfloat16, with a few held-out episodes and its figures in the card
"$PYTHON" "$(dirname "$0")/publish_pusht.py" "$RUNS/transformer" --test "$DATA/pusht-test" --out "$RUNS/checkpoint" \
    --name pusht-64-tokens

# figures on episodes that nobody trained on
"$IVIDEOGPT" evaluate "$RUNS/checkpoint" --protocol pusht --output "$RUNS/evaluation"
