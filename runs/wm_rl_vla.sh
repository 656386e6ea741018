#!/usr/bin/env bash
# Learn a world model by reinforcement learning, then improve a vision-language-action policy in it, and measure it in
# the simulator. The same command goes on after a stop.
#
#   MBPO_TASK_NAME=libero_spatial MBPO_FRAMES=1000002 runs/wm_rl_vla.sh
#
# MBPO_TASK_NAME    environment                                   libero_spatial
# MBPO_CONFIG       configuration of wm-rl                        TASK_mbpo_openpi_pi05_config
# MBPO_FRAMES       simulator frames of the first stage           1000002
# MBPO_DEMO         the first stage begins with demonstrations    true
# MBPO_GPU          GPU of the first stage                        those of the shell
# VLA_GPUS          GPU of the second stage                       those of the shell
# MBPO_EXTRA_ARGS   further words of `ivideogpt mbrl`
# VLA_EXTRA_ARGS    further words of `ivideogpt wm-rl`; libero-quick: small parts and few episodes, on a processor
# SKIP_MBRL         1: no first stage; wm-rl trains a world model on recordings, unless VLA_EXTRA_ARGS has --world
# SKIP_VLA          1: no second stage
# RUNS, IVIDEOGPT   folder of all runs (runs/wm-rl-vla), and the program
set -euo pipefail

task=${MBPO_TASK_NAME:-libero_spatial}
config=${MBPO_CONFIG:-${task%%/*}_mbpo_openpi_pi05_config}
runs=${RUNS:-runs/wm-rl-vla}
program=${IVIDEOGPT:-ivideogpt}
read -ra mbpo_words <<< "${MBPO_EXTRA_ARGS:-}"
read -ra vla_words <<< "${VLA_EXTRA_ARGS:-}"

on_gpu() {  # on_gpu GPU COMMAND ...: "" leaves the choice to the shell
    if [[ -n $1 ]]; then CUDA_VISIBLE_DEVICES=$1 "${@:2}"; else "${@:2}"; fi
}

world=()
if [[ ${SKIP_MBRL:-0} != 1 ]]; then
    demo=()
    if [[ ${MBPO_DEMO:-true} == true || ${MBPO_DEMO:-true} == 1 ]]; then demo=(demo=true); fi
    on_gpu "${MBPO_GPU:-}" "$program" mbrl "task=$task" \
        "num_train_frames=${MBPO_FRAMES:-1000002}" "${demo[@]}" --run "$runs/world" "${mbpo_words[@]}"
    world=(--world "$runs/world")
fi
if [[ ${SKIP_VLA:-0} != 1 ]]; then
    on_gpu "${VLA_GPUS:-}" "$program" wm-rl --config-name "$config" \
        "task_name=$task" --run "$runs/policy" "${world[@]}" "${vla_words[@]}"
fi
