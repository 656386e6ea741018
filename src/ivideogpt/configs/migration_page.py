"""Writes docs/migrating.md from the table of official flags: ``python -m ivideogpt.configs.migration_page``."""

from __future__ import annotations

from collections.abc import Iterable

from ivideogpt.configs.migration_table import CONFIGURATIONS, PROGRAMS, Flag
from ivideogpt.configs.migration_table_mbrl import MBRL_KEYS
from ivideogpt.configs.official import OFFICIAL, official_script
from ivideogpt.configs.pasted import NOT_YET

_START = """\
# Coming from thuml/iVideoGPT

*This page is written by `python -m ivideogpt.configs.migration_page > docs/migrating.md`.*

Paste an official command after two dashes, or name the file of an official script:

```text
$ ivideogpt migrate -- accelerate launch train_gpt.py --exp_name bair --vqgan_type ctx_vqgan ...
$ ivideogpt migrate scripts/finetune/bair-64-act-cond.sh
$ ivideogpt migrate -- python mbrl/train_metaworld_mbpo.py task=plate_slide num_train_frames=100002 demo=true
```

Printed are the command here and, as comments, every flag that is gone and why. It starts from the nearest preset and
sets what differs; flags that were not typed count too, at their official defaults. `--run` runs it. Official batch
sizes are of one GPU, ours are of all together: `--gpus 8` says how many there were, where the command does not say it
itself (4, as in the official scripts). Data are read from episode stores in the folder `--stores`;
[data sources](data-sources.md) says how to convert them. Underscores and `name=value` are accepted for every option of
every command.

## Scripts

Each preset has the settings of its script, and our number of updates: for a tokenizer half of the official steps,
because that counter alternates between generator and discriminator, also where no discriminator takes part. Fine-tuning
needs `--init` with the weights it starts from.

"""

_EVALUATION = """\

Those in `scripts/evaluation` call `train_gpt.py --eval_only`: here it is
`ivideogpt evaluate CHECKPOINT --data STORE --protocol bair`, or `robonet`.
"""

_PREDICT = """\
```sh
ivideogpt predict thuml/ivideogpt-oxe-64-act-free \\
    --input inference/samples/fractal_sample.npz --dataset-name fractal20220817_data --repeat 5
```

"""

_PREDICT_MORE = """\

Also here: `--start`, `--episode`, `--temperature`, `--top-k`, `--greedy`, `--reanchor-every`, `--fps`, `--device`,
`--int8`. What the command does differently: [parity](parity.md#predict).
"""

_PYTHON = """\
## Python

| official | here |
|---|---|
| `CompressiveVQModel.from_pretrained(name, subfolder="tokenizer")` | `WorldModel.from_pretrained(name).tokenizer`, or `CompressiveTokenizer.from_pretrained(folder)` for a `tokenizer/` folder alone |
| `AutoModelForCausalLM.from_pretrained(name, subfolder="transformer")` | `WorldModel.from_pretrained(name).transformer` |
| `HeadModelWithAction(llm, action_dim, prelude_tokens_num, ...)` and `load_state_dict` | `WorldModel.from_pretrained(name)`: nothing to be told |
| `tokenizer.tokenize(pixels, context_length)` | `model.tokenizer.tokenize(frames)` |
| `tokenizer.detokenize(tokens, context_length)` | `model.tokenizer.detokenize(ids)` |
| `tokenizer.set_context_length(n)` | `WorldModel.from_pretrained(name, context_frames=n)` |
| `llm.generate(prompt, do_sample=True, temperature=1.0, top_k=100, max_new_tokens=...)`, then `detokenize`, then `clamp` | `model.imagine(context, horizon=n)`; exactly as the official: `sampling=Sampling(legal_only=False, free_separators=True)` |
| `model.generate(prompt, ..., action=actions)` | `model.imagine(context, actions[:, c - 1 : -1])` for c context frames and official actions, one a frame; exactly: `Sampling(legal_only=False)` |
| `model.generate_without_action(prompt, ...)` | `model.imagine(context, horizon=n, sampling=Sampling(legal_only=False))`, for an action-free model |
| `do_sample=False` | `Sampling(greedy=True)` |
| `model(ids, labels=labels, action=actions).loss` | `model.dynamics.losses(ids, actions)`, with the actions cut as above |
| a rollout with a policy | `session = model.session(context)`, then `session.step(action)` for each frame |

Frames are floats in [0, 1] or uint8, `[b t c h w]`, and never stacked in channels. Actions are in the units that the model was
trained on; `model.normalize_actions(raw)` changes nothing for an official checkpoint.

## Not here yet

| official | |
|---|---|
"""  # noqa: E501  rows of a table

_PROGRAM_TEXTS = {
    "train_tokenizer.py": "`ivideogpt train-tokenizer PRESET`.\n\n",
    "train_gpt.py": "`ivideogpt train-transformer PRESET`; with `--eval_only` `ivideogpt evaluate`.\n\n",
    "inference/predict.py": _PREDICT,
    "datasets/oxe_data_converter.py": "`ivideogpt convert oxe NAME SRC DST`.\n\n",
    "datasets/preprocess_bair.py": "`ivideogpt convert bair SRC DST`.\n\n",
    "datasets/preprocess_robonet.py": "`ivideogpt convert robonet SRC DST`.\n\n",
    "datasets/preprocess_vp2.py": "`ivideogpt convert vp2 robodesk SRC DST`, or `robosuite`.\n\n",
}
_CONFIGURATION_TEXTS = {
    "mbrl/cfgs/mbpo_config.yaml": "Overrides of `mbrl/train_metaworld_mbpo.py`; those of "
    "`mbrl/train_metaworld_drq.py` are the same with `--no-imagination`. See\n"
    "[reinforcement learning](reinforcement-learning.md).\n\n",
    "DATASET.yaml": "Not needed: a command is told where its store is.\n\n",
}


def page() -> str:
    """The whole page."""
    scripts = [
        f"| `{official_script(name)}` | `{name}` | `{official.tokenizer_data}`, `{official.transformer_data}` |\n"
        for name, official in OFFICIAL.items()
    ]
    parts = [_START, "| script | preset | data of tokenizer, transformer |\n|---|---|---|\n", *scripts, _EVALUATION]
    for program, flags in PROGRAMS.items():
        parts += [f"\n## {program}\n\n", _PROGRAM_TEXTS[program], _table(flags.values(), "--")]
        parts += [_PREDICT_MORE] if program == "inference/predict.py" else []
    for file, keys in {"mbrl/cfgs/mbpo_config.yaml": MBRL_KEYS, **CONFIGURATIONS}.items():
        parts += [f"\n## {file}\n\n", _CONFIGURATION_TEXTS[file], _table(keys.values(), "")]
    later = [f"| `{program}` | {what}: planned |\n" for program, what in NOT_YET.items()]
    return "".join([*parts, "\n", _PYTHON, *later])


def _table(flags: Iterable[Flag], dashes: str) -> str:
    rows = [f"| `{dashes}{flag.name}`{_default(flag)} | {_here(flag)} |\n" for flag in flags]
    return "".join(["| official (default) | here |\n|---|---|\n", *rows])


def _default(flag: Flag) -> str:
    if flag.default is None or (flag.is_switch and not flag.default):
        return ""
    text = str(flag.default).lower() if isinstance(flag.default, bool) else f"{flag.default}"
    return f" (`{text}`)"


def _here(flag: Flag) -> str:
    if not flag.ours:
        return f"gone: {flag.note}"
    return f"{flag.ours}; {flag.note}" if flag.note else flag.ours


if __name__ == "__main__":
    print(page(), end="")
