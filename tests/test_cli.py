import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import pytest
import tyro

from ivideogpt.cli import COMMANDS, Command, main
from ivideogpt.core.errors import UserError

calls = []


@dataclass(frozen=True, kw_only=True)
class Model:
    num_channels: int = 3

    def __post_init__(self):
        if self.num_channels < 1:
            raise UserError(f"num_channels is {self.num_channels}; expected 1 or more")


def train(
    checkpoint: Annotated[str, tyro.conf.Positional] = "pusht",
    *,
    num_steps: int = 3,
    kind: Literal["small", "large"] = "small",
    input: Path | None = None,
    sizes: tuple[int, ...] = (),
    debug: bool = False,
    model: Model = Model(),  # noqa: B008
) -> None:
    """Trains nothing.

    Args:
        checkpoint: where to start.
        num_steps: how many steps.
    """
    calls.append((checkpoint, num_steps, kind, input, sizes, debug, model.num_channels))


def needs(*, input: Path, output: Path) -> None:
    """Needs an input.

    Args:
        input: described in so many words that the help of this option has to be wrapped onto a second line.
        output: the result.
    """


def fails(*, how: str = "user") -> int:
    """Fails in the way asked for."""
    if how == "user":
        raise UserError("the file is broken; make another")
    if how == "stop":
        raise KeyboardInterrupt
    if how == "bug":
        raise ValueError("a bug")
    return 7


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command line on the fake verbs; returns (exit code, stdout, stderr)."""
    module = ModuleType("fake_verbs")
    module.__dict__.update(train=train, needs=needs, fails=fails)
    monkeypatch.setitem(sys.modules, "fake_verbs", module)
    verbs = {name: Command(f"fake_verbs:{name}", f"{name} things") for name in ("train", "needs", "fails")}
    verbs["fail-later"] = Command("a_module_that_does_not_exist:x", "never loaded")
    monkeypatch.setenv("COLUMNS", "80")
    calls.clear()

    def call(line):
        code = main(line.split(), verbs)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from ivideogpt.cli import main; main(['--help'])\n"
        "heavy = {'torch', 'numpy', 'tyro', 'av', 'PIL', 'huggingface_hub', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert all(name in printed for name in COMMANDS)


def test_help_of_every_command_is_plain_and_imports_no_torch():
    code = (
        "import contextlib, io, sys\n"
        "from ivideogpt.cli import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    printed = io.StringIO()\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(printed):\n"
        "        main([*name.split(), '--help'])\n"
        "    heavy = {'torch', 'numpy', 'einops', 'av', 'PIL', 'gymnasium'} & set(sys.modules)\n"
        "    assert not heavy, (name, heavy)\n"
        "    assert '{None}' not in printed.getvalue() and 'default: None' not in printed.getvalue(), name\n"
        "    assert f'usage: ivideogpt {name}' in printed.getvalue(), name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_module_runs_as_a_command():
    done = subprocess.run([sys.executable, "-m", "ivideogpt", "dmeo"], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean 'demo'" in done.stderr


@pytest.mark.parametrize("line", ["", "--help", "-h", "help"])
def test_help_lists_every_verb(run, line):
    code, out, _ = run(line)
    assert code == 0
    assert "train things" in out
    assert "fail-later" in out


def test_version_is_printed(run):
    assert run("--version")[1].startswith("ivideogpt 0.")


def test_help_of_a_verb_lists_its_options(run, capsys):
    with pytest.raises(SystemExit) as stop:
        run("train --help")
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "--num-steps" in out
    assert "where to start" in out


@pytest.mark.parametrize(
    "line",
    [
        "train a --num-steps 10 --debug --input x=y.npz --model.num-channels 5 --sizes 1 2",
        "train a --num_steps=10 --debug=true --input=x=y.npz --model.num_channels=5 --sizes 1 2",
        "train a num_steps=10 debug=true input=x=y.npz model.num_channels=5 --sizes 1 2",
        "train checkpoint=a num-steps=10 --debug True --input x=y.npz model.num-channels=5 --sizes 1 2",
    ],
)
def test_every_spelling_of_an_option_means_the_same(run, line):
    assert run(line)[0] == 0
    assert calls == [("a", 10, "small", Path("x=y.npz"), (1, 2), True, 5)]


def test_a_flag_can_be_taken_back(run):
    run("train --debug --no-debug")
    run("train debug=false")
    assert [call[5] for call in calls] == [False, False]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("tarin", "unknown command 'tarin'; did you mean 'train'?"),
        ("zzz", "expected one of: fail-later, fails, needs, train"),
        ("train --num-stepz 3", "unknown option --num-stepz; did you mean 'num-steps'?"),
        ("train a num_stepz=3", "unexpected 'num_stepz=3' on the command line; did you mean 'num-steps'?"),
        ("train --set num_steps=3", "--set is gone; write each setting as an option"),
        ("train --model.num-chanels 3", "did you mean 'model.num-channels'?"),
        ("train a b", "unexpected 'b'"),
        ("train --num-steps many", "--num-steps is 'many'; expected INT"),
        ("train --num-steps", "--num-steps needs a value; expected INT"),
        ("train --kind medium", "--kind is 'medium'; expected one of small, large"),
        ("train debug=perhaps", "--debug is 'perhaps'; expected true or false"),
        ("train model.num_channels=0", "num_channels is 0; expected 1 or more"),
        ("needs", "missing --input PATH and --output PATH (see ivideogpt needs --help)"),
        ("needs --input a", "missing --output PATH (see"),
        ("fails", "the file is broken; make another"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(run, line, sentence):
    code, out, err = run(line)
    assert code == 2
    assert out == ""
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    assert calls == []


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_sentence_is_the_same_where_the_terminal_cannot_draw_lines(encoding):
    words = ["-c", "import sys; from ivideogpt.cli import main; sys.exit(main(['predict']))"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, *words], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr == "ivideogpt: missing CHECKPOINT and --input PATH (see ivideogpt predict --help)\n"


def test_a_stop_is_130(run):
    assert run("fails how=stop")[0] == 130


def test_a_bug_keeps_its_traceback(run):
    with pytest.raises(ValueError, match="a bug"):
        run("fails how=bug")


def test_what_a_verb_returns_is_the_exit_code(run):
    assert run("fails how=none")[0] == 7
