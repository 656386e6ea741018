"""Commands that write are killed at random moments: nothing half-written is left, and the same command again ends as if
nothing had happened.

    pytest -m slow tests/kills                                    50 kills
    IVIDEOGPT_KILLS=7 IVIDEOGPT_KILLS_SEED=3 pytest -m slow tests/kills -k mbrl     7 of each command
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet
import pytest
from safetensors import safe_open

from ivideogpt.cli import main
from ivideogpt.core.files import is_temporary
from ivideogpt.data.render import write_mp4
from ivideogpt.envs.record.moving_square import collect_squares

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are killed as on Linux"),
]

#: Arguments of each command, and how often it is killed by default. Names in braces are made by `inputs`.
COMMANDS = {
    "collect": ("collect moving-square --episodes 24 --workers 0 --out {out}", 5),
    "collect-workers": ("collect moving-square --episodes 24 --workers 2 --out {out}", 5),
    "convert": ("convert video {videos} {out} --val-every 4 --workers 0", 5),
    "convert-small": ("convert video {videos} {out} --size 16 --workers 2", 5),
    "tokenize": ("tokenize {tokenizer} --data {store} --frames 6 --workers 0 --out {out}", 5),
    "train-tokenizer": ("train-tokenizer debug --data {store} --tracker none --run {out}", 6),
    "train-transformer": (
        "train-transformer debug --data {store} --tokenizer {tokenizer} --tracker none --run {out}",
        7,
    ),
    "mbrl": ("mbrl debug --run {out}", 7),
    "evaluate": ("evaluate {model} --data {store} --metrics none --output {out}", 5),
}
SEED = int(os.environ.get("IVIDEOGPT_KILLS_SEED", 0))
#: Values that say how long something took.
CLOCKS = ("second", "time", "per_s", "rate_now")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Videos, a store, a tokenizer and a world model."""
    folder = tmp_path_factory.mktemp("inputs")
    random = np.random.default_rng(0)
    for index in range(12):
        frames = random.integers(0, 256, (12, 4, 4, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)
        write_mp4(folder / "videos" / f"{index}.mp4", frames, fps=5, shortest_side=64)
    quick = ("--tracker", "none", "--steps", "4")
    collect_squares(folder / "store", episodes=8)
    assert main(["train-tokenizer", "debug", "--data", f"{folder}/store", "--run", f"{folder}/tok", *quick]) == 0
    words = ("--data", f"{folder}/store", "--tokenizer", f"{folder}/tok", "--run", f"{folder}/model")
    assert main(["train-transformer", "debug", *words, *quick]) == 0
    return {name: folder / place for name, place in
            (("videos", "videos"), ("store", "store"), ("tokenizer", "tok"), ("model", "model"))}  # fmt: skip


def start(command, inputs, out):
    """Start a command in a process of its own."""
    words = command.format(**inputs, out=out).split()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, "-m", "ivideogpt", *words], env=environment, text=True, start_new_session=True, **quiet
    )


def run(command, inputs, out):
    """Run a command to its end; return the seconds that it took."""
    began = time.monotonic()
    process = start(command, inputs, out)
    _, errors = process.communicate(timeout=1800)
    assert process.returncode == 0, errors[-2000:]
    return time.monotonic() - began


def kill_after(process, seconds):
    """Kill a command and its workers after some seconds; return whether it was still running."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    is_running = process.poll() is None
    if is_running:
        os.killpg(process.pid, 9)
    process.communicate()
    return is_running


def check_whole(folder):
    """Open every file that has its final name."""
    for path in folder.rglob("*"):
        if not path.is_file() or any(is_temporary(part) for part in path.relative_to(folder).parts):
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            with safe_open(path, "np") as file:
                assert all(file.get_slice(name) is not None for name in file.keys())  # noqa: SIM118
        elif path.suffix == ".parquet":
            pyarrow.parquet.read_table(path)


def contents(folder):
    """What every file holds, without locks, logs of messages, and how long things took."""
    held = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        assert not any(is_temporary(part) for part in path.relative_to(folder).parts), f"{name} is left over"
        if not path.is_file() or path.name in (".lock", "log.txt") or path.suffix in (".html", ".png", ".pdf"):
            continue
        if path.suffix == ".json":
            held[name] = without_clocks(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            held[name] = [without_clocks(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".safetensors":
            held[name] = tensors(path)
        else:
            held[name] = path.read_bytes()
    return held


def tensors(path):
    """Metadata, and each tensor as type, shape and bytes: the order of the metadata in a file is random."""
    with safe_open(path, "np") as file:
        names = sorted(file.keys())
        arrays = {name: file.get_tensor(name) for name in names}
        metadata = {name: without_clocks(text) for name, text in (file.metadata() or {}).items()}
    return metadata, {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in arrays.items()}


def without_clocks(value):
    """The value of JSON without what depends on the speed of the machine or the place of the folder."""
    if isinstance(value, dict):
        return {key: without_clocks(item) for key, item in value.items() if not any(word in key for word in CLOCKS)}
    if isinstance(value, str) and value[:1] in ("{", "["):  # JSON within JSON
        with contextlib.suppress(ValueError):
            return without_clocks(json.loads(value))
    return [without_clocks(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_commands_end_as_if_nothing_had_happened(name, inputs, tmp_path):
    command, kills = COMMANDS[name]
    kills = int(os.environ.get("IVIDEOGPT_KILLS", kills))
    out = tmp_path / "out"  # always the same, since files may name it
    random = np.random.default_rng([SEED, list(COMMANDS).index(name)])
    seconds = run(command, inputs, out)
    expected, happened = contents(out), 0
    assert expected
    shutil.rmtree(out)
    for index in range(kills):
        # Two processes in three are killed once, the others twice.
        for _ in range(1 + (index % 3 == 2)):
            moment = seconds * random.uniform(0.25, 1.0)
            happened += kill_after(start(command, inputs, out), moment)
            check_whole(out) if out.exists() else None
        run(command, inputs, out)
        held = contents(out)
        assert held.keys() == expected.keys(), f"kill {index} after {moment:.2f} s"
        different = [path for path in expected if held[path] != expected[path]]
        assert not different, f"kill {index} after {moment:.2f} s: {different}"
        shutil.rmtree(out)
        for beside in tmp_path.iterdir():
            assert not is_temporary(beside.name), f"{beside.name} is left over"
    print(f"{name}: {happened} of {kills + kills // 3} processes were killed while they ran ({seconds:.1f} s each)")
    assert happened
