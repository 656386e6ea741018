"""What the documentation says is there: files, commands, options, targets, modules; its code runs."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from ivideogpt import Episode
from ivideogpt.cli import COMMANDS
from ivideogpt.commands.collect import RECORDERS
from ivideogpt.commands.reference import commands_page, options
from ivideogpt.configs.registry import PRESETS, find_preset
from ivideogpt.data.episode_files import save_episodes
from ivideogpt.worldmodel.shipped import SHIPPED

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PACKAGE = ROOT / "src" / "ivideogpt"

a_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of ``language`` on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text(page), flags=re.DOTALL | re.MULTILINE)


def table_rows(page: Path) -> list[list[str]]:
    lines = [line for line in text(page).splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def anchors(page: Path) -> set[str]:
    """The fragments that headings can be linked by."""
    headings = re.findall(r"^#+ (.+)$", text(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@a_page
def test_relative_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, fragment = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name} links to {link}, which is not there"
        assert not fragment or fragment in anchors(target), f"{page.name} links to {link}: no such heading"


@a_page
def test_no_number_is_left_to_be_filled_in(page):
    assert not re.findall(r"\{\{.*?\}\}", text(page))


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=lambda page: page.name)
def test_no_path_of_one_machine_is_shown(page):
    assert not re.findall(r"(?<![\w.])/(?:work|root|home|tmp|mnt|Users)/\S*|\bshared/\S*", text(page))


def verb_of(words):
    """The verb, of one word or two, that a command line begins with."""
    pair = " ".join(words[:2])
    return pair if pair in COMMANDS else words[0]


def test_the_page_of_commands_is_the_one_that_the_commands_write():
    assert text(ROOT / "docs" / "commands.md") == commands_page()
    assert "docs/commands.md" in text(README)


def known_options(name):
    """The options of a command, those of its settings included."""
    settings = [None]
    if name == "collect":
        settings = [recorder.settings() for recorder in RECORDERS.values()]
    elif COMMANDS[name].settings:
        kinds = {
            "mbrl": "mbrl",
            "train-classifier": "classifiers",
            "train-pictures": "pictures",
            "posttrain": "posttrain",
            "plan": "planning",
            "train-policy": "policies",
            "wm-rl": "wmrl",
        }
        kind = kinds.get(name, "training")
        settings = [find_preset(preset, kind) for preset in PRESETS[kind]]
    return {option for default in settings for option in options(COMMANDS[name].load(), default)}


@a_page
def test_command_lines_use_options_that_exist(page):
    shown = [*blocks(page, "sh"), *re.findall(r"`(ivideogpt [^`]+)`", text(page))]
    for line in "\n".join(shown).replace("\\\n", " ").splitlines():
        words = line.split("#")[0].split()
        if words[:1] == ["ivideogpt"] and re.match(r"[a-z]", words[1]):
            verb = verb_of(words[1:])
            assert verb in COMMANDS, line
            known = known_options(verb)
            for option in re.findall(r"--([\w.-]+)", line):
                known_here = option.replace("_", "-").removeprefix("no-") in known or option == "help"
                assert known_here, f"{line}: ivideogpt {verb} has no --{option}"


GUIDES = [page for page in PAGES if page.parent.name == "docs" and page.stem not in ("glossary", "decisions")]


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_a_guide_begins_with_its_purpose_and_a_command(page):
    lines = text(page).splitlines()
    assert lines[0].startswith("# ") and re.match(r"[A-Z*]", lines[2]), "a sentence under the title"
    assert {"```sh", "```text"} & set(lines[:12]), "a command that works, in the first lines"


@a_page
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z0-9-]+):", text(ROOT / "Makefile"), flags=re.MULTILINE))
    shown = [*blocks(page, "sh"), *re.findall(r"`(make [^`]+)`", text(page))]
    for target in re.findall(r"^make ([a-z0-9-]+)", "\n".join(shown), flags=re.MULTILINE):
        assert target in targets, f"{page.name} names make {target}"


def test_the_architecture_names_every_package():
    table = text(ROOT / "docs" / "architecture.md")
    for path in PACKAGE.glob("*/__init__.py"):
        assert f"| `{path.parent.name}` |" in table, f"docs/architecture.md: add {path.parent.name} to the table"


def defines(file: str, name: str) -> bool:
    """Whether a module of the package defines a function, class, method or registry, such as Session.rollout."""
    source = text(PACKAGE / file)
    return all(re.search(rf"^ *(?:def|class) {word}\b|^{word}\b *[:=]", source, re.M) for word in name.split("."))


def test_the_flows_of_the_architecture_name_functions_that_exist():
    page = text(ROOT / "docs" / "architecture.md")
    lines = re.findall(r"^ *(?:\d\) )?(\w\S*(?: \S+)*) {2,}(\w+/\S+\.py)\b", page, flags=re.MULTILINE)
    assert len(lines) > 30
    for names, file in lines:
        for name in re.split(r", | or ", names):
            assert defines(file, name), f"docs/architecture.md: {file} has no {name}"


def test_the_changes_of_the_architecture_name_registries_and_tests_that_exist():
    rows = [row for row in table_rows(ROOT / "docs" / "architecture.md") if len(row) == 4 and row[0] != "to add"]
    assert len(rows) > 15
    for change, _, registry, test in rows:
        for name, file in re.findall(r"`(\w+)` in `(\S+\.py)`", registry):
            assert defines(file, name), f"{change}: {file} has no {name}"
        for file in re.findall(r"`(tests/\S+\.py)`", test):
            assert (ROOT / file).is_file(), f"{change}: there is no {file}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_are_python(page):
    for snippet in blocks(page, "python"):
        compile(snippet, page.name, "exec")


@pytest.fixture
def a_shipped_model(build, frames_for, tmp_path, monkeypatch):
    """A tiny random model with one episode in the place of the shipped one."""
    model, folder = build("plain"), tmp_path / "pusht-64"
    model.save_pretrained(folder)
    pixels = (frames_for(model, 1, 24)[0] * 255).byte().permute(0, 2, 3, 1).numpy()
    actions = np.random.default_rng(0).uniform(-1, 1, (24, model.action_dim)).astype(np.float32)
    save_episodes(folder / "episodes.safetensors", [Episode(frames=pixels, actions=actions, key="noise")])
    for name in ("pusht-64", "pusht-64-tokens"):
        monkeypatch.setitem(SHIPPED, name, folder)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("a_shipped_model")
def test_the_snippets_of_the_readme_run():
    names = {}
    for snippet in blocks(README, "python"):
        if "thuml/" not in snippet:  # the authors' checkpoints are a download
            exec(compile(snippet, "README.md", "exec"), names)
    assert names["imagined"].frames.shape[1] == 14
    assert names["video"].shape[1] == 4


@pytest.mark.usefixtures("a_shipped_model")
def test_the_examples_run(capsys, tmp_path):
    runpy.run_path(str(ROOT / "examples" / "predict.py"), run_name="__main__")
    assert {file.suffix for file in (tmp_path / "outputs" / "example-predict").iterdir()} == {".png", ".mp4"}
    runpy.run_path(str(ROOT / "examples" / "interact.py"), run_name="__main__")
    runpy.run_path(str(ROOT / "examples" / "session_to_mp4.py"), run_name="__main__")
    assert (tmp_path / "outputs" / "session.mp4").stat().st_size > 1000
    runpy.run_path(str(ROOT / "examples" / "train_tiny.py"))["main"](tokenizer_steps=27, transformer_steps=2)
    printed = capsys.readouterr().out
    assert "the same after rewinding: True" in printed
    assert "copy of the last frame: 30%" in printed


def test_the_examples_of_imagined_environments_run(capsys):
    runpy.run_path(str(ROOT / "examples" / "imagined_env.py"))["main"](steps=2)
    assert "observations: uint8 [4, 3, 64, 64, 3]" in capsys.readouterr().out
    pytest.importorskip("stable_baselines3")
    runpy.run_path(str(ROOT / "examples" / "imagined_ppo.py"))["main"](steps=128)
    assert "128 imagined steps" in capsys.readouterr().out
