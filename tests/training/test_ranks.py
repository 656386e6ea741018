"""Two processes on this machine train as one does on the same batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ivideogpt.core.distributed import Ranks
from ivideogpt.core.errors import UserError
from ivideogpt.worldmodel.world_model import WorldModel

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


def test_divided_weights_give_the_losses_of_one_process_and_ordinary_checkpoints(tmp_path: Path) -> None:
    fsdp = ("--parallel", "fsdp")
    tokenizer = ("train-tokenizer", "debug", "--steps", 5)
    launch(1, *tokenizer, f"run={tmp_path / 'one'}")
    data = ("--data", tmp_path / "one-data")
    launch(2, *tokenizer, f"run={tmp_path / 'two'}", *data, *fsdp, "tokenizer.gradient_accumulation=2")
    assert losses(tmp_path / "two")[:4] == pytest.approx(losses(tmp_path / "one")[:4], rel=1e-3)
    settings = ("--tokenizer", tmp_path / "one", *data, "forecasts=[]", "transformer.imagined_share=0")
    transformer = ("train-transformer", "debug", *settings, "transformer.gradient_checkpointing=true")
    launch(1, *transformer, f"run={tmp_path / 'a'}", "--steps", 5)
    launch(2, *transformer, f"run={tmp_path / 'b'}", "--steps", 3, *fsdp, "transformer.gradient_accumulation=2")
    launch(1, f"{transformer[0]}", f"run={tmp_path / 'b'}", "--steps", 5)  # goes on in one process
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=2e-3)
    one, two = (WorldModel.from_pretrained(tmp_path / name).state_dict() for name in "ab")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-2, atol=2e-3)


def test_a_kind_of_parallel_training_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserError, match="parallel is 'zero'; expected ddp or fsdp"):
        Ranks.join("cpu", "zero")


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size is 9 and 2 processes train; expected a multiple"):
        Ranks(0, 2).share(9)
    assert Ranks(1, 2).share(8) == 4
