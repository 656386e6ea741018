"""LeRobot datasets, versions 2.0, 2.1 and 3.0: parquet tables with videos or images, in a folder or on the Hub.

Row t of a table holds what was seen, the action that was then taken, and the reward and the end that came of it: the
time convention of ``Episode``. The action of the last row leads to a frame that was not recorded, so it is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.frame_files import frames_at, image_frames
from ivideogpt.data.convert.lerobot_metadata import INFO, Description, EpisodeEntry, describe, licence, local_folder
from ivideogpt.data.convert.source_episode import ActionField, Frames, SourceEpisode
from ivideogpt.data.convert.source_files import name_list
from ivideogpt.data.convert.tables import parquet_columns, read_parquet
from ivideogpt.data.convert.time_steps import frame_rows, leading_rows, one_column
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask

#: A shard holds about this many pictures of all cameras together.
PICTURES_A_SHARD = 16_384
# Each field of an episode, and the columns that may hold it: one of these names, or several that begin with it.
_ACTIONS, _STATES = ("action", "actions"), ("observation.state", "state")
_REWARDS, _ENDS = ("next.reward", "reward"), ("next.done", "done")
_COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_NUMBERS = ("float16", "float32", "float64", "bool", "uint8", "uint16", "int8", "int16", "int32", "int64")


def tasks(
    source: str | Path,
    *,
    camera: str | None = None,
    cameras: Sequence[str] | None = None,
    revision: str | None = None,
    val_every: int | None = None,
) -> list[ShardTask]:
    """One task a shard, splits one after the other, episodes by their number.

    Args:
        source: the folder of the dataset, or its Hub id, which is downloaded.
        camera: the main camera; by default the first one that the dataset lists.
        cameras: which cameras are kept; by default all.
        revision: branch, tag or commit of the Hub id.
        val_every: every so many episodes, from the first on, one goes to the split "val"; None: the dataset says it.

    Raises:
        UserError: there is no such dataset, it is damaged, of an unknown version, or has no such camera.
    """
    if val_every is not None and val_every < 2:
        raise UserError(f"val_every is {val_every}; expected at least 2")
    wanted = None if cameras is None else (cameras,) if isinstance(cameras, str) else tuple(cameras)
    root = local_folder(source, wanted, revision)
    described, entries = describe(root)
    kept = described.cameras if wanted is None else wanted
    if not kept:
        raise UserError(f"{root} has no camera; expected a feature of dtype video or image in {INFO}")
    main = camera or kept[0]
    for name in (*kept, main):
        if name not in described.cameras or name not in kept:
            raise UserError(f"{root} has no camera {name!r}; it has {name_list(described.cameras)}")
    described = replace(described, cameras=kept)
    if val_every is not None:
        entries = [replace(entry, split="train" if place % val_every else "val") for place, entry in enumerate(entries)]
    found = []
    for split in dict.fromkeys(entry.split for entry in sorted(entries, key=lambda entry: entry.split != "train")):
        groups = _groups([entry for entry in entries if entry.split == split], len(kept))
        for index, group in enumerate(groups):
            read = partial(read_entries, described=described, entries=tuple(group), camera=main)
            found.append(ShardTask(name=f"{split}-{index:05d}", read=read))
    return found


def facts(source: str | Path, name: str | None = None, revision: str | None = None) -> StoreFacts:
    """What is said of a dataset: its name, where it comes from, and the licence that its README names.

    Args:
        source: as for ``tasks``.
        name: of the dataset; by default that of its folder or repository.
        revision: as for ``tasks``.
    """
    folder, is_local = Path(source), Path(source).is_dir()
    url = "" if is_local else f"https://huggingface.co/datasets/{folder.as_posix()}"
    found = licence(folder if is_local else local_folder(source, (), revision))
    return StoreFacts(name=name or folder.absolute().name, url=url, licence=found)


def read_entries(*, described: Description, entries: Sequence[EpisodeEntry], camera: str) -> Iterator[SourceEpisode]:
    """The episodes ``entries``.

    Raises:
        UserError: a file is missing or damaged, or its parts do not fit together.
    """
    for entry in entries:
        yield _episode(described, entry, camera)


def _groups(entries: Sequence[EpisodeEntry], cameras: int) -> list[list[EpisodeEntry]]:
    groups: list[list[EpisodeEntry]] = []
    pictures = PICTURES_A_SHARD
    for entry in entries:
        if pictures >= PICTURES_A_SHARD:
            groups.append([])
            pictures = 0
        groups[-1].append(entry)
        pictures += entry.length * max(cameras, 1)
    return groups


def _episode(described: Description, entry: EpisodeEntry, camera: str) -> SourceEpisode:
    path = described.root / entry.data
    name = f"episode {entry.index} of {path}"
    table = _table(described, entry, path)
    length = len(next(iter(table.values())))
    if length != entry.length:
        raise UserError(f"{name} has {length} rows; expected {entry.length}, the length in the list of episodes")
    frames = {key: _frames(described, entry, table, key) for key in described.cameras}
    actions, action_fields = _joined(described, table, _ACTIONS, leading_rows, name)
    state, state_fields = _joined(described, table, _STATES, frame_rows, name)
    rewards, _ = _joined(described, table, _REWARDS, leading_rows, name)
    ends, _ = _joined(described, table, _ENDS, leading_rows, name)
    used = {key for names in (_ACTIONS, _STATES, _REWARDS, _ENDS) for key in _columns(described, names)}
    others = [key for key in table if key not in {*used, *described.cameras, *_COUNTERS}]
    instructions = _instructions(described, entry, table)
    about = {
        "source": entry.data,
        "episode_index": entry.index,
        "robot": described.robot,
        "tasks": instructions,
        "left_out": [*described.left_out, *(key for key in described.features if not _is_kept(described, key))],
        "state_names": [field.name for field in state_fields],
        "ranges": {key: described.ranges[key] for key in sorted(used) if key in described.ranges},
    }
    return SourceEpisode(
        key=f"episode_{entry.index:06d}",
        split=entry.split,
        camera=camera,
        cameras=frames,
        actions=actions,
        action_fields=action_fields,
        rewards=None if rewards is None else one_column(rewards, f"reward of {name}"),
        terminated=None if ends is None else one_column(ends, f"done of {name}").astype(bool),
        state=state,
        arrays={key: _array(table[key], f"{key} of {name}") for key in others},
        text="; ".join(instructions),
        fps=described.fps,
        meta=about,
    )


def _table(described: Description, entry: EpisodeEntry, path: Path) -> dict[str, list[Any]]:
    """The columns of one episode that are numbers or pictures."""
    features = described.features
    images = [key for key in described.cameras if features[key]["dtype"] == "image"]
    wanted = [key for key, feature in features.items() if key in images or feature.get("dtype") in _NUMBERS]
    wanted = list(dict.fromkeys([*wanted, "episode_index"]))
    there = parquet_columns(path)
    if missing := [key for key in wanted if key not in there]:
        raise UserError(f"{path} has no column {missing[0]!r}; it has {name_list(there)}")
    table = read_parquet(path, columns=wanted, filters=[("episode_index", "==", entry.index)])
    if not len(table):
        raise UserError(f"{path} has no rows of episode {entry.index}; download the dataset again")
    columns = {key: table[key].to_pylist() for key in wanted}
    order = columns.get("frame_index", [])
    if any(later <= earlier for earlier, later in zip(order, order[1:], strict=False)):
        raise UserError(f"{path} has the rows of episode {entry.index} out of order (frame_index); write it again")
    return columns


def _frames(described: Description, entry: EpisodeEntry, table: dict[str, list[Any]], key: str) -> Frames:
    if key in table:
        return image_frames(_images(described.root, table[key], f"{key} of episode {entry.index}"), key)
    place = entry.videos[key]
    path = described.root / place.path
    if not path.is_file():
        raise UserError(f"there is no file {path}, which the dataset names; download it again")
    seconds = table.get("timestamp") or [row / described.fps for row in range(entry.length)]
    seconds = np.asarray([value[0] if isinstance(value, list) else value for value in seconds], np.float64)
    numbers = np.rint((place.start + seconds) * described.fps).astype(int).tolist()
    if any(later <= earlier for earlier, later in zip(numbers, numbers[1:], strict=False)):
        raise UserError(
            f"episode {entry.index} of {described.root / entry.data} has two rows for one frame at {described.fps:g} "
            "frames a second (timestamp); correct the column or fps"
        )
    return frames_at(path, numbers, described.fps)


def _images(root: Path, cells: Sequence[Any], name: str) -> Iterator[tuple[str, bytes]]:
    for row, cell in enumerate(cells):
        label = f"row {row} of {name}"
        if not isinstance(cell, dict) or not (cell.get("bytes") or cell.get("path")):
            raise UserError(f"{label} in {root} holds no image; expected its bytes or its path")
        if cell.get("bytes"):
            yield label, cell["bytes"]
            continue
        path = root / cell["path"]
        try:
            yield str(path), path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}, {label}, cannot be read ({error.strerror}); download it again") from error


def _is_kept(described: Description, key: str) -> bool:
    return described.features[key].get("dtype") in (*_NUMBERS, "video", "image")


def _columns(described: Description, names: Sequence[str]) -> list[str]:
    """The column of the first of these names that is there, or those that begin with it and a dot."""
    numeric = [key for key, feature in described.features.items() if feature.get("dtype") in _NUMBERS]
    for name in names:
        found = [key for key in numeric if key == name] or [key for key in numeric if key.startswith(f"{name}.")]
        if found:
            return found
    return []


def _joined(
    described: Description, table: dict[str, list[Any]], names: Sequence[str], rows: Any, episode: str
) -> tuple[np.ndarray | None, tuple[ActionField, ...]]:
    """The columns of one field side by side, and what their numbers are."""
    keys = _columns(described, names)
    if not keys:
        return None, ()
    parts = [rows(table[key], len(table[key]), f"{key} of {episode}") for key in keys]
    fields = [field for key, part in zip(keys, parts, strict=True) for field in _fields(described, key, part.shape[1])]
    return np.concatenate(parts, axis=1), tuple(fields)


def _fields(described: Description, key: str, size: int) -> list[ActionField]:
    names = described.features[key].get("names")
    if isinstance(names, dict) and len(names) == 1:  # {"motors": [...]}
        names = next(iter(names.values()))
    if isinstance(names, list) and len(names) == size and all(isinstance(name, str) for name in names):
        return [ActionField(name=f"{key}/{name}", size=1) for name in names]
    return [ActionField(name=key, size=size)]


def _instructions(described: Description, entry: EpisodeEntry, table: dict[str, list[Any]]) -> list[str]:
    numbers = [value[0] if isinstance(value, list) else value for value in table.get("task_index", [])]
    found = [described.tasks.get(number, "") for number in dict.fromkeys(numbers)]
    return [text for text in found if text] or list(entry.tasks)


def _array(values: Sequence[Any], name: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UserError(f"{name} has rows of different lengths; expected numbers of one shape") from error
    if array.dtype.kind not in "iufb":
        raise UserError(f"{name} has type {array.dtype}; expected numbers in every row")
    return array.astype(np.float32) if array.dtype.kind == "f" else array
