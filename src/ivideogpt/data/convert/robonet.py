"""HDF5 files of RoboNet: one trajectory each, filmed by several cameras, as mp4 or as JPEG files.

Source: thuml/iVideoGPT preprocess_robonet.py: keys, length, action rule and test list are the same. It keeps the first
camera only and decodes the JPEGs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert import hdf5
from ivideogpt.data.convert.frame_files import first_frames, image_frames
from ivideogpt.data.convert.robomimic import hdf5_files
from ivideogpt.data.convert.source_episode import ActionField, Frames, Omission, SourceEpisode, omission
from ivideogpt.data.convert.source_files import existing_folder, in_groups, relative_name
from ivideogpt.data.convert.time_steps import frame_rows, leading_rows, plain_json
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, ShardTasks

if TYPE_CHECKING:
    import h5py

FACTS = StoreFacts(name="tfds_robonet")  # the catalogue has the rest
ACTION_SIZE = 5
EPISODES_A_SHARD = 128
_TEST_LIST = "robonet_testset_filenames.txt"


def tasks(source: Path, *, all_cameras: bool = True) -> ShardTasks:
    """Return one task a shard, train before test, each split in the order of the official file names.

    Args:
        source: the folder of ``.hdf5`` files.
        all_cameras: False keeps the first camera only, as the official converter does.

    Raises:
        UserError: there is no such folder, or it holds no HDF5 file.
    """
    folder = existing_folder(source, "RoboNet's .hdf5 files")
    files, omissions = hdf5_files(folder)
    files.sort(key=lambda path: f"{_key(path)}.npz")  # the official loader sorts the names it gives them
    test = test_names()
    shards = []
    for split in ("train", "test"):
        chosen = [path for path in files if _split(path, test) == split]
        for index, group in enumerate(in_groups(chosen, EPISODES_A_SHARD)):
            read = partial(read_robonet_files, folder=folder, paths=tuple(group), split=split, all_cameras=all_cameras)
            shards.append(ShardTask(name=f"{split}-{index:05d}", read=read))
    return ShardTasks(shards, omissions)


def test_names() -> frozenset[str]:
    """Return the file names of the official test set (256)."""
    text = (resources.files("ivideogpt") / "assets" / "data" / _TEST_LIST).read_text(encoding="utf-8")
    return frozenset(text.split())


def read_robonet_files(
    *, folder: Path, paths: Sequence[Path], split: str, all_cameras: bool = True
) -> Iterator[SourceEpisode]:
    """Yield the episodes of ``paths``, one a file.

    Raises:
        UserError: a file is damaged, lacks a key or does not fit the action rule.
    """
    for path in paths:
        with hdf5.open_hdf5(path) as file:
            yield _episode(file, path, relative_name(folder, path), split, all_cameras)


def _episode(file: h5py.File, path: Path, name: str, split: str, all_cameras: bool) -> SourceEpisode:
    env = hdf5.group(file, "env")
    state, actions = hdf5.array(env, "state"), hdf5.array(file, "policy/actions")
    for label, values in (("env/state", state), ("policy/actions", actions)):
        if values.ndim != 2:
            raise UserError(f"{path}: {label} has shape {list(values.shape)}; expected two axes")
    metadata = _metadata(file)
    camera_count = hdf5.count_attribute(env, "n_cams") if "n_cams" in env.attrs else 0
    encoding = plain_json(hdf5.attribute(env, "cam_encoding")) if camera_count else ""
    if not encoding:
        raise UserError(f"{path} has no cameras (n_cams is 0); leave the file out")
    length = min(len(state), _camera_length(env, 0, encoding), len(actions) + 1)
    if length < 2:
        raise UserError(f"{path} has {length} frames with state and action; expected at least 2: leave the file out")
    cameras = {
        ("image" if index == 0 else f"cam{index}"): _frames(env, index, encoding, length, path)
        for index in range(camera_count if all_cameras else 1)
    }
    recorded = max(len(state), _camera_length(env, 0, encoding))
    omissions = [
        *omission("cameras", "not chosen", [] if all_cameras else (f"cam{index}" for index in range(1, camera_count))),
        *omission(
            "files with frames, states or actions of different lengths",
            "cut to the shortest",
            [path.name] if recorded > length or len(actions) > length else [],
        ),
        *omission(
            "files with more than 5 numbers an action",
            "cut by the official rule",
            [path.name] if actions.shape[1] > ACTION_SIZE else [],
        ),
    ]
    if len(actions) >= length:
        omissions.append(Omission(items="last actions", reason="they lead to no recorded frame"))
    rows, rule = _five_actions(actions[: length - 1], state, metadata, env, path)
    details = {key: plain_json(value) for key, value in metadata.items()}
    return SourceEpisode(
        key=_key(path),
        split=split,
        camera="image",
        cameras=cameras,
        actions=leading_rows(rows, length, f"policy/actions of {path}"),
        action_fields=(ActionField(name="actions", size=ACTION_SIZE),),
        state=frame_rows(state[:length], length, f"env/state of {path}"),
        meta={
            "source": name,
            "action_rule": rule,
            "about": details,
        },
        omissions=tuple(omissions),
    )


def _five_actions(
    actions: np.ndarray, state: np.ndarray, metadata: dict[str, Any], env: h5py.Group, path: Path
) -> tuple[np.ndarray, str]:
    """Return actions of 5 numbers (position, wrist, gripper) by the official rule, and the name of the rule."""
    width = actions.shape[1]
    if width == ACTION_SIZE:
        return actions, "as recorded"
    if width > ACTION_SIZE:
        return actions[:, :ACTION_SIZE], f"first {ACTION_SIZE} of {width}"
    if width < ACTION_SIZE - 1:
        return np.pad(actions, ((0, 0), (0, ACTION_SIZE - width))), f"{width}, padded with zeros"
    if plain_json(metadata.get("primitives")) != "autograsp":
        raise UserError(
            f"{path} has actions of 4 numbers and primitives {plain_json(metadata.get('primitives'))!r}; "
            "expected 'autograsp', which tells what the gripper did: leave the file out"
        )
    # The gripper moves by itself: its next state is taken as its command.
    high, low = _bound(metadata, env, "high_bound"), _bound(metadata, env, "low_bound")
    closed = state[1 : len(actions) + 1, -1] > (high + low) / 2.0
    return np.column_stack([actions, np.where(closed, high, low)]), "4, gripper from the next state"


def _bound(metadata: dict[str, Any], env: h5py.Group, name: str) -> float:
    values = np.asarray(metadata[name]) if name in metadata else hdf5.array(env, name)
    return float((values[0] if values.ndim == 2 else values)[-1])


def _camera_length(env: h5py.Group, index: int, encoding: str) -> int:
    video = hdf5.group(env, f"cam{index}_video")
    return hdf5.count_attribute(hdf5.dataset(video, "frames"), "T") if encoding == "mp4" else len(video)


def _frames(env: h5py.Group, index: int, encoding: str, length: int, path: Path) -> Frames:
    video, name = hdf5.group(env, f"cam{index}_video"), f"env/cam{index}_video of {path}"
    first = hdf5.dataset(video, "frames" if encoding == "mp4" else "frame0")
    colours = plain_json(hdf5.attribute(first, "image_format"))
    if colours not in ("RGB", "BGR"):
        raise UserError(f"{name} has image_format {colours!r}; expected 'RGB' or 'BGR'")
    if encoding == "mp4":
        return first_frames(hdf5.array(video, "frames").tobytes(), length, name, swap_colours=colours == "BGR")
    files = ((f"frame{t} of {name}", hdf5.array(video, f"frame{t}").tobytes()) for t in range(length))
    return image_frames(files, name, swap_colours=colours == "BGR")


def _metadata(file: h5py.File) -> dict[str, Any]:
    """Return the small values of the groups ``misc`` and ``metadata``."""
    metadata = {}
    if "misc" in file:
        misc = hdf5.group(file, "misc")
        metadata |= {key: value[()] for key, value in misc.items() if hasattr(value, "shape") and value.size <= 64}
    if "metadata" in file:
        metadata |= dict(hdf5.group(file, "metadata").attrs)
    return metadata


def _key(path: Path) -> str:
    return path.name.split(".")[0]


def _split(path: Path, test: frozenset[str]) -> str:
    return "test" if path.name in test else "train"
