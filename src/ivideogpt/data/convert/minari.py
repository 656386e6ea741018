"""Minari datasets: ``data/main_data.hdf5`` with a group an episode, whose observations are or contain pictures.

An episode holds one observation more than actions: row t of actions, rewards and terminations leads from observation t
to t + 1, as in ``Episode``. Pictures are arrays or, since Minari 0.5.4, JPEG files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert import hdf5
from ivideogpt.data.convert.frame_files import image_frames
from ivideogpt.data.convert.source_episode import ActionField, Frames, SourceEpisode, omission
from ivideogpt.data.convert.source_files import existing_folder, in_groups, name_list, natural_key, relative_name
from ivideogpt.data.convert.tables import read_json
from ivideogpt.data.convert.time_steps import leading_rows, one_column, plain_json
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, ShardTasks

if TYPE_CHECKING:
    import h5py

EPISODES_A_SHARD = 64
_MAIN_FILE, _METADATA = "main_data.hdf5", "metadata.json"
_OBSERVATION = "observations"
_JPEG = b"\xff\xd8\xff"


def tasks(
    source: Path, *, camera: str | None = None, cameras: Sequence[str] | None = None, val_every: int | None = None
) -> ShardTasks:
    """Return one task a shard, episodes by their number.

    Args:
        source: the folder of one dataset (``name-v0``), or its folder ``data``.
        camera: the main camera; by default the first observation of pictures. An observation that is one picture is
            called "image".
        cameras: the cameras to keep; by default all.
        val_every: every so many episodes, from the first on, one goes to the split "val"; None: all are "train".

    Raises:
        UserError: there is no such dataset, it is not kept as HDF5, or its observations have no such camera.
    """
    if val_every is not None and val_every < 2:
        raise UserError(f"val_every is {val_every}; expected at least 2")
    path = _main_file(source)
    with hdf5.open_hdf5(path) as file:
        episodes = sorted((name for name in map(str, file) if name.startswith("episode_")), key=natural_key)
        if not episodes:
            raise UserError(f"{path} holds no episodes; it holds {name_list(file)}")
        keys = _observations(file, episodes[0])
        available = [name for name, key in keys.items() if _is_camera(file, key)]
        strangers = [name for name in map(str, file) if not name.startswith("episode_")]
    kept = list(available if cameras is None else (cameras,) if isinstance(cameras, str) else cameras)
    main = camera or (kept[0] if kept else None)
    if main is None:
        raise UserError(f"{path} has no camera; expected observations of pictures, uint8 [t h w 3]")
    for name in (main, *kept):
        if name not in available or name not in kept:
            raise UserError(f"{path} has no camera {name!r}; it has {name_list(available)}")
    omissions = [
        *omission("cameras", "not chosen", (name for name in available if name not in kept)),
        *omission("groups", "they are no episodes", strangers),
    ]
    ordered = tuple(dict.fromkeys((main, *kept)))
    splits = {name: "train" if val_every is None or index % val_every else "val" for index, name in enumerate(episodes)}
    shards = []
    for split in ("train", "val"):
        names = [name for name in episodes if splits[name] == split]
        for index, group in enumerate(in_groups(names, EPISODES_A_SHARD)):
            read = partial(read_episodes, path=path, names=tuple(group), split=split, cameras=ordered)
            shards.append(ShardTask(name=f"{split}-{index:05d}", read=read))
    return ShardTasks(shards, omissions)


def facts(source: Path) -> StoreFacts:
    """Return the dataset's id, and the notes in its metadata."""
    path = _main_file(source)
    metadata = read_json(path.parent / _METADATA) if (path.parent / _METADATA).is_file() else {}
    names = ("algorithm_name", "author", "minari_version")
    notes = {name: plain_json(metadata[name]) for name in names if name in metadata}
    name = metadata.get("dataset_id")
    url = metadata.get("code_permalink")
    return StoreFacts(
        name=name if isinstance(name, str) and name else path.parent.parent.name,
        url=url if isinstance(url, str) else "",
        notes=notes,
    )


def read_episodes(*, path: Path, names: Sequence[str], split: str, cameras: Sequence[str]) -> Iterator[SourceEpisode]:
    """Yield the episodes ``names`` of a file.

    Raises:
        UserError: the file is damaged, lacks a key, or holds arrays that do not fit together.
    """
    with hdf5.open_hdf5(path) as file:
        for name in names:
            yield _episode(file, name, split, cameras)


def _episode(file: h5py.File, name: str, split: str, cameras: Sequence[str]) -> SourceEpisode:
    where = f"{name} of {file.filename}"
    keys = _observations(file, name)
    frames: dict[str, Frames] = {}
    for camera in cameras:
        if camera not in keys or not _is_camera(file, keys[camera]):
            raise UserError(f"{where} has no camera {camera!r}; it has {name_list(keys)}")
        frames[camera] = _frames(file, keys[camera], f"{camera} of {where}")
    length = len(frames[cameras[0]])
    arrays, left_out = {}, []
    for observation, key in keys.items():
        stored = hdf5.dataset(file, key)
        if observation in frames or _is_camera(file, key):
            continue
        if stored.dtype.kind in "iufb" and stored.shape[:1] == (length,):
            arrays[observation] = hdf5.array(file, key)
        else:
            left_out.append(observation)
    group = hdf5.group(file, name)
    actions, rewards, ends = (
        leading_rows(hdf5.array(group, column), length, f"{column} of {where}")
        for column in ("actions", "rewards", "terminations")
    )
    left_out += [key for key in ("infos", "truncations") if key in group]
    return SourceEpisode(
        key=name,
        split=split,
        camera=cameras[0],
        cameras=frames,
        actions=actions,
        action_fields=(ActionField(name="actions", size=actions.shape[1]),),
        rewards=one_column(rewards, f"rewards of {where}"),
        terminated=one_column(ends, f"terminations of {where}").astype(bool),
        arrays=arrays,
        text=_mission(group),
        meta={"source": relative_name(Path(file.filename).parent, Path(file.filename)), "episode": name},
        omissions=omission("fields of episodes", "they are no part of an episode of a store", left_out),
    )


def _main_file(source: Path) -> Path:
    folder = existing_folder(source, "a Minari dataset")
    for place in (folder / "data", folder):
        if (place / _MAIN_FILE).is_file():
            return (place / _MAIN_FILE).absolute()
        if (place / _METADATA).is_file() and read_json(place / _METADATA).get("data_format", "hdf5") != "hdf5":
            raise UserError(
                f"{place} is kept as {read_json(place / _METADATA)['data_format']!r}; only 'hdf5' is read: "
                "write the dataset again with data_format='hdf5'"
            )
    datasets = sorted(path.parent.parent for path in folder.rglob(f"data/{_MAIN_FILE}"))
    advice = f"give one of {name_list(datasets)}" if datasets else "download the dataset first"
    raise UserError(f"{folder} has no data/{_MAIN_FILE}; {advice}")


def _observations(file: h5py.File, episode: str) -> dict[str, str]:
    """Return the key of each observation in the file by its name; a single one is called "image"."""
    item: Any = hdf5.group(file, episode).get(_OBSERVATION)
    if not hasattr(item, "keys"):
        return {"image": f"{episode}/{_OBSERVATION}"}
    names: list[str] = []
    hdf5.group(file, f"{episode}/{_OBSERVATION}").visititems(
        lambda name, entry: names.append(name) if hasattr(entry, "shape") else None
    )
    return {name: f"{episode}/{_OBSERVATION}/{name}" for name in sorted(names, key=natural_key)}


def _is_camera(file: h5py.File, key: str) -> bool:
    stored = hdf5.dataset(file, key)
    return hdf5.is_frames(stored) or _is_jpeg(stored)


def _is_jpeg(stored: h5py.Dataset) -> bool:
    """Return True for rows of bytes that begin as JPEG files do."""
    is_variable = stored.dtype.kind == "O" and stored.dtype.metadata is not None and len(stored.shape) == 1
    if not len(stored) or not (is_variable or (stored.dtype == np.uint8 and len(stored.shape) == 2)):
        return False
    first = stored[0]
    return isinstance(first, np.ndarray) and first.dtype == np.uint8 and first[:3].tobytes() == _JPEG


def _frames(file: h5py.File, key: str, name: str) -> Frames:
    stored = hdf5.array(file, key)
    if stored.ndim == 4:
        return stored
    return image_frames(((f"frame {index} of {name}", bytes(row)) for index, row in enumerate(stored)), name)


def _mission(group: h5py.Group) -> str:
    """Return the instruction of environments that have a text observation "mission", or ""."""
    observations: Any = group.get(_OBSERVATION)
    mission: Any = observations.get("mission") if hasattr(observations, "keys") else None
    if not hasattr(mission, "shape") or mission.dtype.kind != "O" or len(mission.shape) != 1 or not len(mission):
        return ""
    first = mission[0]
    return first.decode("utf-8", "replace") if isinstance(first, bytes) else ""
