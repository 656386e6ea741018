"""What each of several processes has of its own, what all have alike, and what a launcher may say."""

import json
import os
import subprocess
import sys

import pytest

from ivideogpt.core.distributed import Ranks
from ivideogpt.core.errors import UserError

# Four updates in one go, then two and two more; what each rank saw is written down.
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from ivideogpt.core.distributed import Ranks
from ivideogpt.core.run import Run

def train(folder, steps, ranks):
    run = Run(folder, seed=3, device="cpu", log_every=0, save_every=0, ranks=ranks)
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    weights = model[0].weight.tolist()
    done, seen = run.resume(model=model, optimizer=optimizer), []
    forward = ranks.wrap(model)
    for step in run.updates("test", done, steps):
        inputs = torch.rand(2, 8, generator=run.generator)
        found = forward(inputs)
        optimizer.zero_grad()
        found.square().sum().backward()
        optimizer.step()
        seen.append({"inputs": inputs.tolist(), "mask": (found != 0).tolist(), "weights": model[0].weight.tolist()})
        if run.is_save_step(step + 1, last=steps):
            run.save(step + 1, model=model, optimizer=optimizer)
    return weights, seen

folder, ranks = Path(sys.argv[1]), Ranks.join("cpu")
weights, straight = train(folder / "straight", 4, ranks)
resumed = train(folder / "resumed", 2, ranks)[1] + train(folder / "resumed", 4, ranks)[1]
kept = {"weights": weights, "straight": straight, "resumed": resumed}
(folder / f"rank-{ranks.rank}.json").write_text(json.dumps(kept))
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes saw, by rank."""
    pytest.importorskip("accelerate", reason="several processes need the extra train")
    folder = tmp_path_factory.mktemp("two")
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(folder / "program.py"), str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def test_ranks_drop_out_differently_and_are_alike_in_all_else(two):
    first, second = two
    assert first["weights"] == second["weights"]
    for mine, others in zip(first["straight"], second["straight"], strict=True):
        assert mine["mask"] != others["mask"]
        assert mine["inputs"] == others["inputs"] and mine["weights"] == others["weights"]


def test_every_rank_resumes_with_the_dropout_it_would_have_had(two):
    for rank in two:
        assert len(rank["straight"]) == 4 and rank["resumed"] == rank["straight"]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'; expected a whole number from 1 on"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'; expected a whole number from 1 on"),
        ({"WORLD_SIZE": "2", "RANK": ""}, "RANK is ''; expected a whole number from 0 on"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1'; expected a whole number from 0 on"),
    ],
)
def test_what_a_launcher_cannot_mean_is_a_user_error(monkeypatch, environment, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"the environment variable {said}"):
        Ranks.join("cpu")


def test_one_process_is_alone_whatever_its_rank_is_called(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "node-7")
    assert Ranks.join("cpu").ranks == 1
