"""``ivideogpt demos``: episodes that show how a task is done."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from ivideogpt.commands.output import print_json, print_table
from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.metaworld_npz import FACTS, tasks
from ivideogpt.data.store.reader import EpisodeStore
from ivideogpt.data.store.writer import convert_to_store
from ivideogpt.envs.record.metaworld_episodes import Recording, collect_metaworld
from ivideogpt.envs.record.pusht_episodes import parse_seeds
from ivideogpt.envs.registry import METAWORLD_TASKS

_WHAT = ("collect", "import")
_EPISODES = 60


def demos(
    what: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="collect|import")],
    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TASK|FOLDER")],
    *,
    out: Path,
    episodes: int | None = None,
    seeds: str | None = None,
    noise: float = Recording.noise,
    random_share: float = Recording.random_share,
    longest_stretch: int = Recording.longest_stretch,
    workers: int | None = None,
    size: int = Recording.size,
    action_repeat: int = Recording.action_repeat,
    steps: int = Recording.steps,
    shadow_size: int = Recording.shadow_size,
    samples: int = Recording.samples,
) -> None:
    """Record scripted episodes of Meta-World into an episode store, or import the official ones.

    The same command again goes on where it stopped.

    Args:
        what: collect, or import: the official .npz files (mbrl/demonstrations of thuml/iVideoGPT), actions clipped.
        task: of Meta-World, such as plate-slide; all: the six of the official experiments. Of import: the folder.
        out: folder of the store.
        episodes: of each task; default: one for each seed, or 60.
        seeds: "first:stop", one episode a seed, stop excluded; seeds from 10000 on are held out. Default: 0:episodes.
        noise: standard deviation of what is added to each number of an action (-1 to 1).
        random_share: share of the steps spent in stretches of random motion, so that some episodes fail.
        longest_stretch: steps that one lasts at most; 60 reaches where an untrained agent ends up.
        workers: processes; 0: this one; default: one for each processor.
        size: side of the frames in pixels.
        action_repeat: simulator steps (1/80 s) that an action is taken for.
        steps: actions of an episode.
        shadow_size: side of the shadow map in pixels; the simulator's own is 4096; 0: no shadows.
        samples: of each pixel, against jagged edges; 0: one.
    """
    if what not in _WHAT:
        raise UserError(f"demos cannot {what!r}; {suggestion(what, _WHAT)}")
    start = time.perf_counter()
    if what == "import":
        convert_to_store(tasks(Path(task)), out, facts=FACTS, workers=workers)
        _print_store(out, time.perf_counter() - start)
        return
    chosen = _seeds(episodes, seeds)
    recording = Recording(
        noise=noise,
        random_share=random_share,
        longest_stretch=longest_stretch,
        size=size,
        action_repeat=action_repeat,
        steps=steps,
        shadow_size=shadow_size,
        samples=samples,
    )
    collect_metaworld(METAWORLD_TASKS if task == "all" else (task,), chosen, out, recording, workers)
    _print_store(out, time.perf_counter() - start)


def _seeds(episodes: int | None, seeds: str | None) -> range:
    if episodes is not None and episodes < 1:
        raise UserError(f"episodes is {episodes}; expected at least 1")
    if seeds is None:
        return range(episodes or _EPISODES)
    found = range(*parse_seeds(seeds))
    if episodes not in (None, len(found)):
        raise UserError(
            f"seeds is {seeds!r}, which is {len(found)} episodes, and episodes is {episodes}; give one of them"
        )
    return found


def _print_store(folder: Path, seconds: float) -> None:
    store = EpisodeStore(folder)
    told: dict[str, list[tuple[bool, float, int]]] = {}
    for index, frames in enumerate(store.lengths.tolist()):
        meta = store.info(index)["meta"]
        if "return" not in meta:
            meta["return"] = float(store.arrays(index, ("rewards",))["rewards"].sum())
        told.setdefault(meta["task"], []).append((meta.get("success", np.nan), meta["return"], frames))
    tasks = {}
    for task, rows in sorted(told.items()):
        success, total, frames = np.array(rows, np.float64).T
        tasks[task] = {
            "episodes": len(rows),
            "success": float(success.mean()),
            "return": float(total.mean()),
            "frames": int(frames.sum()),
        }
    rows = [
        (task, f"{said['episodes']:,}", said["success"], said["return"], f"{said['frames']:,}")
        for task, said in tasks.items()
    ]
    print_table(("task", "episodes", "success", "return", "frames"), rows)
    print_json({"store": folder, "episodes": len(store), "tasks": tasks, "seconds": seconds})
