"""Video data of the VP2 benchmark: robodesk and robosuite, in the HDF5 layout of robomimic.

Source: thuml/iVideoGPT preprocess_vp2.py: cameras, names and splits are the same. It keeps one camera and the actions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert import hdf5
from ivideogpt.data.convert.robomimic import Demo, hdf5_files, masked_demos, robomimic_episode
from ivideogpt.data.convert.source_episode import SourceEpisode, omission
from ivideogpt.data.convert.source_files import existing_folder, in_groups, relative_name
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, ShardTasks

CAMERAS = {"robodesk": "camera_image", "robosuite": "agentview_shift_2_image"}
FACTS = {name: StoreFacts(name=f"vp2_{name}") for name in CAMERAS}  # the catalogue has the rest
EPISODES_A_SHARD = 256
# Official name and name in the store, by mask.
_SPLITS = {"train": ("train", "train"), "valid": ("validation", "val")}
_NOISE = {"noise_0.1": "_noise1", "noise_0.2": "_noise2"}


def tasks(source: Path, *, benchmark: str) -> ShardTasks:
    """Return one task a shard, train before val, each split in the order of the official file names.

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
    files, omissions = hdf5_files(folder)
    files.sort()
    demos: dict[tuple[str, str], Demo] = {}
    for path in files:
        listed, unlisted = _demos(folder, path, benchmark)
        omissions += omission("episodes", "neither mask/train nor mask/valid lists them", unlisted)
        for demo in listed:
            twin = demos.setdefault((demo.split, demo.key), demo)
            if twin is not demo:
                raise UserError(f"{path} and {twin.path} both hold {demo.key}; put them into folders of their own")
    shards = []
    for split in ("train", "val"):
        ordered = sorted((demo for demo in demos.values() if demo.split == split), key=lambda demo: f"{demo.key}.npz")
        for index, group in enumerate(in_groups(ordered, EPISODES_A_SHARD)):
            read = partial(read_vp2_demos, folder=folder, demos=tuple(group), benchmark=benchmark)
            shards.append(ShardTask(name=f"{split}-{index:05d}", read=read))
    return ShardTasks(shards, omissions)


def read_vp2_demos(*, folder: Path, demos: Sequence[Demo], benchmark: str) -> Iterator[SourceEpisode]:
    """Yield the episodes ``demos``.

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
                    cameras={"image": CAMERAS[benchmark]},
                    source=relative_name(folder, path),
                )


def _demos(folder: Path, path: Path, benchmark: str) -> tuple[list[Demo], list[str]]:
    """Return the episodes that the masks of a file list, and the names of those in no mask."""
    name = relative_name(folder, path)
    noise = ""
    if benchmark == "robodesk":
        suffixes = [suffix for mark, suffix in _NOISE.items() if mark in name]
        if not suffixes:
            raise UserError(f"{path} does not name its noise; expected noise_0.1 or noise_0.2 in its path")
        noise = suffixes[0]
    demos = []
    with hdf5.open_hdf5(path) as file:
        for mask, (official, split) in _SPLITS.items():
            place = path.parent.relative_to(folder) / f"{official}{noise}"
            for group in masked_demos(file, mask):
                key = f"{place.as_posix()}/{official}_eps_{group[:5]}{group[5:].zfill(5)}"
                demos.append(Demo(path=path, group=group, key=key, split=split))
        listed = {demo.group for demo in demos}
        unlisted = [f"{group} of {name}" for group in hdf5.group(file, "data") if group not in listed]
    return demos, unlisted
