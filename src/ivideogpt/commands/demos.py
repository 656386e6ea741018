"""``ivideogpt demos``: demonstrations of robot simulators, as their authors publish them, into episode stores."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from ivideogpt.commands.output import check_folder, print_json, print_table
from ivideogpt.core.errors import UserError
from ivideogpt.envs.registry import LIBERO_SUITES, MANISKILL_TASKS, find_environment

#: Where `ivideogpt mbrl demo=true` looks.
_DEMOS = Path("demos")
#: Names of suites that the official downloads have.
_SUITES = (*LIBERO_SUITES, "libero_100")


def demos_maniskill(
    *,
    task: str,
    trajectory_path: Path,
    metadata_path: Path | None = None,
    output_dir: Path = _DEMOS,
    episodes: int = 2,
    success_only: bool = False,
    max_episode_steps: int | None = None,
    replay: str = "states",
    size: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT [INT]")] = (64,),
    camera: str = "render",
    render_backend: str = "auto",
    obj_set: str | None = None,
    action_repeat: int = 1,
    frame_stack: int | None = None,
) -> None:
    """Draw ManiSkill's recorded trajectories in the simulator, and store them as demonstrations.

    Args:
        task: PickCube-v1, LiftPegUpright-v1, PegInsertionSide-v1, PushT-v1 or StackCube-v1; or pick_cube and so on.
        trajectory_path: the .h5 file, as `python -m mani_skill.utils.download_demo TASK` downloads it.
        metadata_path: its description; default: the .json file beside it.
        output_dir: the store is the folder with the task's name in it, where `ivideogpt mbrl` finds it.
        episodes: number of them; -1: all.
        success_only: keep those that succeed again in the replay.
        max_episode_steps: longer ones are cut.
        replay: states (before each action the simulator is put into the recorded state: exact on any machine),
            first-state, or actions (from the seed).
        size: side of the pictures in pixels; two equal numbers are understood.
        camera: render, base or hand.
        render_backend: auto, sapien_cpu or sapien_cuda.
        obj_set: null; the five tasks have no sets of objects.
        action_repeat: 1; recorded actions are not repeated.
        frame_stack: not used: a store holds single frames.
    """
    from ivideogpt.envs.record.maniskill_replay import ReplaySettings, convert_trajectories

    if obj_set is not None and obj_set.lower() not in ("null", "none"):
        raise UserError(f"obj_set is {obj_set!r}; expected null: the five tasks have no sets of objects")
    if action_repeat != 1:
        raise UserError(f"action_repeat is {action_repeat}; expected 1: each recorded action was taken once")
    if len(set(size)) != 1:
        raise UserError(f"size is {', '.join(map(str, size))}; expected one number, or two equal ones")
    settings = ReplaySettings(
        replay=replay,  # type: ignore[arg-type]
        episodes=episodes,
        success_only=success_only,
        max_episode_steps=max_episode_steps,
        size=size[0],
        camera=camera,
        render_backend=render_backend,
    )
    environment = find_environment(task)
    if environment is None or environment[1].extra != "maniskill":
        raise UserError(
            f"there is no ManiSkill task {task!r} here; expected one of "
            + ", ".join(str(options["task"]) for options in MANISKILL_TASKS.values())
        )
    folder = output_dir / environment[0].partition("/")[2]
    check_folder(folder)
    start = time.perf_counter()
    summary = convert_trajectories(trajectory_path, folder, settings, task=task, metadata_path=metadata_path)
    print(summary)
    _print_stores([folder], time.perf_counter() - start)


def demos_libero(
    *,
    download_dir: Path,
    output_dir: Path = _DEMOS,
    suites: tuple[str, ...] = ("all",),
    rotate_180: bool = False,
    alignment: str = "after",
    image_size: int = 64,
    image_key: str | None = None,
    max_demos: int = -1,
    frame_stack: int | None = None,
    workers: int | None = None,
) -> None:
    """Store the official demonstrations of LIBERO's suites.

    Args:
        download_dir: holds a folder of .hdf5 files for each suite.
        output_dir: the store of a suite is the folder with its name in it, where `ivideogpt mbrl` finds it.
        suites: libero_spatial, libero_object, libero_goal, libero_10, libero_90 or libero_100; all: those there are.
        rotate_180: turn the pictures, as the environment shows them and policies expect them.
        alignment: after (official files) or before (copies that were drawn anew): where a picture stands to the action
            of its row.
        image_size: side of the pictures in pixels.
        image_key: the camera; default: agentview_rgb.
        max_demos: episodes of each task at most; -1: all.
        frame_stack: not used: a store holds single frames.
        workers: processes; 0: this one; default: one for each processor.
    """
    from ivideogpt.data.convert import libero
    from ivideogpt.data.store.writer import convert_to_store

    unknown = [suite for suite in suites if suite not in (*_SUITES, "all")]
    if unknown:
        raise UserError(f"there is no suite {unknown[0]!r}; expected all, or some of {', '.join(_SUITES)}")
    chosen = _SUITES if "all" in suites else suites
    folders = {suite: download_dir / suite for suite in chosen}
    missing = [suite for suite, folder in folders.items() if not folder.is_dir()]
    if len(missing) == len(folders) or (missing and "all" not in suites):
        raise UserError(f"there is no folder {folders[missing[0]]}; give the folder that holds {missing[0]}")
    start, stores = time.perf_counter(), []
    for suite, folder in folders.items():
        if suite in missing:
            continue
        target = output_dir / suite
        check_folder(target)
        options = {"alignment": alignment, "rotate_180": rotate_180, "image_size": image_size, "camera": image_key}
        options["max_demos"] = None if max_demos < 0 else max_demos
        shards = libero.tasks(folder, **options)
        facts = replace(libero.FACTS, name=suite, options=options)
        print(f"{suite}: {convert_to_store(shards, target, facts=facts, workers=workers)}")
        stores.append(target)
    _print_stores(stores, time.perf_counter() - start)


def _print_stores(folders: list[Path], seconds: float) -> None:
    from ivideogpt.data.store.reader import EpisodeStore

    rows, stores = [], {}
    for folder in folders:
        store = EpisodeStore(folder)
        succeeded = sum(bool(store.info(index)["meta"].get("success")) for index in range(len(store)))
        frames = int(store.lengths.sum())
        stores[str(folder)] = {"episodes": len(store), "successes": succeeded, "frames": frames}
        rows.append((str(folder), f"{len(store):,}", f"{succeeded:,}", f"{frames:,}"))
    print_table(("store", "episodes", "succeed", "frames"), rows)
    print_json({"stores": stores, "seconds": seconds})
