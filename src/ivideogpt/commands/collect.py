"""``ivideogpt collect``: record episodes in a simulator into an episode store."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ivideogpt.commands.output import check_folder, print_json, print_table
from ivideogpt.core.config import closest
from ivideogpt.core.errors import UserError
from ivideogpt.envs.registry import ALL_METAWORLD_TASKS, LIBERO_SUITES, METAWORLD_TASKS, find_environment

if TYPE_CHECKING:
    from ivideogpt.data.store.reader import EpisodeStore

_EPISODES = 60
_METAWORLD = "metaworld"
_LIBERO = "libero"
#: Extras of the environments that one recorder serves.
_SIMULATORS = ("vp2", "maniskill")
_ROBOTS = "robots"


@dataclass(frozen=True)
class Recorder:
    """A simulator that episodes are recorded in.

    Attributes:
        settings: returns the default settings of a recording, a dataclass.
        record: records one episode for each seed of a range into a store: (tasks, seeds, folder, settings, workers).
    """

    settings: Callable[[], Any]
    record: Callable[[Sequence[str], range, Path, Any, int | None], None]


def _pusht_settings() -> Any:
    from ivideogpt.envs.record.pusht_episodes import PushTRecording

    return PushTRecording()


def _record_pusht(tasks: Sequence[str], seeds: range, out: Path, settings: Any, workers: int | None) -> None:
    from ivideogpt.envs.record.pusht_episodes import collect_pusht_store

    chosen = f"{seeds.start}:{seeds.stop}"
    collect_pusht_store(chosen, out, settings.shard, settings.length, workers, settings.behaviour)


def _metaworld_settings() -> Any:
    from ivideogpt.envs.record.metaworld_episodes import MetaworldRecording

    return MetaworldRecording()


def _record_metaworld(tasks: Sequence[str], seeds: range, out: Path, settings: Any, workers: int | None) -> None:
    from ivideogpt.envs.record.metaworld_episodes import collect_metaworld

    collect_metaworld(tasks, seeds, out, settings, workers)


def _libero_settings() -> Any:
    from ivideogpt.envs.record.libero_episodes import LiberoRecording

    return LiberoRecording()


def _record_libero(tasks: Sequence[str], seeds: range, out: Path, settings: Any, workers: int | None) -> None:
    from ivideogpt.envs.record.libero_episodes import collect_libero

    collect_libero(tasks, seeds, out, settings, workers)


def _toy_settings() -> Any:
    from ivideogpt.envs.record.toy_episodes import ToyRecording

    return ToyRecording()


def _record_toy(tasks: Sequence[str], seeds: range, out: Path, settings: Any, workers: int | None) -> None:
    from ivideogpt.envs.record.toy_episodes import collect_toy

    collect_toy(seeds, out, settings, workers)


def _robot_settings() -> Any:
    from ivideogpt.envs.record.simulator_episodes import SimulatorRecording

    return SimulatorRecording()


def _record_robots(tasks: Sequence[str], seeds: range, out: Path, settings: Any, workers: int | None) -> None:
    from ivideogpt.envs.record.simulator_episodes import collect_simulator

    collect_simulator(tasks[0], seeds, out, settings, workers)


@dataclass(frozen=True, kw_only=True)
class SquareRecording:
    """Episodes of a moving square have no settings."""


def _record_squares(tasks: Sequence[str], seeds: range, out: Path, settings: Any, workers: int | None) -> None:
    from ivideogpt.envs.record.moving_square import collect_squares

    if seeds.start:
        raise UserError(f"seeds begin at {seeds.start}; moving-square begins at 0: give 0:{len(seeds)}")
    collect_squares(out, episodes=len(seeds))


#: Every simulator by its name on the command line.
RECORDERS: Mapping[str, Recorder] = {
    "pusht": Recorder(_pusht_settings, _record_pusht),
    _METAWORLD: Recorder(_metaworld_settings, _record_metaworld),
    _LIBERO: Recorder(_libero_settings, _record_libero),
    _ROBOTS: Recorder(_robot_settings, _record_robots),
    "toy-push": Recorder(_toy_settings, _record_toy),
    "moving-square": Recorder(SquareRecording, _record_squares),
}


def load_recording_settings(typed: Mapping[str, str]) -> Any:
    """Load the settings of a recording in the environment that was typed."""
    return find_recorder(typed.get("environment", "pusht"))[0].settings()


def collect(
    environment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")] = "pusht",
    *,
    settings: Any,
    out: Path,
    seeds: str | None = None,
    episodes: int | None = None,
    workers: int | None = None,
) -> None:
    """Record scripted episodes in a simulator into an episode store; the same command continues after a stop.

    Args:
        environment: pusht; metaworld/TASK or the name of a task of Meta-World, such as plate-slide; metaworld/all for
            the six tasks of the official experiments; a suite of LIBERO or one of its tasks, such as libero_spatial/0;
            maniskill/TASK, with random actions; robodesk/TASK or robosuite/push; toy-push or moving-square, which need
            no simulator. `ENV --help` lists the options of each.
        settings: how the environment is recorded.
        out: folder of the store.
        seeds: "first:stop", one episode a seed, stop excluded; seeds from 10000 on are held out. Default: 0:60.
        episodes: of each task, from seed 0 on, instead of --seeds.
        workers: processes; 0: this one; default: one for each processor.
    """
    recorder, tasks = find_recorder(environment)
    chosen = _seeds(episodes, seeds)
    check_folder(out)
    start = time.perf_counter()
    recorder.record(tasks, chosen, out, settings, workers)

    from ivideogpt.data.store.reader import EpisodeStore

    _print_store(EpisodeStore(out), out, time.perf_counter() - start)


def find_recorder(environment: str) -> tuple[Recorder, tuple[str, ...]]:
    """Return the recorder of an environment, and the tasks of Meta-World or LIBERO to record."""
    name, _, task = environment.replace("_", "-").partition("/")
    row = find_environment(environment)
    if row is not None and row[1].extra == _LIBERO:
        suite = str(row[1].options["suite"])
        every = tuple(f"{suite}/{number}" for number in range(LIBERO_SUITES[suite]))
        return RECORDERS[_LIBERO], (row[0],) if "/" in row[0] else every
    if row is not None and row[1].extra in _SIMULATORS:
        return RECORDERS[_ROBOTS], (row[0],)
    if name in RECORDERS and name not in (_LIBERO, _ROBOTS) and bool(task) == (name == _METAWORLD):
        return RECORDERS[name], METAWORLD_TASKS if task == "all" else (task,)
    if name == _METAWORLD:
        raise UserError("metaworld needs a task; give metaworld/plate-slide, or metaworld/all for six tasks")
    if name == "all":
        return RECORDERS[_METAWORLD], METAWORLD_TASKS
    if row is not None and row[0].startswith(f"{_METAWORLD}/"):
        return RECORDERS[_METAWORLD], (row[0].partition("/")[2],)
    families = (_METAWORLD, _LIBERO, _ROBOTS)
    environments = [*(name for name in RECORDERS if name not in families), "metaworld/TASK", *METAWORLD_TASKS]
    environments += ["libero_spatial/0", "maniskill/pick-cube", "robodesk/push_red", "robosuite/push"]
    near = closest(environment, [*environments, *ALL_METAWORLD_TASKS])
    advice = f"did you mean {near!r}?" if near else f"expected one of: {', '.join(environments)}"
    raise UserError(f"there is no environment {environment!r} to record; {advice}")


def _seeds(episodes: int | None, seeds: str | None) -> range:
    """Return the seeds of the episodes.

    Raises:
        UserError: both options were given and disagree, or one is out of range.
    """
    from ivideogpt.envs.record.pusht_episodes import parse_seeds

    if episodes is not None and episodes < 1:
        raise UserError(f"episodes is {episodes}; expected at least 1")
    if seeds is None:
        return range(episodes or _EPISODES)
    chosen = range(*parse_seeds(seeds))
    if episodes not in (None, len(chosen)):
        raise UserError(
            f"seeds is {seeds!r}, which is {len(chosen)} episodes, and episodes is {episodes}; give one of them"
        )
    return chosen


def _print_store(store: EpisodeStore, folder: Path, seconds: float) -> None:
    """Print the episodes of each task: how many, and how many of them succeed."""
    import numpy as np

    by_task: dict[str, list[tuple[float, float, int]]] = {}
    for index, frames in enumerate(store.lengths.tolist()):
        meta = store.info(index)["meta"]
        if "return" in meta:
            total = meta["return"]
        else:
            rewards = store.arrays(index, ("rewards",)).get("rewards")
            total = float("nan") if rewards is None else float(rewards.sum())
        task = meta.get("task", store.facts.dataset.name)
        by_task.setdefault(task, []).append((meta.get("success", np.nan), total, frames))
    tasks = {}
    for task, episodes in sorted(by_task.items()):
        success, total, frames = np.array(episodes, np.float64).T
        tasks[task] = {
            "episodes": len(episodes),
            "success": float(success.mean()),
            "return": float(total.mean()),
            "frames": int(frames.sum()),
        }
    rows = [
        (task, f"{row['episodes']:,}", row["success"], row["return"], f"{row['frames']:,}")
        for task, row in tasks.items()
    ]
    print_table(("task", "episodes", "success", "return", "frames"), rows)
    print_json({"store": folder, "episodes": len(store), "tasks": tasks, "seconds": seconds})
