"""Demonstrations for an agent: an episode store, official .npz files, or scripted episodes recorded on the spot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.metaworld_npz import read_npz_files
from ivideogpt.data.convert.source_episode import SourceEpisode
from ivideogpt.data.episode_files import is_store
from ivideogpt.data.store.reader import EpisodeStore
from ivideogpt.envs.registry import find_environment
from ivideogpt.evaluation.policy_trials import recorded_task, tasks_of

#: Folder of the demonstrations of each environment, where `ivideogpt mbrl` looks for them.
DEMOS = Path("demos")
#: Recorded where there are none; as many as the official code comes with.
SCRIPTED = 5
_METAWORLD = "metaworld/"


def demonstration_folder(task: str) -> Path:
    """Return the folder in ``DEMOS`` that demonstrations of an environment are looked for in.

    Args:
        task: name of the environment; tasks of a suite of LIBERO share that of the suite.
    """
    row = find_environment(task)
    return DEMOS / ((row[1].demonstrations if row else "") or task.split("/")[-1])


def read_demonstrations(folder: Path, task: str) -> list[Episode]:
    """Read the demonstrations of a task; actions are clipped to -1 to 1, and the files are not changed.

    Args:
        folder: an episode store, or a folder (or a folder of folders) of official .npz files.
        task: name of the environment, such as "metaworld/plate-slide".

    Raises:
        UserError: there are none, they are of another task, or lack actions or rewards.
    """
    if not folder.exists():
        raise UserError(f"there is no folder {folder}; give one with demonstrations, or none to record scripted ones")
    name = task.removeprefix(_METAWORLD)
    episodes = list(read_stored(folder) if is_store(folder) else _official(folder))
    if not episodes:
        raise UserError(f"{folder} holds no demonstrations; expected an episode store or official .npz files")
    tasks_of_suite = tasks_of(task)
    demos = [episode for episode in episodes if recorded_task(episode, tasks_of_suite) is not None]
    if not demos:
        tasks = ", ".join(sorted({str(episode.meta.get("task")) for episode in episodes}))
        raise UserError(f"{folder} holds demonstrations of {tasks}, not of {name}; give those of {name}")
    for episode in demos:
        if episode.actions is None or episode.rewards is None:
            raise UserError(f"demonstration {episode.key!r} in {folder} has no actions or no rewards; expected both")
        np.clip(episode.actions, -1.0, 1.0, out=episode.actions)
    return demos


def check_demos(demos: list[Episode], *, action_dim: int, image: int, control_mode: str | None = None) -> None:
    """Check that demonstrations fit the environment.

    Raises:
        UserError: their actions or frames have another size, or they were recorded with another control mode.
    """
    for demo in demos:
        assert demo.actions is not None
        recorded = demo.meta.get("control_mode", control_mode)
        if control_mode is not None and recorded != control_mode:
            raise UserError(
                f"demonstration {demo.key!r} was recorded with the control mode {recorded} and the environment has "
                f"{control_mode}; give demonstrations of {control_mode}, or set environment_options.control_mode"
            )
        if demo.actions.shape[1] != action_dim:
            raise UserError(
                f"demonstration {demo.key!r} has actions of {demo.actions.shape[1]} numbers and the environment takes "
                f"{action_dim}; give demonstrations of this environment"
            )
        if demo.frames.shape[1:3] != (image, image):
            height, width = demo.frames.shape[1:3]
            raise UserError(
                f"demonstration {demo.key!r} has frames of {height}x{width} pixels and the environment shows "
                f"{image}x{image}; record them at that size"
            )


def scripted_demos(task: str, count: int, seed: int, options: dict) -> list[Episode]:
    """Record ``count`` episodes with the script of an environment.

    Raises:
        UserError: it has none.
    """
    if task.startswith(_METAWORLD):
        from ivideogpt.envs.record.metaworld_episodes import MetaworldRecording, record_metaworld

        recorded = {name: value for name, value in options.items() if name in MetaworldRecording.__dataclass_fields__}
        seeds = [seed * 1000 + number for number in range(count)]
        episodes = record_metaworld(task.removeprefix(_METAWORLD), seeds, MetaworldRecording(**recorded))
        return [_plain(episode) for episode in episodes]
    if task.partition("/")[0] in ("libero_spatial", "libero_object"):
        from ivideogpt.envs.record.libero_episodes import LiberoRecording, record_libero

        tasks = tasks_of(task)
        recorded = {name: value for name, value in options.items() if name in LiberoRecording.__dataclass_fields__}
        return [
            _plain(episode)
            for number in range(count)
            for episode in record_libero(
                tasks[number % len(tasks)], [seed * 1000 + number], LiberoRecording(**recorded)
            )
        ]
    raise UserError(
        f"there is no script for {task}; give demonstrations of it with demo_folder=FOLDER (an episode store), "
        "or start without: demo=false"
    )


def read_stored(folder: Path) -> Iterator[Episode]:
    """Yield the episodes of a store with what their recording says in ``meta``."""
    store = EpisodeStore(folder)
    for index in range(len(store)):
        episode = store[index]
        actions = None if episode.actions is None else np.array(episode.actions, np.float32)
        yield Episode(
            frames=episode.frames,
            actions=actions,
            rewards=episode.rewards,
            terminated=episode.terminated,
            key=episode.key,
            meta=store.info(index)["meta"],
        )


def _official(folder: Path) -> Iterator[Episode]:
    paths = sorted(path for path in folder.rglob("*.npz") if path.name[0] != ".")
    return map(_plain, read_npz_files(folder=folder, paths=paths))


def _plain(source: SourceEpisode) -> Episode:
    frames = source.cameras[source.camera]
    assert isinstance(frames, np.ndarray)
    return Episode(
        frames=frames,
        actions=np.array(source.actions, np.float32),
        rewards=source.rewards,
        terminated=source.terminated,
        key=source.key,
        meta=dict(source.meta),
    )
