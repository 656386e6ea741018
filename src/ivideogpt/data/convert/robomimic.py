"""HDF5 files in the layout of robomimic: ``data/demo_0/{obs/<camera>, actions, rewards, dones, states}``.

Observation t, the action taken there, and the reward and the end that followed stand in row t: the time convention of
``Episode``. The action of the last row leads to a frame that was not recorded; where a file has ``next_obs``, the last
frame of that is the one, and is added. Else the last recorded transition takes over the end of the last row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert import hdf5
from ivideogpt.data.convert.source_episode import ActionField, Omission, SourceEpisode, omission
from ivideogpt.data.convert.source_files import (
    existing_folder,
    in_groups,
    name_list,
    natural_key,
    relative_name,
    visible_files,
)
from ivideogpt.data.convert.time_steps import frame_rows, leading_rows, one_column, plain_json
from ivideogpt.data.store.writer import ShardTask, ShardTasks

if TYPE_CHECKING:
    import h5py

EPISODES_A_SHARD = 64
# Split by the name of a mask (a list of episodes).
_SPLITS = {"train": "train", "valid": "val", "test": "test"}
_MASK_ARRAYS = ("seg", "mask")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """One episode of a file.

    Attributes:
        path: of the HDF5 file.
        group: name of its group in ``data``, such as "demo_12".
        key: unique name.
        split: "train", "val" or "test".
    """

    path: Path
    group: str
    key: str
    split: str


def tasks(
    source: Path, *, camera: str | None = None, cameras: Sequence[str] | None = None, val_every: int | None = None
) -> ShardTasks:
    """Return one task a shard, splits one after the other, episodes in natural order.

    Args:
        source: an HDF5 file, or a folder of such files.
        camera: the main camera; by default the first observation of RGB pictures.
        cameras: the cameras to keep; by default all.
        val_every: every so many episodes, from the first on, one goes to the split "val"; None: as the masks ``train``,
            ``valid`` and ``test`` of a file say, else "train".

    Raises:
        UserError: there is no such file, it holds no episodes, or its episodes have no such camera.
    """
    if val_every is not None and val_every < 2:
        raise UserError(f"val_every is {val_every}; expected at least 2")
    folder, files, omissions = _files(source)
    demos: list[Demo] = []
    chosen: dict[Path, dict[str, str]] = {}
    for path in files:
        prefix = "" if len(files) == 1 else f"{relative_name(folder, path.with_suffix(''))}/"
        with hdf5.open_hdf5(path) as file:
            splits = _splits(file)
            groups = sorted(hdf5.group(file, "data"), key=natural_key)
            if not groups:
                raise UserError(f"{path} holds no episodes in its group data; expected demo_0 and so on")
            available = _available_cameras(file, groups[0])
            chosen[path] = _chosen_cameras(path, available, camera, cameras)
            names = [name for name in available if name not in chosen[path]]
            omissions += omission("cameras", "not chosen", names)
        for group in groups:
            split = splits.get(group, "train")
            if val_every is not None:
                split = "train" if len(demos) % val_every else "val"
            demos.append(Demo(path=path, group=group, key=f"{prefix}{group}", split=split))
    shards = []
    for split in sorted({demo.split for demo in demos}, key=list(_SPLITS.values()).index):
        for index, part in enumerate(in_groups([demo for demo in demos if demo.split == split], EPISODES_A_SHARD)):
            part_cameras = {path: names for path, names in chosen.items() if any(demo.path == path for demo in part)}
            read = partial(read_robomimic_demos, folder=folder, demos=tuple(part), cameras=part_cameras)
            shards.append(ShardTask(name=f"{split}-{index:05d}", read=read))
    return ShardTasks(shards, omissions)


def read_robomimic_demos(
    *, folder: Path, demos: Sequence[Demo], cameras: Mapping[Path, Mapping[str, str]]
) -> Iterator[SourceEpisode]:
    """Yield the episodes ``demos``, of each file the ``cameras`` (name in the store: name in the file).

    Raises:
        UserError: a file is damaged, lacks a key, or holds arrays that do not fit together.
    """
    for path, group in groupby(demos, key=lambda demo: demo.path):
        with hdf5.open_hdf5(path) as file:
            for demo in group:
                yield robomimic_episode(
                    file,
                    demo.group,
                    key=demo.key,
                    split=demo.split,
                    cameras=cameras[path],
                    source=relative_name(folder, path),
                    keep_other_cameras=False,
                    extend=True,
                )


def hdf5_files(folder: Path) -> tuple[list[Path], list[Omission]]:
    """Return the HDF5 files below a folder, and the files that are none.

    Raises:
        UserError: there are no HDF5 files.
    """
    files = visible_files(folder)
    paths = [path for path in files if path.suffix.lower() in hdf5.SUFFIXES]
    if not paths:
        raise UserError(
            f"{folder} holds no .hdf5 files; it holds {name_list(sorted(p.name for p in folder.iterdir()))}"
        )
    others = (relative_name(folder, path) for path in files if path.suffix.lower() not in hdf5.SUFFIXES)
    return paths, list(omission("files", "they are no HDF5 files", others))


def masked_demos(file: h5py.File, mask: str) -> list[str]:
    """Return the names in the list ``mask/<mask>`` of a file.

    Raises:
        UserError: there is no such list, or it holds something else.
    """
    entries = hdf5.array(file, f"mask/{mask}").ravel().tolist()
    names = [entry.decode("utf-8", "replace") if isinstance(entry, bytes) else entry for entry in entries]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{file.filename}: mask/{mask} holds {names[:1]}; expected names such as demo_0")
    return names


def robomimic_episode(
    file: h5py.File,
    demo: str,
    *,
    key: str,
    split: str,
    cameras: Mapping[str, str],
    source: str,
    keep_other_cameras: bool = True,
    extend: bool = False,
) -> SourceEpisode:
    """Read one episode.

    Args:
        file: open for reading.
        demo: name of its group in ``data``.
        key: of the episode.
        split: of the episode.
        cameras: name in the store -> name in ``obs``, the main one first.
        source: of the file, for ``meta``.
        keep_other_cameras: store further RGB pictures by their own names.
        extend: add the last frame of ``next_obs``, which the last action led to.

    Raises:
        UserError: a key is missing, or arrays do not fit together.
    """
    name = f"{demo} of {file.filename}"
    group = hdf5.group(file, f"data/{demo}")
    observations = hdf5.group(group, "obs")
    main = next(iter(cameras.values()))
    if not hdf5.is_frames(hdf5.dataset(observations, main)):
        shape = list(hdf5.dataset(observations, main).shape)
        raise UserError(f"{main} of {name} has shape {shape}; expected uint8 [t h w 3]")
    recorded = len(hdf5.dataset(observations, main))
    following = _following(group, [*cameras.values()]) if extend and recorded else None
    length = recorded + (following is not None)
    frames, arrays, left_out = _read_observations(
        observations, following, cameras, recorded, name, keep_other_cameras=keep_other_cameras
    )
    actions = leading_rows(hdf5.array(group, "actions"), length, f"actions of {name}")
    rewards, ends = (_transitions(group, column, length, name) for column in ("rewards", "dones"))
    states = hdf5.array(group, "states") if "states" in group else None
    omissions = list(omission("observations", "they are neither RGB pictures nor rows of numbers", left_out))
    meta: dict[str, object] = {"source": source, "demo": demo, "left_out": left_out}
    if len(hdf5.dataset(group, "actions")) == length:
        omissions.append(Omission(items="last actions", reason="they lead to no recorded frame"))
    if following is None:
        rewards, ends, moved = _moved_end(group, rewards, ends, length)
        omissions += moved
    if states is not None and following is not None and len(states) == recorded:
        omissions.append(Omission(items="simulator states", reason="there is none for the last frame"))
        states = None
    return SourceEpisode(
        key=key,
        split=split,
        camera=next(iter(cameras)),
        cameras=frames,
        actions=actions,
        action_fields=(ActionField(name="actions", size=actions.shape[1]),),
        rewards=rewards,
        terminated=None if ends is None else ends.astype(bool),
        state=None if states is None else frame_rows(states, length, f"states of {name}"),
        arrays=arrays,
        text=_instruction(file, group),
        meta=meta,
        omissions=tuple(omissions),
    )


def _read_observations(
    observations: h5py.Group,
    following: h5py.Group | None,
    cameras: Mapping[str, str],
    recorded: int,
    name: str,
    *,
    keep_other_cameras: bool,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
    """Read the arrays of an episode.

    Args:
        observations: the group ``obs``.
        following: the group with the frame after the last one, or None.
        cameras: name in the store -> name in ``obs``.
        recorded: rows that each array must have.
        name: of the episode, for errors.
        keep_other_cameras: read further RGB pictures by their own names.

    Returns:
        Frames of each camera, other arrays by name, and the names of those that are left out.
    """
    frames: dict[str, np.ndarray] = {}
    arrays: dict[str, np.ndarray] = {}
    left_out: list[str] = []
    stored_names = {stored: own for own, stored in cameras.items()}
    for observation in map(str, observations):
        values = hdf5.dataset(observations, observation)
        is_mask = any(mark in observation for mark in _MASK_ARRAYS)
        is_camera = hdf5.is_frames(values) and not is_mask
        if len(values.shape) > 2 and not is_mask and not is_camera:  # depth
            left_out.append(observation)
            continue
        if is_camera and observation not in stored_names and not keep_other_cameras:
            continue
        if values.shape[:1] != (recorded,):
            raise UserError(f"obs/{observation} of {name} has shape {list(values.shape)}; expected {recorded} rows")
        content = hdf5.array(observations, observation)
        if is_camera and following is not None:
            last = hdf5.array(following, observation)[-1:]
            frames[stored_names[observation]] = np.concatenate([content, last])
        elif is_camera:
            frames[stored_names.get(observation, observation)] = content
        elif following is None:
            arrays[observation] = content
        elif observation in following:
            arrays[observation] = np.concatenate([content, hdf5.array(following, observation)[-1:]])
        else:
            left_out.append(observation)
    return frames, arrays, left_out


def _files(source: Path) -> tuple[Path, list[Path], list[Omission]]:
    if Path(source).is_file():
        path = Path(source).absolute()
        return path.parent, [path], []
    folder = existing_folder(source, "HDF5 files in the layout of robomimic").absolute()
    return (folder, *hdf5_files(folder))


def _splits(file: h5py.File) -> dict[str, str]:
    splits: dict[str, str] = {}
    for mask, split in _SPLITS.items():
        if "mask" in file and mask in hdf5.group(file, "mask"):
            for demo in masked_demos(file, mask):
                if splits.setdefault(demo, split) != split:
                    raise UserError(f"{file.filename} lists {demo} in two masks, {splits[demo]} and {split}")
    return splits


def _available_cameras(file: h5py.File, demo: str) -> list[str]:
    observations = hdf5.group(file, f"data/{demo}/obs")
    names = (name for name in map(str, observations) if not any(mark in name for mark in _MASK_ARRAYS))
    return sorted((name for name in names if hdf5.is_frames(hdf5.dataset(observations, name))), key=natural_key)


def _chosen_cameras(
    path: Path, available: Sequence[str], camera: str | None, cameras: Sequence[str] | None
) -> dict[str, str]:
    wanted = list(available if cameras is None else (cameras,) if isinstance(cameras, str) else cameras)
    main = camera or (wanted[0] if wanted else None)
    if main is None:
        raise UserError(f"{path} has no camera; expected observations of pictures, uint8 [t h w 3], in data/demo_0/obs")
    for name in (main, *wanted):
        if name not in available or name not in wanted:
            raise UserError(f"{path} has no camera {name!r}; it has {name_list(available)}")
    return {name: name for name in dict.fromkeys((main, *wanted))}


def _following(group: h5py.Group, cameras: Sequence[str]) -> h5py.Group | None:
    """Return ``next_obs`` where it has the pictures of all cameras, row by row."""
    if "next_obs" not in group:
        return None
    following, observations = hdf5.group(group, "next_obs"), hdf5.group(group, "obs")
    shapes = [
        (hdf5.dataset(following, name).shape, hdf5.dataset(observations, name).shape)
        for name in cameras
        if name in following
    ]
    return following if len(shapes) == len(cameras) and all(a == b for a, b in shapes) else None


def _transitions(group: h5py.Group, column: str, length: int, name: str) -> np.ndarray | None:
    if column not in group:
        return None
    label = f"{column} of {name}"
    return one_column(leading_rows(hdf5.array(group, column), length, label), label)


def _moved_end(
    group: h5py.Group, rewards: np.ndarray | None, ends: np.ndarray | None, length: int
) -> tuple[np.ndarray | None, np.ndarray | None, list[Omission]]:
    """Let the last recorded transition take over the end of a row that leads to no recorded frame."""
    omissions = []
    if length > 1 and not (ends is not None and ends[:-1].any()):
        for name, values in (("rewards", rewards), ("dones", ends)):
            last = hdf5.array(group, name)[length - 1 :].ravel() if values is not None else np.zeros(0)
            if values is not None and last.size == 1 and np.isfinite(last[0]) and last[0] and last[0] != values[-2]:
                values[-2] = last[0]
                items = "last rewards" if name == "rewards" else "ends of episodes"
                omissions.append(Omission(items=items, reason="moved to the last recorded transition"))
    return rewards, ends, omissions


def _instruction(file: h5py.File, group: h5py.Group) -> str:
    """Return the instruction that LIBERO and similar datasets keep in an attribute, or ""."""
    for item in (group, hdf5.group(file, "data")):
        for name in ("problem_info", "ep_meta"):
            try:
                details = json.loads(plain_json(item.attrs.get(name, "{}")))
            except (TypeError, ValueError):
                continue
            text = details.get("language_instruction", details.get("lang", "")) if isinstance(details, dict) else ""
            if isinstance(text, list):
                text = "".join(map(str, text))
            if isinstance(text, str) and text:
                return text
    return ""
