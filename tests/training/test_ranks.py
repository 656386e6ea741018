"""Two processes on this machine train as one does on the same batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ivideogpt.core.distributed import Ranks
from ivideogpt.core.errors import UserError

pytest.importorskip("accelerate", reason="several processes need the extra train")


# run=FOLDER: torchrun would take --run for an option of its own
def launch(processes: int, *words: object) -> None:
    command = [sys.executable, "-m", "ivideogpt", *map(str, words), "--device", "cpu"]
    if processes > 1:
        command[1:2] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.strip().splitlines()) == 2  # only the first speaks


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    tokenizer = ("train-tokenizer", "debug", "--steps", 7)
    launch(1, *tokenizer, f"run={tmp_path / 'one'}")
    parts = ("tokenizer.gradient_accumulation=2",)
    launch(2, *tokenizer, f"run={tmp_path / 'two'}", "--data", tmp_path / "one-data", *parts)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert two[:4] == pytest.approx(one[:4], rel=1e-3)
    assert two == pytest.approx(one, rel=1e-2)  # then codes restart at random vectors of the first rank
    transformer = ("train-transformer", "debug", "--tokenizer", tmp_path / "one", "--data", tmp_path / "one-data")
    settings = ("--steps", 4, "transformer.imagined_share=0")
    launch(1, *transformer, f"run={tmp_path / 'a'}", *settings)
    launch(2, *transformer, f"run={tmp_path / 'b'}", *settings, "transformer.gradient_accumulation=2")
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=1e-3)
    assert losses(tmp_path / "b" / "forecast-1") == pytest.approx(losses(tmp_path / "a" / "forecast-1"), rel=1e-3)


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size is 9 and 2 processes train; expected a multiple"):
        Ranks(0, 2).share(9)
    assert Ranks(1, 2).share(8) == 4
