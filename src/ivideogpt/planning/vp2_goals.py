"""Goal files of VP2: read and written in its layout, and recorded by the script of a task.

``data/demo_N``, N from 1 on, holds ``states`` float64 ``[t s]`` and ``obs/CAMERA_image`` uint8 ``[t h w 3]``; where the
start is not state 0, ``start_index``; where scenes differ, the attribute ``model_file``. The goal is the last state and
its picture.

Source: s-tian/vp2 ``vp2/envs/base.py``; same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.core.files import write_atomic
from ivideogpt.core.reading import local_path
from ivideogpt.data.convert import hdf5
from ivideogpt.envs.goal_environment import GoalEnvironment

#: Most steps of a script, and steps before its end at which an instance starts: VP2's agents have 14 free actions.
_SCRIPT_STEPS, _REACHABLE_STEPS = 60, 12
#: Scripts in a row that may miss the goal.
_MOST_MISSES = 20


@dataclass(frozen=True)
class GoalEpisode:
    """An episode that ends in a goal.

    Attributes:
        states: float64 ``[t s]``.
        frames: uint8 ``[n h w 3]``, of all t states or of the last one alone.
        start: number of the state at which an agent begins.
        scene: MJCF, or "".
    """

    states: np.ndarray
    frames: np.ndarray
    start: int
    scene: str = ""


@dataclass(frozen=True)
class GoalInstance:
    """A start and its goal.

    Attributes:
        number: of the instance, from 0 on.
        start: state float64 ``[s]``.
        goal_state: float64 ``[s]``.
        goal: picture uint8 ``[h w 3]``.
    """

    number: int
    start: np.ndarray
    goal_state: np.ndarray
    goal: np.ndarray


def goal_instance(number: int, episode: GoalEpisode, size: int) -> GoalInstance:
    """Return the instance of an episode, with a goal picture of ``size`` px."""
    picture = episode.frames[-1]
    if picture.shape[:2] != (size, size):
        picture = np.asarray(PIL.Image.fromarray(picture).resize((size, size), PIL.Image.Resampling.LANCZOS))
    return GoalInstance(number, episode.states[episode.start], episode.states[-1], picture)


def record_goals(environment: GoalEnvironment, first_seed: int, *, all_frames: bool) -> Iterator[GoalEpisode]:
    """Yield the episodes in which the script of the task reaches a goal, from a seed on.

    Args:
        environment: of the task.
        first_seed: of the first episode; a seed whose script misses is left out.
        all_frames: draw every state; False: only the last one, which is much faster.

    Raises:
        UserError: the script hardly ever reaches a goal.
    """
    misses, seed = 0, first_seed
    while misses < _MOST_MISSES:
        environment.reset(seed=seed)
        states = [environment.save_state()]
        frames = [environment.picture()] if all_frames else []
        while not environment.is_goal(states[0]) and len(states) <= _SCRIPT_STEPS:
            environment.simulate(environment.scripted_action())
            states.append(environment.save_state())
            if all_frames:
                frames.append(environment.picture())
        misses, seed = misses + 1, seed + 1
        if environment.is_goal(states[0]) and len(states) > 1:
            misses = 0
            pictures = np.stack(frames or [environment.picture()])
            start = max(0, len(states) - 1 - _REACHABLE_STEPS)
            yield GoalEpisode(np.stack(states), pictures, start, environment.scene())
    raise UserError(
        f"the script of the task missed the goal {misses} times in a row from seed {seed - misses} on; give another "
        "first seed, or a goal file of VP2 by --goals.file"
    )


def write_goals(path: Path, episodes: Sequence[GoalEpisode], camera: str) -> None:
    """Write a goal file, which appears whole or not at all.

    Args:
        path: of the file.
        episodes: with pictures of all states.
        camera: its name in the file.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise MissingExtraError("h5py", "data") from error

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            for number, episode in enumerate(episodes, 1):
                group = file.create_group(f"data/demo_{number}")
                group["states"], group["start_index"] = episode.states, episode.start
                group.create_dataset(f"obs/{camera}_image", data=episode.frames, compression="gzip")
                if episode.scene:
                    group.attrs["model_file"] = episode.scene

    write_atomic(path, write)


def read_goals(path: str, cameras: Sequence[str]) -> list[GoalEpisode]:
    """Read a goal file in the order of the numbers of its episodes; of the pictures only the last ones.

    Args:
        path: of the file.
        cameras: names of the camera, of which the first one in the file is taken.

    Raises:
        UserError: there is no such file, or it is no goal file of this camera.
    """
    with hdf5.open_hdf5(local_path(path)) as file:
        data = hdf5.group(file, "data")
        names = [name for name in map(str, data) if name.removeprefix("demo_").isdigit()]
        if not names:
            raise UserError(f"{path} has no data/demo_1; expected a goal file of VP2, or one of: ivideogpt plan goals")
        names.sort(key=lambda name: int(name.removeprefix("demo_")))
        return [_read_goal(hdf5.group(data, name), f"{path}: {name}", cameras) for name in names]


def _read_goal(group: Any, where: str, cameras: Sequence[str]) -> GoalEpisode:
    keys = [f"obs/{name}_image" for name in cameras]
    camera = next((key for key in keys if key in group), keys[0])
    states, frames = hdf5.array(group, "states").astype(np.float64), np.asarray(hdf5.dataset(group, camera)[-1:])
    start = int(group["start_index"][()]) if "start_index" in group else 0
    if states.ndim != 2 or not -len(states) <= start < len(states):
        raise UserError(f"{where} has states of shape {list(states.shape)} and start_index {start}; expected [t s]")
    if frames.ndim != 4 or frames.dtype != np.uint8 or frames.shape[3] != 3:
        raise UserError(f"{where} has pictures {frames.dtype} of shape {list(frames.shape)}; expected uint8 [t h w 3]")
    return GoalEpisode(states, frames, start % len(states))
