"""Two processes on this machine train as one does on the same batches."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from ivideogpt.core.distributed import Ranks, load_whole_state, whole_state
from ivideogpt.core.errors import UserError
from ivideogpt.core.optim import adamw, clip_gradients
from ivideogpt.worldmodel.world_model import WorldModel

pytest.importorskip("accelerate", reason="several processes need the extra train")


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1")
ACCELERATE += ("--mixed_precision=no", "--dynamo_backend=no", "-m")


# run=FOLDER: torchrun would take --run for an option of its own
def launch(processes: int, *words: object, launcher: tuple[str, ...] = TORCHRUN) -> None:
    command = [sys.executable, "-m", "ivideogpt", *map(str, words), "--device", "cpu"]
    if processes > 1:
        command[1:2] = launcher
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


@pytest.mark.slow
def test_divided_weights_give_the_losses_of_one_process_and_ordinary_checkpoints(tmp_path: Path) -> None:
    fsdp = ("--parallel", "fsdp")
    tokenizer = ("train-tokenizer", "debug", "--steps", 5)
    launch(1, *tokenizer, f"run={tmp_path / 'one'}")
    data = ("--data", tmp_path / "one-data")
    parts = ("tokenizer.gradient_accumulation=2",)
    launch(2, *tokenizer, f"run={tmp_path / 'two'}", *data, *fsdp, *parts, launcher=ACCELERATE)
    assert losses(tmp_path / "two")[:4] == pytest.approx(losses(tmp_path / "one")[:4], rel=1e-3)
    settings = ("--tokenizer", tmp_path / "one", *data, "forecasts=[]", "transformer.imagined_share=0")
    transformer = ("train-transformer", "debug", *settings, "transformer.gradient_checkpointing=true")
    launch(1, *transformer, f"run={tmp_path / 'a'}", "--steps", 7)
    launch(2, *transformer, f"run={tmp_path / 'b'}", "--steps", 3, *fsdp, "transformer.gradient_accumulation=2")
    launch(1, transformer[0], f"run={tmp_path / 'b'}", "--steps", 5)  # goes on in one process
    launch(2, transformer[0], f"run={tmp_path / 'b'}", "--steps", 7, *fsdp, launcher=ACCELERATE)  # and in two again
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=2e-3)
    one, two = (WorldModel.from_pretrained(tmp_path / name).state_dict() for name in "ab")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-2, atol=2e-3)


@pytest.fixture
def group() -> Iterator[None]:
    """A group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Network(nn.Module):
    """Two blocks, a weight that stays whole, and one that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.last, self.codes = nn.Linear(6, 1), nn.Embedding(3, 6)
        self.codes.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x).tanh()
        return self.last(x + self.codes.weight[0])

    def guess(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.blocks[0](x))


def test_divided_weights_are_updated_clipped_saved_and_loaded_as_whole_ones(group: None) -> None:
    torch.manual_seed(0)
    plain = Network()
    divided, x = copy.deepcopy(plain), torch.randn(5, 6)
    ranks = Ranks(0, 1, torch.device("cpu"), parallel="fsdp")
    ranks.shard(divided, blocks=divided.blocks, whole=[divided.last.weight], methods=["guess"])
    names = {name for name, weight in divided.named_parameters() if hasattr(weight, "full_tensor")}
    assert "blocks.0.weight" in names and not names & {"last.weight", "codes.weight"}
    states, optimizers = [], [adamw(network, learning_rate=0.1) for network in (plain, divided)]
    for network, optimizer in zip((plain, divided), optimizers, strict=True):
        for _ in range(2):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            clip_gradients(network, 0.05)
            optimizer.step()
        states.append((whole_state(network.state_dict()), whole_state(optimizer.state_dict()["state"])))
    torch.testing.assert_close(states[1], states[0])
    torch.testing.assert_close(divided.guess(x), plain.guess(x))

    # the state of whole weights goes on with divided ones
    load_whole_state(divided, states[0][0])
    load_whole_state(optimizers[1], optimizers[0].state_dict())
    assert {group["foreach"] for group in optimizers[1].param_groups} == {
        False
    }  # no kernel takes both kinds of weights
    torch.testing.assert_close(whole_state(divided.state_dict()), states[0][0])
    torch.testing.assert_close(whole_state(optimizers[1].state_dict()["state"]), states[0][1])
    divided(x).square().mean().backward()
    optimizers[1].step()


def test_a_kind_of_parallel_training_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserError, match="parallel is 'zero'; expected ddp or fsdp"):
        Ranks.join("cpu", "zero")


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size is 9 and 2 processes train; expected a multiple"):
        Ranks(0, 2).share(9)
    assert Ranks(1, 2).share(8) == 4
