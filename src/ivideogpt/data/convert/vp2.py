"""The VP2 benchmark's video data: robodesk and robosuite, in the HDF5 layout of robomimic.

Source: thuml/iVideoGPT preprocess_vp2.py: cameras, names and splits are the same. It keeps one camera and the actions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert import hdf5
from ivideogpt.data.convert.source_episode import ActionField, SourceEpisode
from ivideogpt.data.convert.source_files import existing_folder, in_groups, name_list, relative_name
from ivideogpt.data.convert.time_steps import frame_rows, leading_rows, one_column
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask

if TYPE_CHECKING:
    import h5py

CAMERAS = {"robodesk": "camera_image", "robosuite": "agentview_shift_2_image"}
FACTS = {name: StoreFacts(name=f"vp2_{name}") for name in CAMERAS}  # the catalogue has the rest
EPISODES_A_SHARD = 256
# Official names of the two splits, and ours.
_SPLITS = {"train": ("train", "train"), "valid": ("validation", "val")}
_NOISE = {"noise_0.1": "_noise1", "noise_0.2": "_noise2"}
_MASKS = ("seg", "mask")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Where one episode lies.

    Attributes:
        path: of the HDF5 file.
        group: name of its group in ``data``, such as "demo_12".
        key: official file name without its ending.
        split: ours.
    """

    path: Path
    group: str
    key: str
    split: str


def tasks(source: Path, *, benchmark: str) -> list[ShardTask]:
    """One task a shard, train before val, each split in the order of the official file names.

    Args:
        source: a folder of ``.hdf5`` files, for robodesk usually with a folder for each task.
        benchmark: "robodesk" or "robosuite".

    Raises:
        UserError: no such benchmark or folder, no HDF5 file in it, a file without ``mask/train`` and ``mask/valid``,
            for robodesk one whose path does not say its noise, or two episodes of one name.
    """
    if benchmark not in CAMERAS:
        raise UserError(f"benchmark is {benchmark!r}; expected {' or '.join(CAMERAS)}")
    folder = existing_folder(source, f"the .hdf5 files of VP2 {benchmark}")
    files = sorted(path for path in folder.rglob("*") if path.suffix in hdf5.SUFFIXES and path.name[0] != ".")
    if not files:
        raise UserError(
            f"{folder} holds no .hdf5 files; it holds {name_list(sorted(p.name for p in folder.iterdir()))}"
        )
    demos: dict[tuple[str, str], Demo] = {}
    for path in files:
        for demo in _demos(folder, path, benchmark):
            twin = demos.setdefault((demo.split, demo.key), demo)
            if twin is not demo:
                raise UserError(f"{path} and {twin.path} both hold {demo.key}; put them into folders of their own")
    found = []
    for split in ("train", "val"):
        ordered = sorted((demo for demo in demos.values() if demo.split == split), key=lambda demo: f"{demo.key}.npz")
        for index, group in enumerate(in_groups(ordered, EPISODES_A_SHARD)):
            read = partial(read_demos, folder=folder, demos=tuple(group), benchmark=benchmark)
            found.append(ShardTask(name=f"{split}-{index:05d}", read=read))
    return found


def read_demos(*, folder: Path, demos: Sequence[Demo], benchmark: str) -> Iterator[SourceEpisode]:
    """The episodes ``demos``.

    Raises:
        UserError: a file is damaged, lacks a key, or holds arrays that do not fit together.
    """
    for path, group in groupby(demos, key=lambda demo: demo.path):
        with hdf5.open_hdf5(path) as file:
            for demo in group:
                yield _episode(file, demo, relative_name(folder, path), CAMERAS[benchmark])


def _demos(folder: Path, path: Path, benchmark: str) -> list[Demo]:
    name = relative_name(folder, path)
    noise = ""
    if benchmark == "robodesk":
        said = [suffix for said, suffix in _NOISE.items() if said in name]
        if not said:
            raise UserError(f"{path} does not say its noise; expected noise_0.1 or noise_0.2 in its path")
        noise = said[0]
    demos = []
    with hdf5.open_hdf5(path) as file:
        for mask, (official, split) in _SPLITS.items():
            place = path.parent.relative_to(folder) / f"{official}{noise}"
            for entry in hdf5.array(file, f"mask/{mask}"):
                group = entry.decode() if isinstance(entry, bytes) else str(entry)
                key = f"{place.as_posix()}/{official}_eps_{group[:5]}{group[5:].zfill(5)}"
                demos.append(Demo(path=path, group=group, key=key, split=split))
    return demos


def _episode(file: h5py.File, demo: Demo, source: str, camera: str) -> SourceEpisode:
    name = f"{demo.group} of {demo.path}"
    group = hdf5.group(file, f"data/{demo.group}")
    observations = hdf5.group(group, "obs")
    frames = hdf5.array(observations, camera)
    if not _is_frames(frames) or not len(frames):
        raise UserError(f"{camera} of {name} has shape {list(frames.shape)}; expected uint8 [t h w 3]")
    length = len(frames)
    cameras, arrays, left_out = {"image": frames}, {}, []
    for key in map(str, observations.keys()):
        if key == camera:
            continue
        values = hdf5.dataset(observations, key)
        is_mask = any(mark in key for mark in _MASKS)
        if len(values.shape) > 2 and not is_mask and not _is_frames(values):
            left_out.append(key)  # depth
            continue
        if values.shape[:1] != (length,):
            raise UserError(f"obs/{key} of {name} has shape {list(values.shape)}; expected {length} rows")
        (cameras if _is_frames(values) and not is_mask else arrays)[key] = np.asarray(values[()])
    actions = leading_rows(hdf5.array(group, "actions"), length, f"actions of {name}")

    def optional(key: str) -> np.ndarray | None:
        return hdf5.array(group, key) if key in group else None

    rewards, done, state = optional("rewards"), optional("dones"), optional("states")
    return SourceEpisode(
        key=demo.key,
        split=demo.split,
        camera="image",
        cameras=cameras,
        actions=actions,
        action_fields=(ActionField(name="actions", size=actions.shape[1]),),
        rewards=None if rewards is None else _transitions(rewards, length, f"rewards of {name}"),
        terminated=None if done is None else _transitions(done, length, f"dones of {name}").astype(bool),
        state=None if state is None else frame_rows(state, length, f"states of {name}"),
        arrays=arrays,
        meta={"source": source, "demo": demo.group, "left_out": left_out},
    )


def _transitions(values: np.ndarray, length: int, name: str) -> np.ndarray:
    return one_column(leading_rows(values, length, name), name)


def _is_frames(values: np.ndarray | h5py.Dataset) -> bool:
    return len(values.shape) == 4 and values.shape[3] == 3 and values.dtype == np.uint8
