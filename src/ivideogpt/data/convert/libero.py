"""Demonstrations of LIBERO: one HDF5 file a task, ``data/demo_0/{obs/agentview_rgb, actions, states, ...}``.

The program that wrote the official files appended to each row the picture that its action led to: ``obs[t]`` is *after*
``actions[t]``, while ``states[t]`` is before it. So frame t here is ``obs[t]``, and row t holds ``actions[t + 1]``, the
action taken there. Copies that were drawn anew, without idle steps, have ``obs[t]`` before ``actions[t]``.
``measured_alignment`` tells from the joint angles, or else from the motion in the pictures, which it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert import hdf5
from ivideogpt.data.convert.robomimic import hdf5_files, robomimic_episode
from ivideogpt.data.convert.source_episode import ActionField, Omission, SourceEpisode, omission
from ivideogpt.data.convert.source_files import existing_folder, in_groups, name_list, natural_key
from ivideogpt.data.convert.time_steps import arriving_rows, one_column
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, ShardTasks

if TYPE_CHECKING:
    import h5py

Alignment = Literal["after", "before"]
ALIGNMENTS: tuple[Alignment, ...] = ("after", "before")
EPISODES_A_SHARD = 25
FRAMES_A_SECOND = 20.0
FACTS = StoreFacts(name="libero", url="https://github.com/Lifelong-Robot-Learning/LIBERO", licence="CC BY 4.0")
_CAMERAS = ("agentview_rgb", "eye_in_hand_rgb")
_FIELDS = (("position", 3), ("rotation", 3), ("gripper", 1))
# Joint angles of the robot in a state of the simulator: its time comes first.
_JOINTS = slice(1, 8)
# Between a joint angle of an observation and that of the state it belongs to, in rad.
_LARGEST_JOINT_ERROR = 0.02


def tasks(
    source: Path,
    *,
    alignment: str = "after",
    rotate_180: bool = False,
    image_size: int | None = None,
    max_demos: int | None = None,
    camera: str | None = None,
    val_every: int | None = None,
) -> ShardTasks:
    """Return one task a shard, files one after the other, episodes in natural order.

    Args:
        source: a file, or the folder of a suite.
        alignment: "after" for the official files, "before" for copies that were drawn anew.
        rotate_180: turn the pictures, which the official files hold upside down, by 180 degrees.
        image_size: side that pictures are resized to, by averaging; None: as they are.
        max_demos: episodes of each file at most; None: all.
        camera: the main camera; by default agentview_rgb, else the first observation of pictures.
        val_every: every so many episodes, from the first on, one goes to the split "val"; None: all are for training.

    Raises:
        UserError: there is no such file, it holds no episodes, an option is out of range, or the joint angles of a file
            contradict the alignment.
    """
    if alignment not in ALIGNMENTS:
        raise UserError(f"alignment is {alignment!r}; expected after (official files) or before (drawn anew)")
    for name, value, least in (("image_size", image_size, 8), ("max_demos", max_demos, 1), ("val_every", val_every, 2)):
        if value is not None and value < least:
            raise UserError(f"{name} is {value}; expected at least {least}")
    if Path(source).is_file():
        suite, files, omissions = Path(source).absolute().parent.name, [Path(source).absolute()], list[Omission]()
    else:
        folder = existing_folder(source, "HDF5 files of LIBERO").absolute()
        suite = folder.name
        files, omissions = hdf5_files(folder)
    shards, count = [], 0
    for path in files:
        with hdf5.open_hdf5(path) as file:
            groups = sorted(hdf5.group(file, "data"), key=natural_key)[:max_demos]
            if not groups:
                raise UserError(f"{path} holds no episodes in its group data; expected demo_0 and so on")
            omissions += _check_alignment(path, file, groups[0], alignment)
            cameras = _cameras(path, file, groups[0], camera)
        for index, part in enumerate(in_groups(groups, EPISODES_A_SHARD)):
            splits = ["train" if val_every is None or (count + i) % val_every else "val" for i in range(len(part))]
            count += len(part)
            read = partial(
                read_libero,
                path=path,
                groups=tuple(zip(part, splits, strict=True)),
                suite=suite,
                cameras=cameras,
                alignment=alignment,
                rotate_180=rotate_180,
                image_size=image_size,
            )
            shards.append(ShardTask(name=f"{_task_of(path)[:150]}-{index:05d}", read=read))
    return ShardTasks(shards, omissions)


def read_libero(
    *,
    path: Path,
    groups: Sequence[tuple[str, str]],
    suite: str,
    cameras: Sequence[str],
    alignment: str,
    rotate_180: bool,
    image_size: int | None,
) -> Iterator[SourceEpisode]:
    """Yield episodes of a file, by name of the group and split.

    Raises:
        UserError: the file is damaged, lacks a key, or holds arrays that do not fit together.
    """
    with hdf5.open_hdf5(path) as file:
        for group, split in groups:
            episode = robomimic_episode(
                file,
                group,
                key=f"{_task_of(path)}/{group}",
                split=split,
                cameras={name: name for name in cameras},
                source=path.name,
                keep_other_cameras=False,
            )
            episode = _aligned(episode, hdf5.group(file, f"data/{group}"), alignment)
            pictures = {name: _turned(episode.cameras[name], rotate_180, image_size) for name in cameras}
            yield replace(
                episode,
                cameras=pictures,
                fps=FRAMES_A_SECOND,
                text=episode.text or _task_of(path).replace("_", " "),
                meta=episode.meta
                | {
                    "suite": suite,
                    "task": _task_of(path),
                    "success": bool(episode.rewards is not None and episode.rewards.any()),
                    "rotated": rotate_180,
                },
            )


def measured_alignment(group: h5py.Group) -> tuple[Alignment | None, bool]:
    """Measure whether the pictures of an episode are before or after the actions of their rows.

    Joint angles of the observations are compared with those of the simulator's states, which are always before their
    actions. Where a file has not both, the motion between frames t and t + 1 is correlated with the sizes of the
    actions t (before) and t + 1 (after).

    Returns:
        The alignment, None where the episode does not tell, and whether it is that of the joint angles.
    """
    observations = hdf5.group(group, "obs")
    if "states" in group and "joint_states" in observations:
        joints, states = hdf5.array(observations, "joint_states"), hdf5.array(group, "states")
        if joints.ndim == states.ndim == 2 and joints.shape[1] == 7 and states.shape[1] > 8 and len(joints) > 2:
            length = min(len(joints), len(states)) - 1
            before = float(np.abs(joints[:length] - states[:length, _JOINTS]).mean())
            after = float(np.abs(joints[:length] - states[1 : length + 1, _JOINTS]).mean())
            if min(before, after) < _LARGEST_JOINT_ERROR and before != after:
                return ("after" if after < before else "before"), True
    cameras = sorted(name for name in map(str, observations) if hdf5.is_frames(hdf5.dataset(observations, name)))
    if not cameras:
        return None, False
    frames = hdf5.array(observations, cameras[0])[..., 1].astype(np.float32)
    sizes = np.linalg.norm(hdf5.array(group, "actions")[:, :3], axis=1)
    motion = np.abs(np.diff(frames, axis=0)).mean((1, 2))
    return _optical_alignment(motion, sizes[: len(frames)]), False


def _optical_alignment(motion: np.ndarray, sizes: np.ndarray) -> Alignment | None:
    """Compare motion ``[t - 1]`` between frames with sizes ``[t]`` of actions; None without a clear difference."""
    if len(motion) < 10 or len(sizes) <= len(motion) or motion.std() == 0 or sizes.std() == 0:
        return None
    before, after = (float(np.corrcoef(motion, rows)[0, 1]) for rows in (sizes[:-1], sizes[1:]))
    if max(before, after) < 0.5 or abs(before - after) < 0.1:
        return None
    return "after" if after > before else "before"


def _check_alignment(path: Path, file: h5py.File, demo: str, alignment: str) -> tuple[Omission, ...]:
    """Check the alignment that was asked for; motion in pictures is only a hint, which is reported."""
    measured, is_certain = measured_alignment(hdf5.group(file, f"data/{demo}"))
    if measured in (None, alignment):
        return ()
    if is_certain:
        raise UserError(
            f"{path}: the pictures of {demo} are {measured} the actions of their rows, not {alignment}; "
            f"give --alignment {measured}"
        )
    return omission("files to check", f"their pictures move as with --alignment {measured}", [path.name])


def _aligned(episode: SourceEpisode, group: h5py.Group, alignment: str) -> SourceEpisode:
    """Return the episode with the action of each row taken at its frame, the hand's state and the start state."""
    length, name = len(episode), f"{group.name} of {group.file.filename}"
    arrays, meta, state = dict(episode.arrays), dict(episode.meta), None
    if {"ee_states", "gripper_states"} <= arrays.keys():
        state = np.concatenate([arrays.pop("ee_states"), arrays.pop("gripper_states")], 1).astype(np.float32)
    first = int(alignment == "after")
    if "states" in group and len(states := hdf5.array(group, "states")) > first:
        meta["initial_state"] = states[first].tolist()
    if alignment == "before":
        return replace(episode, state=state, arrays=arrays, meta=meta, action_fields=_fields(episode.actions))

    rows = {
        column: arriving_rows(hdf5.array(group, column), length, f"{column} of {name}")
        for column in ("actions", "rewards", "dones")
        if column in group
    }
    single = {column: one_column(rows[column], f"{column} of {name}") for column in ("rewards", "dones") & rows.keys()}
    return replace(
        episode,
        actions=rows["actions"],
        action_fields=_fields(rows["actions"]),
        rewards=single.get("rewards"),
        terminated=single["dones"].astype(bool) if "dones" in single else None,
        state=state,
        arrays=arrays,
        meta=meta,
        omissions=tuple(entry for entry in episode.omissions if entry.items not in _MOVED),
    )


# What the reader of robomimic moves or leaves out, because it takes a picture to be before its action.
_MOVED = ("last actions", "last rewards", "ends of episodes")


def _fields(actions: np.ndarray | None) -> tuple[ActionField, ...]:
    width = 0 if actions is None else actions.shape[1]
    if width == sum(size for _, size in _FIELDS):
        return tuple(ActionField(name=name, size=size) for name, size in _FIELDS)
    return (ActionField(name="actions", size=width),) if width else ()


def _turned(frames: object, rotate_180: bool, image_size: int | None) -> np.ndarray:
    assert isinstance(frames, np.ndarray)
    pictures = frames[:, ::-1, ::-1] if rotate_180 else frames
    if image_size is not None and pictures.shape[1:3] != (image_size, image_size):
        size = (image_size, image_size)
        pictures = np.stack(
            [
                np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BOX))
                for picture in pictures
            ]
        )
    return np.ascontiguousarray(pictures)


def _cameras(path: Path, file: h5py.File, demo: str, camera: str | None) -> list[str]:
    observations = hdf5.group(file, f"data/{demo}/obs")
    available = sorted(name for name in map(str, observations) if hdf5.is_frames(hdf5.dataset(observations, name)))
    main = camera or next((name for name in _CAMERAS if name in available), available[0] if available else "")
    if main not in available:
        raise UserError(f"{path} has no camera {main!r}; it has {name_list(available)}")
    return [main, *(name for name in available if name != main)]


def _task_of(path: Path) -> str:
    return path.stem.removesuffix("_demo")
