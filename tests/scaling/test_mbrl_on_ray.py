"""Reinforcement learning with actors on a Ray cluster gives what one process gives, also after deaths."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

gymnasium = pytest.importorskip("gymnasium")

from ivideogpt.cli import main  # noqa: E402
from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.envs.vector import make_vector  # noqa: E402
from ivideogpt.scaling import ray_pool  # noqa: E402
from ivideogpt.scaling.ray_actors import RayActors  # noqa: E402
from ivideogpt.scaling.ray_pool import RayPool  # noqa: E402


def process_of(_: Any) -> int:
    return os.getpid()


def die_once(mark: Path, number: int) -> int:
    if not mark.exists():
        mark.write_text("killed")
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


@contextmanager
def actors(cluster: RayPool) -> Iterator[RayActors]:
    with closing(RayActors(cluster)) as workers:
        yield workers


def kill_row(environments: Any, row: int) -> None:
    """Kill the process of an environment, as the machine would when memory runs out."""
    actor = environments.envs[row]._actor
    os.kill(actor.receive(actor.send(process_of)), signal.SIGKILL)


def played(environments: Any, *, kills: bool = False) -> list[np.ndarray]:
    """Observations, rewards, ends and successes of some steps with resets of single rows."""
    actions, results = np.random.default_rng(0).uniform(-1, 1, (6, 2, 2)).astype(np.float32), []
    observations, _ = environments.reset(seed=[5, 6])
    results.append(observations.copy())
    for number, action in enumerate(actions):
        if kills and number in (2, 5):
            kill_row(environments, 1)
        *step, info = environments.step(action)
        results += [*(np.array(part) for part in step), info["success"]]
        over = step[2] | step[3]
        if over.any():
            results.append(environments.reset(seed=[7, 8], options={"reset_mask": over})[0].copy())
    environments.close()
    return results


def test_environments_in_actors_show_what_they_show_here_even_if_they_die(
    cluster: RayPool, capsys: pytest.CaptureFixture[str]
) -> None:
    make = partial(make_vector, "reacher", 2, frame_stack=2, size=16, steps=4)
    here = played(make())
    with actors(cluster) as workers:
        there = played(make(workers=workers.environments), kills=True)
    assert len(here) == len(there) > 30
    for ours, theirs in zip(here, there, strict=True):
        assert np.array_equal(ours, theirs) and ours.dtype == theirs.dtype
    deaths = [line for line in capsys.readouterr().out.splitlines() if line.startswith("environment 1 died")]
    repeated = [line.rpartition(" its ")[2] for line in deaths]
    assert repeated == ["3 steps", "2 steps"]  # after the second death, the episode had begun anew


def test_a_call_whose_actor_dies_is_repeated(cluster: RayPool, tmp_path: Path) -> None:
    with actors(cluster) as workers:
        assert workers.begin(partial(die_once, tmp_path / "mark"), [1, 2, 3])() == [1, 4, 9]
        assert (tmp_path / "mark").exists()
        assert len(set(workers.begin(process_of, [None] * 4)())) == 2  # one for each processor of the cluster


class Coloured(gymnasium.Env):
    """Shows the number of its process: it has randomness of its own."""

    observation_space = gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        return np.full((16, 16, 3), os.getpid() % 251, np.uint8), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return *self.reset()[:1], 0.0, False, False, {}


def test_an_environment_that_cannot_be_repeated_ends_the_run(cluster: RayPool) -> None:
    with actors(cluster) as workers:
        environments = workers.environments([Coloured])
        environments.reset(seed=[0])
        kill_row(environments, 0)
        with pytest.raises(UserError, match="environment 0 died, and shows another picture after the same seed"):
            environments.step(np.zeros((1, 1), np.float32))
        environments.close()


def test_an_actor_with_another_version_is_named(cluster: RayPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_pool, "__version__", "0.0.0")
    with actors(cluster) as workers, pytest.raises(UserError, match="and this machine 0.0.0; install the same version"):
        make_vector("reacher", 1, size=16, workers=workers.environments)


def test_a_command_that_cannot_have_its_cluster_leaves_no_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for options, sentence in (
        (["--ray", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
        (["--ray", "--workers"], "give --ray or --workers, not both"),
    ):
        assert main(["mbrl", "debug", "--run", str(tmp_path / "run"), *options]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def evaluations(folder: Path) -> list[dict]:
    lines = (folder / "evaluations.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": 0} for line in lines]


def tensors_of(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Weights, optimizers and replay buffer of a run, by file."""
    return {str(path.relative_to(folder)): load_file(path) for path in sorted(folder.rglob("*.safetensors"))}


def assert_same_run(one: Path, other: Path) -> None:
    assert evaluations(one) == evaluations(other)
    ours, theirs = tensors_of(one), tensors_of(other)
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, tensors in ours.items():
        assert tensors.keys() == theirs[name].keys()
        for label, value in tensors.items():
            assert np.array_equal(value, theirs[name][label]), f"{name}: {label}"


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True])
def test_a_run_with_actors_ends_as_without_them_also_after_its_driver_was_killed(
    cluster: RayPool, tmp_path: Path, overlap: bool
) -> None:
    words = ["mbrl", "debug", "--device", "cpu", "environments=2", "cpu_threads=1", "save_every_steps=20"]
    words += [f"imagination.overlap={overlap}", "--run"]
    assert main([*words, str(tmp_path / "one")]) == 0
    if overlap:
        address = cluster.ray.get_runtime_context().gcs_address
        begun = [sys.executable, "-m", "ivideogpt", *words, str(tmp_path / "ray"), "--ray", address]
        driver = subprocess.Popen(begun, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while not (tmp_path / "ray/checkpoints/step-00000020").exists() and time.monotonic() < deadline:
            assert driver.poll() is None
            time.sleep(0.05)
        driver.kill()
        driver.wait()
        assert len(evaluations(tmp_path / "ray")) < len(evaluations(tmp_path / "one"))
    assert main([*words, str(tmp_path / "ray"), "--ray"]) == 0
    assert_same_run(tmp_path / "one", tmp_path / "ray")


TWO_MACHINES = """
import time
import numpy as np
from ray.cluster_utils import Cluster
from ivideogpt.envs.vector import make_vector
from ivideogpt.scaling.ray_actors import RayActors
from ivideogpt.scaling.ray_pool import RayPool

def place(_):
    import ray
    return ray.get_runtime_context().get_node_id()

def square(number):
    time.sleep(1)
    return number * number

def play(environments, before_step=lambda number: None):
    shown = [environments.reset(seed=[1, 2])[0].copy()]
    for number in range(5):
        before_step(number)
        shown.append(environments.step(np.full((2, 2), 0.3, np.float32))[0].copy())
    environments.close()
    return shown

def lose(machine):
    cluster.remove_node(machine, allow_graceful=False)
    time.sleep(3)  # its processes live a little longer

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = cluster.add_node(num_cpus=1)
pool = RayPool(cluster.address)
environments = make_vector("reacher", 2, size=16, steps=20, workers=RayActors(pool).environments)
assert len({row._actor.receive(row._actor.send(place)) for row in environments.envs}) == 2
shown = play(environments, lambda number: lose(second) if number == 3 else None)
assert all(map(np.array_equal, shown, play(make_vector("reacher", 2, size=16, steps=20))))
third, results = cluster.add_node(num_cpus=1), {}
for position, result in pool.run(square, range(8)):
    results[position] = result
    if len(results) == 2:
        lose(third)
assert results == {number: number * number for number in range(8)}
print("finished")
"""


@pytest.mark.slow
def test_environments_and_tasks_survive_the_death_of_their_machine(tmp_path: Path) -> None:
    """Ray's own test cluster: two machines are two sets of Ray's processes on this one."""
    pytest.importorskip("ray", reason="needs the extra ray")
    (tmp_path / "script.py").write_text(TWO_MACHINES)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=240)
    assert "finished" in done.stdout.splitlines(), (done.stdout + done.stderr)[-3000:]
    assert " died on the Ray cluster; it is started again and repeats its 4 steps" in done.stdout
