"""Writes one shard of an episode store: checks episodes, encodes frames, puts equal arrays end to end.

The arrays of the episodes are first written to an unnamed file on the same disk, so that a shard may be larger than
memory and a killed process leaves nothing behind. Header and arrays then go to a temporary file, which is moved to its
place.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.core.files import write_atomic, writing
from ivideogpt.data.convert.jpeg import decode_jpeg, jpeg_size
from ivideogpt.data.convert.source_episode import ActionField, JpegFrames, Omission, SourceEpisode, merged_omissions
from ivideogpt.data.store import format as store_format
from ivideogpt.data.store.metadata import ActionStatistics, action_statistics

QUALITY = 95
_EXPECTED = (("actions", "float32", 2), ("rewards", "float32", 1), ("terminated", "bool", 1), ("state", "float32", 2))


@dataclass(frozen=True)
class WrittenShard:
    """The rows of a finished shard for the index.

    Attributes:
        rows: the index row of each episode, in order.
        actions: statistics of its actions, or None.
        omissions: parts of the source that are not in the shard.
    """

    rows: list[dict[str, Any]]
    actions: ActionStatistics | None
    omissions: tuple[Omission, ...] = ()


@dataclass
class _Range:
    """A range of the unnamed file that holds a part of a tensor."""

    position: int
    size: int


@dataclass
class _Column:
    """A tensor of the shard, to which each episode appends rows."""

    dtype: np.dtype
    row_shape: tuple[int, ...]
    length: int = 0
    last_offset: int = 0
    ranges: list[_Range] = field(default_factory=list)


def write_shard(path: Path, episodes: Iterable[SourceEpisode | Omission]) -> WrittenShard:
    """Write ``episodes`` to the safetensors file ``path``, atomically.

    Raises:
        UserError: an episode breaks the rules of ``SourceEpisode``, or the file cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        unnamed = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115  closed below
    shard = _Shard(path, unnamed)
    try:
        for episode in episodes:
            if isinstance(episode, Omission):
                shard.omissions.append(episode)
            else:
                shard.add(episode)
        write_atomic(path, shard.write)
    finally:
        with contextlib.suppress(OSError):  # a full disk may refuse the last buffered bytes
            unnamed.close()
    return WrittenShard(shard.rows, shard.actions.statistics(), merged_omissions(shard.omissions))


class _Shard:
    def __init__(self, path: Path, unnamed: BinaryIO) -> None:
        self.path, self.unnamed = path, unnamed
        self.rows: list[dict[str, Any]] = []
        self.omissions: list[Omission] = []
        self.actions = _Actions()
        self.columns: dict[str, _Column] = {}
        self.groups: dict[tuple, int] = {}
        self.frames_of: dict[int, int] = defaultdict(int)
        self.keys: set[tuple[str, str]] = set()

    def add(self, episode: SourceEpisode) -> None:
        _check(episode)
        if (episode.split, episode.key) in self.keys:
            raise UserError(f"episode {episode.key!r} of split {episode.split!r} comes twice; keys must differ")
        self.keys.add((episode.split, episode.key))
        arrays, cameras = {}, []
        for name in sorted(episode.cameras):
            stored, camera = _encoded(episode, name)
            arrays |= stored
            cameras.append(camera)
        for label in store_format.ROWS:
            value = getattr(episode, label)
            if value is not None:
                arrays[label] = np.ascontiguousarray(value)
        arrays |= {store_format.array_name(name): np.ascontiguousarray(value) for name, value in episode.arrays.items()}
        group = self.groups.setdefault(_signature(arrays, cameras), len(self.groups))
        for name, value in arrays.items():
            self._append(f"{group}.{name}", value, name.startswith("offsets."))
        self.actions.add(episode)
        self.omissions += episode.omissions
        self.rows.append(
            {
                "key": episode.key,
                "split": episode.split,
                "number": episode.meta.get("number"),
                "shard": self.path.name,
                "group": group,
                "first": self.frames_of[group],
                "length": len(episode),
                "camera": episode.camera,
                "cameras": cameras,
                "fps": episode.fps,
                "text": episode.text,
                "meta": _json(episode),
                "crc32": store_format.checksum(arrays),
            }
        )
        self.frames_of[group] += len(episode)

    def _append(self, name: str, value: np.ndarray, offsets: bool) -> None:
        column = self.columns.setdefault(name, _Column(value.dtype, value.shape[1:]))
        if offsets and column.ranges:  # offsets of the shard continue after the last file
            value = value[1:] + column.last_offset
        if offsets:
            column.last_offset = int(value[-1])
        content = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        with writing(self.path):
            position = self.unnamed.tell()
            self.unnamed.write(content.data)
        column.ranges.append(_Range(position, len(content)))
        column.length += len(value)

    def write(self, temporary: Path) -> None:
        # Wide numbers first, so that every tensor lies at a multiple of its number's size.
        names = sorted(self.columns, key=lambda name: (-self.columns[name].dtype.itemsize, name))
        shapes = {
            name: (self.columns[name].dtype, (self.columns[name].length, *self.columns[name].row_shape))
            for name in names
        }
        self.unnamed.flush()
        with temporary.open("wb") as file:
            file.write(store_format.encoded_header(shapes))
            for name in names:
                for part in self.columns[name].ranges:
                    self.unnamed.seek(part.position)
                    file.write(self.unnamed.read(part.size))


class _Actions:
    """The actions of a shard, collected for their statistics."""

    def __init__(self) -> None:
        self.episodes: list[np.ndarray] = []
        self.fields: tuple[ActionField, ...] = ()

    def add(self, episode: SourceEpisode) -> None:
        if episode.actions is None:
            return
        width = episode.actions.shape[1]
        if self.episodes and (width, episode.action_fields) != (self.episodes[0].shape[1], self.fields):
            raise UserError(
                f"episode {episode.key!r} has actions of {width} numbers {_named(episode.action_fields)} and those "
                f"before it have {self.episodes[0].shape[1]} {_named(self.fields)}; convert them into two folders"
            )
        self.fields = episode.action_fields
        self.episodes.append(episode.actions[:-1])

    def statistics(self) -> ActionStatistics | None:
        return action_statistics(self.episodes, self.fields) if self.episodes else None


def _named(fields: tuple[ActionField, ...]) -> str:
    return f"({', '.join(field.name for field in fields) or 'of unknown meaning'})"


def encode_frames(frames: np.ndarray, quality: int = QUALITY) -> list[bytes]:
    """Return frames uint8 ``[t h w 3]`` as JPEG files of full colour resolution and accurate DCT.

    Raises:
        MissingExtraError: simplejpeg is not installed.
    """
    encode = store_format.simplejpeg().encode_jpeg
    return [encode(np.ascontiguousarray(frame), quality, "RGB", "444", fastdct=False) for frame in frames]


def _encoded(episode: SourceEpisode, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the tensors of one camera, and its entry in the index."""
    frames = episode.cameras[name]
    height, width = (frames.height, frames.width) if isinstance(frames, JpegFrames) else frames.shape[1:3]
    camera = {"name": name, "height": int(height), "width": int(width), "encoding": "raw", "fast": False}
    files = _checked_files(episode, name, frames) if isinstance(frames, JpegFrames) else []
    keeps_files = isinstance(frames, JpegFrames) and frames.keep_small
    if max(height, width) <= store_format.LARGEST_RAW_SIDE and not keeps_files:
        if isinstance(frames, JpegFrames):
            frames = np.stack([decode_jpeg(file, fast=frames.fast) for file in files])
        return {store_format.raw_name(name): np.ascontiguousarray(frames)}, camera
    camera["encoding"] = "jpeg"
    if isinstance(frames, JpegFrames):
        camera["fast"] = frames.fast
    else:
        files = encode_frames(frames)
    offsets = np.cumsum([0, *map(len, files)], dtype=np.int64)
    blob = np.frombuffer(b"".join(files), np.uint8)
    return {store_format.jpeg_name(name): blob, store_format.offsets_name(name): offsets}, camera


def _checked_files(episode: SourceEpisode, name: str, frames: JpegFrames) -> list[bytes]:
    """Return the JPEG files of a camera, each read once.

    Raises:
        UserError: a file is no JPEG, or has another size than the camera.
    """
    files = []
    for index, file in enumerate(frames.files):
        label = f"frame {index} of camera {name!r} of episode {episode.key!r}"
        try:
            height, width = jpeg_size(file)
        except MissingExtraError:
            raise
        except UserError as error:
            raise UserError(f"{label}: {error}; repair or remove the episode") from error
        if (height, width) != (frames.height, frames.width):
            raise UserError(f"{label} has {height} x {width} pixels; expected {frames.height} x {frames.width}")
        files.append(bytes(file))
    return files


def _signature(arrays: dict[str, np.ndarray], cameras: list[dict[str, Any]]) -> tuple:
    """Return a key that is equal for episodes whose arrays can be put end to end."""
    shapes = tuple((name, str(value.dtype), value.shape[1:]) for name, value in sorted(arrays.items()))
    return shapes, tuple(camera["name"] for camera in cameras)


def _check(episode: SourceEpisode) -> None:
    """Raise UserError if an episode breaks the rules of ``SourceEpisode``."""
    name = f"episode {episode.key!r}"
    for text in (episode.key, episode.split, episode.text, *episode.cameras, *episode.arrays):
        _check_text(name, text)
    if not episode.key:
        raise UserError(f"an episode of split {episode.split!r} has no key; expected its official name")
    if episode.camera not in episode.cameras:
        raise UserError(f"{name} has no camera {episode.camera!r}; it has {', '.join(episode.cameras) or 'none'}")
    if not len(episode):
        raise UserError(f"{name} has no frames; leave it out")
    for camera, frames in episode.cameras.items():
        if isinstance(frames, np.ndarray) and (
            frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape
        ):
            raise UserError(
                f"{name} has frames of type {frames.dtype} and shape {list(frames.shape)} in camera {camera!r}; "
                "expected uint8 [t h w 3]"
            )
        if len(frames) != len(episode):
            raise UserError(f"{name} has {len(frames)} frames in camera {camera!r}; expected {len(episode)}")
    number = episode.meta.get("number")
    if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
        raise UserError(f"{name} has the number {number!r} in its meta; expected a whole number")
    for label, dtype, axes in _EXPECTED:
        value = getattr(episode, label)
        if value is not None and (value.dtype != np.dtype(dtype) or value.ndim != axes):
            raise UserError(
                f"{name} has {label} of type {value.dtype} and shape {list(value.shape)}; "
                f"expected {dtype} with {axes} axes"
            )
        if value is not None:
            _check_rows(name, label, value, len(episode), finite=True)
    for label, value in episode.arrays.items():
        _check_rows(name, f"array {label!r}", value, len(episode), finite=False)
    size = sum(field.size for field in episode.action_fields)
    if episode.actions is not None and episode.action_fields and size != episode.actions.shape[1]:
        raise UserError(f"{name} has actions of {episode.actions.shape[1]} numbers; its action fields name {size}")


def _check_rows(name: str, label: str, value: np.ndarray, length: int, finite: bool) -> None:
    if value.dtype not in store_format.DTYPES.values():
        raise UserError(f"{name} has {label} of type {value.dtype}; expected numbers")
    if value.shape[:1] != (length,):
        raise UserError(f"{name} has {label} of shape {list(value.shape)}; expected a row for each of {length} frames")
    if finite and value.dtype.kind == "f" and not np.isfinite(value).all():
        row = int(np.argwhere(~np.isfinite(value))[0][0])
        raise UserError(f"{name} has NaN or infinity in {label} at frame {row}; remove or repair the episode")


def _check_text(name: str, text: str) -> None:
    """Raise UserError if a text cannot be stored, such as a file name that is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name} has the text {text!r}, which is no valid UTF-8; rename the file") from error


def _json(episode: SourceEpisode) -> str:
    try:
        text = json.dumps(episode.meta, sort_keys=True, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"episode {episode.key!r} has a meta that is no plain JSON ({error})") from error
    _check_text(f"episode {episode.key!r}", text)
    return text
