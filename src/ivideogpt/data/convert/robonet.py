"""RoboNet's HDF5 files: one trajectory each, filmed by several cameras, as mp4 or as JPEG files.

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
from ivideogpt.data.convert.source_episode import ActionField, Frames, SourceEpisode
from ivideogpt.data.convert.source_files import existing_folder, in_groups, name_list, relative_name
from ivideogpt.data.convert.time_steps import frame_rows, leading_rows, plain_json
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask

if TYPE_CHECKING:
    import h5py

FACTS = StoreFacts(name="tfds_robonet")  # the catalogue has the rest
ACTION_SIZE = 5
EPISODES_A_SHARD = 128
_TEST_LIST = "robonet_testset_filenames.txt"


def tasks(source: Path, *, all_cameras: bool = True) -> list[ShardTask]:
    """One task a shard, train before test, each split in the order of the official file names.

    Args:
        source: the folder of ``.hdf5`` files.
        all_cameras: False keeps the first camera only, as the official converter does.

    Raises:
        UserError: there is no such folder, or it holds no HDF5 file.
    """
    folder = existing_folder(source, "RoboNet's .hdf5 files")
    files = [path for path in folder.rglob("*") if path.suffix in hdf5.SUFFIXES and not path.name.startswith(".")]
    if not files:
        raise UserError(
            f"{folder} holds no .hdf5 files; it holds {name_list(sorted(p.name for p in folder.iterdir()))}"
        )
    files.sort(key=lambda path: f"{_key(path)}.npz")  # the official loader sorts the names it gives them
    test = test_names()
    found = []
    for split in ("train", "test"):
        chosen = [path for path in files if _split(path, test) == split]
        for index, group in enumerate(in_groups(chosen, EPISODES_A_SHARD)):
            read = partial(read_files, folder=folder, paths=tuple(group), split=split, all_cameras=all_cameras)
            found.append(ShardTask(name=f"{split}-{index:05d}", read=read))
    return found


def test_names() -> frozenset[str]:
    """File names of the official test set (256)."""
    text = (resources.files("ivideogpt") / "assets" / "data" / _TEST_LIST).read_text(encoding="utf-8")
    return frozenset(text.split())


def read_files(*, folder: Path, paths: Sequence[Path], split: str, all_cameras: bool = True) -> Iterator[SourceEpisode]:
    """The episodes of ``paths``, one a file.

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
    about = _metadata(file)
    encoding = plain_json(hdf5.attribute(env, "cam_encoding")) if plain_json(env.attrs.get("n_cams", 0)) else ""
    if not encoding:
        raise UserError(f"{path} says it has no cameras (n_cams); leave the file out")
    length = min(len(state), _camera_length(env, 0, encoding), len(actions) + 1)
    if length < 2:
        raise UserError(f"{path} has {length} frames with state and action; expected at least 2: leave the file out")
    cameras = {
        ("image" if index == 0 else f"cam{index}"): _frames(env, index, encoding, length, path)
        for index in range(int(plain_json(hdf5.attribute(env, "n_cams"))) if all_cameras else 1)
    }
    rows, rule = _five_actions(actions[: length - 1], state, about, env, path)
    return SourceEpisode(
        key=_key(path),
        split=split,
        camera="image",
        cameras=cameras,
        actions=leading_rows(rows, length, f"policy/actions of {path}"),
        action_fields=(ActionField(name="actions", size=ACTION_SIZE),),
        state=frame_rows(state[:length], length, f"env/state of {path}"),
        meta={"source": name, "action_rule": rule, "about": {key: plain_json(value) for key, value in about.items()}},
    )


def _five_actions(
    actions: np.ndarray, state: np.ndarray, about: dict[str, Any], env: h5py.Group, path: Path
) -> tuple[np.ndarray, str]:
    """The official rule that makes every robot's actions 5 numbers: position and wrist, then the gripper."""
    width = actions.shape[1]
    if width == ACTION_SIZE:
        return actions, "as recorded"
    if width > ACTION_SIZE:
        return actions[:, :ACTION_SIZE], f"first {ACTION_SIZE} of {width}"
    if width < ACTION_SIZE - 1:
        return np.pad(actions, ((0, 0), (0, ACTION_SIZE - width))), f"{width}, padded with zeros"
    if plain_json(about.get("primitives")) != "autograsp":
        raise UserError(
            f"{path} has actions of 4 numbers and primitives {plain_json(about.get('primitives'))!r}; "
            "expected 'autograsp', which tells what the gripper did: leave the file out"
        )
    # The gripper moves by itself: it is taken as told to go where it is found next.
    high, low = _bound(about, env, "high_bound"), _bound(about, env, "low_bound")
    closed = state[1 : len(actions) + 1, -1] > (high + low) / 2.0
    return np.column_stack([actions, np.where(closed, high, low)]), "4, gripper from the next state"


def _bound(about: dict[str, Any], env: h5py.Group, name: str) -> float:
    values = np.asarray(about[name]) if name in about else hdf5.array(env, name)
    return float((values[0] if values.ndim == 2 else values)[-1])


def _camera_length(env: h5py.Group, index: int, encoding: str) -> int:
    video = hdf5.group(env, f"cam{index}_video")
    return int(hdf5.attribute(hdf5.dataset(video, "frames"), "T")) if encoding == "mp4" else len(video)


def _frames(env: h5py.Group, index: int, encoding: str, length: int, path: Path) -> Frames:
    video, name = hdf5.group(env, f"cam{index}_video"), f"env/cam{index}_video of {path}"
    first = hdf5.dataset(video, "frames" if encoding == "mp4" else "frame0")
    colours = plain_json(hdf5.attribute(first, "image_format"))
    if colours not in ("RGB", "BGR"):
        raise UserError(f"{name} has image_format {colours!r}; expected 'RGB' or 'BGR'")
    if encoding == "mp4":
        return first_frames(first[()].tobytes(), length, name, swap_colours=colours == "BGR")
    files = ((f"frame{t} of {name}", hdf5.array(video, f"frame{t}").tobytes()) for t in range(length))
    return image_frames(files, name, swap_colours=colours == "BGR")


def _metadata(file: h5py.File) -> dict[str, Any]:
    """What the file says of itself, small things only."""
    about = {}
    if "misc" in file:
        misc = hdf5.group(file, "misc")
        about |= {key: value[()] for key, value in misc.items() if hasattr(value, "shape") and value.size <= 64}
    if "metadata" in file:
        about |= dict(hdf5.group(file, "metadata").attrs)
    return about


def _key(path: Path) -> str:
    return path.name.split(".")[0]


def _split(path: Path, test: frozenset[str]) -> str:
    return "test" if path.name in test else "train"
