"""The table of official flags: complete, true to the official defaults, and leading to options that exist."""

import json
import re
from pathlib import Path

import pytest

from ivideogpt.cli import COMMANDS
from ivideogpt.commands.reference import options
from ivideogpt.configs.official import OFFICIAL
from ivideogpt.configs.official_flags import CONVERSIONS, official_flags
from ivideogpt.configs.registry import find_preset
from ivideogpt.core.config import to_dict

FLAGS = Path(__file__).parents[2] / "../shared/data/official_flags.json"
PAGE = Path(__file__).parents[2] / "docs" / "migrating.md"
#: The verb whose options the column "here" means, where it names no other.
VERB = {
    "train_tokenizer.py": "train-tokenizer",
    "train_gpt.py": "train-transformer",
    "inference/predict.py": "predict",
    "DATASET.yaml": "train-tokenizer",
}
KEYS = "mbrl/cfgs/mbpo_config.yaml"
ALL = {name: flags for name, flags in official_flags().items() if name != "train_gpt.py --eval_only"}
PROGRAMS = {name: flags for name, flags in ALL.items() if name.endswith(".py")}


@pytest.fixture(scope="module")
def official():
    if not FLAGS.exists():
        pytest.skip(f"{FLAGS} is not here")
    return json.loads(FLAGS.read_text())


def test_the_table_has_every_official_flag_with_its_type_and_default(official):
    assert PROGRAMS.keys() == official.keys()
    for program, rows in official.items():
        rows = {row["flag"][0].removeprefix("--"): row for row in rows}
        assert PROGRAMS[program].keys() == rows.keys()
        for name, row in rows.items():
            flag, is_switch = PROGRAMS[program][name], row.get("action") == "store_true"
            assert (flag.type == "switch") == is_switch, name
            assert flag.default == row.get("default", False if is_switch else None), name
            if not is_switch:
                assert flag.type == row["type"].replace("SchedulerType", "str"), name


def test_the_table_has_as_many_flags_as_there_are():
    assert {program: len(flags) for program, flags in PROGRAMS.items()} == {
        "train_tokenizer.py": 67,
        "train_gpt.py": 63,
        "inference/predict.py": 12,
        "datasets/oxe_data_converter.py": 4,
        "datasets/preprocess_bair.py": 3,
        "datasets/preprocess_robonet.py": 2,
        "datasets/preprocess_vp2.py": 2,
    }


def test_every_conversion_of_the_table_exists_and_is_used():
    used = {name for flags in official_flags().values() for flag in flags.values() for name in flag.convert.split()}
    assert used - {"typed"} == CONVERSIONS.keys()


def test_what_is_gone_says_why():
    for flags in ALL.values():
        for flag in flags.values():
            assert flag.ours or flag.note, flag.name


@pytest.mark.parametrize("program", [name for name in ALL if name != KEYS])
def test_options_and_settings_in_the_table_exist(program):
    settings = to_dict(find_preset(next(iter(OFFICIAL))))
    for flag in ALL[program].values():
        for text in re.findall(r"`([^`]+)`", f"{flag.ours} {flag.note}"):
            verb = text.split()[1] if text.startswith("ivideogpt ") else VERB.get(program, "convert")
            for option in re.findall(r"--([\w-]+)", text):
                assert option in options(COMMANDS[verb].load()), f"{flag.name}: ivideogpt {verb} has no --{option}"
            for setting in re.findall(r"(?<![\w.])((?:tokenizer|model|transformer)\.[\w.]+|augmentation)=", text):
                value = settings
                for part in setting.split("."):
                    assert part in value, f"{flag.name}: there is no setting {setting}"
                    value = value[part]


def row(flag, dashes):
    """The row of a flag on the page."""
    default = f"{str(flag.default).lower() if isinstance(flag.default, bool) else flag.default}"
    shown = "" if flag.default is None or (flag.type in ("switch", "bool") and not flag.default) else f" (`{default}`)"
    here = f"{flag.ours}; {flag.note}" if flag.ours and flag.note else flag.ours or f"gone: {flag.note}"
    return f"| `{dashes}{flag.name}`{shown} | {here} |"


@pytest.mark.parametrize("program", ALL)
def test_the_page_has_the_rows_of_the_table(program):
    flags = ALL[program]
    dashes = "--" if program in PROGRAMS else ""
    section = re.search(rf"^## {re.escape(program)}$(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    rows = [line for line in section[1].splitlines() if line.startswith("| `")]
    assert rows == [row(flag, dashes) for flag in flags.values()], "docs/migrating.md"


def test_the_page_has_each_preset():
    for name in OFFICIAL:
        assert f"`{name}`" in PAGE.read_text()


def test_the_page_names_every_option_of_predict():
    text = PAGE.read_text()
    part = text[text.index("## inference/predict.py") : text.index("## datasets/oxe_data_converter.py")]
    missing = set(options(COMMANDS["predict"].load())) - set(re.findall(r"--([a-z0-9-]+)", part)) - {"checkpoint"}
    assert not missing
