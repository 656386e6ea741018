"""BAIR robot pushing (softmotion30_44k): TFRecord files with raw 64 x 64 pictures of two cameras.

Source: same episodes, names and splits as the official converter, which numbers the records of ``traj_A_to_B`` files
from A on. It keeps the action of the last frame; here that row is padding, and the action is in the episode's ``meta``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.core.reading import reading
from ivideogpt.data.convert.rlds.tf_example import Values
from ivideogpt.data.convert.rlds.tfrecord import Record, read_records
from ivideogpt.data.convert.source_episode import ActionField, Omission, SourceEpisode, omission
from ivideogpt.data.convert.source_files import existing_folder, relative_name, visible_files
from ivideogpt.data.store.metadata import StoreFacts

if TYPE_CHECKING:
    from ivideogpt.data.store.writer import ShardTasks

FACTS = StoreFacts(name="bair_robot_pushing")  # the catalogue has the rest
SPLITS = ("train", "test")
LENGTH, SIDE = 30, 64
ACTION_DIM, POSITION_DIM = 4, 3
#: Key in the records of each camera, by its name in the official files.
_CAMERAS = {"aux1_image": "image_aux1/encoded", "image": "image_main/encoded"}
_FOLDER = "softmotion30_44k"


@dataclass(frozen=True, kw_only=True)
class BairFile:
    """One TFRecord file.

    Attributes:
        path: the file.
        split: "train" or "test".
        first, last: number of its first and of its last trajectory.
    """

    path: Path
    split: str
    first: int
    last: int


def tasks(source: Path) -> ShardTasks:
    """Return one task a file, train before test, in the order of the trajectories.

    Args:
        source: the folder with ``train`` and ``test``, or the one above (``softmotion30_44k``).

    Raises:
        UserError: there is no such folder, or a file has an unexpected name.
    """
    from ivideogpt.data.store.writer import ShardTask, ShardTasks

    files = find_files(existing_folder(source, "the BAIR dataset"))
    read = {file.path for file in files}
    folder = files[0].path.parent.parent
    others = (relative_name(folder, path) for path in visible_files(folder) if path not in read)
    shards = [
        ShardTask(name=f"{file.split}-{file.first:06d}", read=functools.partial(read_file, file)) for file in files
    ]
    return ShardTasks(shards, omission("files", "they are no files of the dataset", others))


def find_files(source: Path) -> list[BairFile]:
    """Return the files of both splits; see ``tasks``."""
    folder = source / _FOLDER if (source / _FOLDER).is_dir() else source
    files = []
    for split in SPLITS:
        paths = list((folder / split).glob("*.tfrecords"))
        if not paths:
            raise UserError(f"{folder / split} holds no .tfrecords files; expected those of the BAIR dataset")
        files += sorted((_file(path, split) for path in paths), key=lambda file: file.first)
    return files


def read_file(file: BairFile) -> Iterator[SourceEpisode]:
    """Yield the trajectories of a file in order.

    Raises:
        UserError: the file is damaged, its records are not as expected, or there are more or fewer than its name says.
    """
    number = file.first - 1
    for number, record in enumerate(read_records(file.path), file.first):
        with reading(record.place, "download the file again"):
            episode = _episode(record, file, number)
        yield episode
    if number != file.last:
        raise UserError(
            f"{file.path} holds {number - file.first + 1} records; its name says {file.last - file.first + 1}; "
            "download it again"
        )


def _file(path: Path, split: str) -> BairFile:
    match = re.fullmatch(r"traj_(\d+)_to_(\d+)", path.stem)
    if match is None:
        raise UserError(f"{path} has an unexpected name; expected traj_FIRST_to_LAST.tfrecords")
    return BairFile(path=path, split=split, first=int(match[1]), last=int(match[2]))


_KEYS = frozenset(f"{t}/{name}" for t in range(LENGTH) for name in (*_CAMERAS.values(), "action", "endeffector_pos"))


def _episode(record: Record, file: BairFile, number: int) -> SourceEpisode:
    values = record.values(_KEYS)
    actions = _rows(record, values, "action", ACTION_DIM)
    last_action = actions[-1].tolist()
    actions[-1] = 0
    return SourceEpisode(
        key=f"traj_{number:05d}",
        split=file.split,
        camera="aux1_image",
        cameras={name: _frames(record, values, key) for name, key in _CAMERAS.items()},
        actions=actions,
        action_fields=(ActionField(name="action", size=ACTION_DIM),),
        state=_rows(record, values, "endeffector_pos", POSITION_DIM),
        meta={"number": number, "file": file.path.name, "record": number - file.first, "last_action": last_action},
        omissions=(Omission(items="last actions", reason="they lead to no recorded frame; kept in meta"),),
    )


def _frames(record: Record, values: dict[str, Values], key: str) -> np.ndarray:
    """Uint8 ``[t h w 3]``."""
    pictures = []
    for t in range(LENGTH):
        content = values.get(f"{t}/{key}")
        if content is None:
            raise record.missing([f"{t}/{key}"])
        if len(content) != 1 or isinstance(content, np.ndarray) or len(content[0]) != SIDE * SIDE * 3:
            raise UserError(f"{record.place} has no picture of {SIDE} x {SIDE} x 3 bytes in '{t}/{key}'")
        pictures.append(content[0])
    return np.frombuffer(b"".join(pictures), np.uint8).reshape(LENGTH, SIDE, SIDE, 3)


def _rows(record: Record, values: dict[str, Values], key: str, width: int) -> np.ndarray:
    """Float32 ``[t width]``."""
    rows = np.empty((LENGTH, width), np.float32)
    for t in range(LENGTH):
        content = values.get(f"{t}/{key}")
        if content is None:
            raise record.missing([f"{t}/{key}"])
        if not isinstance(content, np.ndarray) or content.size != width:
            raise UserError(f"{record.place} has {len(content)} values in '{t}/{key}'; expected {width} numbers")
        rows[t] = content
    return rows
