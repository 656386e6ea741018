"""Trajectory files of ManiSkill: ``trajectory.h5`` with actions and states, ``trajectory.json`` that describes them.

Most downloads hold no pictures; ``ivideogpt.envs.record.maniskill_replay`` draws them in the simulator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ivideogpt.core.config import load_json
from ivideogpt.core.errors import UserError
from ivideogpt.data.convert import hdf5
from ivideogpt.data.convert.time_steps import numbers

if TYPE_CHECKING:
    import h5py

#: Kinds of objects in a state of the simulator.
STATE_KINDS = ("actors", "articulations")


@dataclass(frozen=True, kw_only=True)
class TrajectoryInfo:
    """One entry of the description.

    Attributes:
        episode_id: number of the group ``traj_<episode_id>``.
        seed: of its reset, or None.
        success: as recorded.
    """

    episode_id: int
    seed: int | None
    success: bool


@dataclass(frozen=True, kw_only=True)
class TrajectoryFile:
    """Description of the trajectories of a file.

    Attributes:
        path: of the HDF5 file.
        task: ManiSkill's id, such as "StackCube-v1".
        control_mode: of the recorded actions.
        trajectories: in the order of the description.
    """

    path: Path
    task: str
    control_mode: str
    trajectories: tuple[TrajectoryInfo, ...]


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Actions and states of one trajectory.

    Attributes:
        actions: float32 ``[t a]``.
        states: kind -> name -> float32 ``[t + 1 n]``, or None where the file has none.
    """

    actions: np.ndarray
    states: Mapping[str, Mapping[str, np.ndarray]] | None

    def state(self, step: int) -> dict[str, dict[str, np.ndarray]]:
        """Return the state before action ``step``; the last one is after the last action."""
        assert self.states is not None
        return {kind: {name: rows[step] for name, rows in parts.items()} for kind, parts in self.states.items()}


def read_trajectory_file(path: Path, metadata_path: Path | None = None) -> TrajectoryFile:
    """Read the description of a file.

    Args:
        path: of the HDF5 file.
        metadata_path: of the description; None: beside the file, with the ending .json.

    Raises:
        UserError: a file is missing, or says something else than ManiSkill writes.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; give the .h5 file of ManiSkill's demonstrations")
    description = path.with_suffix(".json") if metadata_path is None else metadata_path
    if not description.is_file():
        raise UserError(f"there is no file {description}, which describes {path.name}; give it with --metadata-path")
    tree = load_json(description)
    try:
        environment = tree["env_info"]
        options = environment.get("env_kwargs") or {}
        rows = tree["episodes"]
        trajectories = tuple(
            TrajectoryInfo(
                episode_id=int(row["episode_id"]),
                seed=_first_number(row.get("episode_seed", (row.get("reset_kwargs") or {}).get("seed"))),
                success=bool(np.any(row.get("success") or False)),
            )
            for row in rows
        )
        task = environment["env_id"]
        control_mode = options.get("control_mode") or rows[0]["control_mode"]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(
            f"{description} is no description of ManiSkill's trajectories ({type(error).__name__}: {error}); expected "
            "env_info and episodes, as ManiSkill's recorder writes them"
        ) from error
    if not isinstance(task, str) or not isinstance(control_mode, str):
        raise UserError(f"{description} names the environment {task!r} and the control mode {control_mode!r}")
    return TrajectoryFile(path=path, task=task, control_mode=control_mode, trajectories=trajectories)


def read_trajectories(source: TrajectoryFile, chosen: tuple[TrajectoryInfo, ...]) -> Iterator[Trajectory]:
    """Yield trajectories of a file.

    Raises:
        UserError: the file is damaged, lacks one of them, or holds arrays that do not fit together.
    """
    with hdf5.open_hdf5(source.path) as file:
        for info in chosen:
            group = hdf5.group(file, f"traj_{info.episode_id}")
            name = f"traj_{info.episode_id} of {source.path}"
            actions = numbers(hdf5.array(group, "actions"), f"actions of {name}")
            states = _states(hdf5.group(group, "env_states"), len(actions), name) if "env_states" in group else None
            yield Trajectory(actions=actions, states=states)


def _states(group: h5py.Group, steps: int, name: str) -> dict[str, dict[str, np.ndarray]]:
    states: dict[str, dict[str, np.ndarray]] = {}
    for kind in STATE_KINDS:
        states[kind] = {}
        for part in map(str, hdf5.group(group, kind)) if kind in group else ():
            rows = numbers(hdf5.array(group, f"{kind}/{part}"), f"the states {kind}/{part} of {name}")
            if len(rows) != steps + 1:
                raise UserError(
                    f"{kind}/{part} of {name} has {len(rows)} states for {steps} actions; expected one more"
                )
            states[kind][part] = rows
    return states


def _first_number(seed: Any) -> int | None:
    """Return the seed of the first of several environments, or None."""
    if isinstance(seed, list):
        seed = seed[0] if seed else None
    return None if seed is None else int(seed)
