"""Layout of an episode store on disk: columns of the index, names of tensors, checksums.

A store is a folder of standard files. ``index.parquet`` has one row for each episode, with its shard and its rows
there. ``shards/*.safetensors`` hold the episodes of a shard end to end. Episodes of a shard whose arrays have equal
types and row shapes form a *group*; tensor names are ``<group>.<kind>`` or ``<group>.<kind>.<name>``. docs/data.md
describes the layout for other programs.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.core.reading import reading

FORMAT = "ivideogpt-store-1"
INDEX, SHARDS, PARTS = "index.parquet", "shards", "parts"
#: Key of the schema's metadata that holds the description of the store as JSON.
FACTS_KEY = b"ivideogpt"
#: Frames are stored raw if their longer side has at most this many pixels, else as JPEG files.
LARGEST_RAW_SIDE = 96
#: Arrays of an episode that are fields of SourceEpisode and of Episode.
ROWS = ("actions", "rewards", "terminated", "state")
#: Names of number types in safetensors files.
DTYPES = {
    "BOOL": np.dtype(bool),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
#: Number type and number of axes of the tensors that the reader interprets, by the first word of their name.
KINDS = {
    "actions": (np.dtype("<f4"), 2),
    "rewards": (np.dtype("<f4"), 1),
    "terminated": (np.dtype(bool), 1),
    "state": (np.dtype("<f4"), 2),
    "frames": (np.dtype("u1"), 4),
    "jpeg": (np.dtype("u1"), 1),
    "offsets": (np.dtype("<i8"), 1),
}
_LARGEST_HEADER = 100_000_000  # the limit of the safetensors library
_ADVICE = "copy or convert it again"


@dataclass(frozen=True)
class Tensor:
    """One tensor of a shard: its type and shape, and its first and last byte in the file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def rows(self, first: int, last: int) -> tuple[int, int]:
        """Return the range of bytes of the rows from ``first`` to before ``last``."""
        return self.start + first * self.row_bytes, self.start + last * self.row_bytes

    def array(self, content: np.ndarray) -> np.ndarray:
        """Return bytes uint8 ``[n]`` of whole rows as an array of this tensor's type and row shape."""
        return content.view(self.dtype).reshape(-1, *self.shape[1:])


def encoded_header(tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> bytes:
    """Return the header of a safetensors file that holds ``tensors`` one after the other."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries: dict[str, Any] = {"__metadata__": {"format": FORMAT}}
    position = 0
    for name, (dtype, shape) in tensors.items():
        end = position + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def read_header(
    read: Callable[[int, int], bytes], size: int, name: str, *, form: str | None = FORMAT
) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Args:
        read: returns the bytes from one position to another.
        size: of the file.
        name: of the file, for errors.
        form: that the file must say it has; None: any.

    Raises:
        UserError: the file is damaged, or its length is not that of its tensors.
    """
    with reading(name, _ADVICE):
        (length,) = struct.unpack("<Q", read(0, 8))
        if not 2 <= length <= min(size, _LARGEST_HEADER):
            raise ValueError(f"its header cannot have {length} bytes")
        entries = json.loads(read(8, 8 + length))
        if form not in (None, entries.pop("__metadata__", {}).get("format")):
            raise ValueError(f"it is not of format {form}")
        begin = 8 + length
        tensors = {key: _tensor(key, entry, begin) for key, entry in entries.items()}
    expected = max((tensor.stop for tensor in tensors.values()), default=begin)
    if size != expected:
        raise UserError(f"{name} has {size} bytes; expected {expected}: it was cut off; {_ADVICE}")
    return tensors


def _tensor(key: str, entry: Mapping[str, Any], begin: int) -> Tensor:
    """Return one tensor of a header; ``begin``: first byte of the data.

    Raises:
        Exception: of any kind, where the entry is damaged.
    """
    shape, (start, stop) = entry["shape"], entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)) or not shape:
        raise ValueError(f"{key} has the shape {shape} and the bytes {start} to {stop}")
    tensor = Tensor(DTYPES[entry["dtype"]], tuple(shape), begin + start, begin + stop)
    if tensor.rows(0, tensor.shape[0])[1] != tensor.stop:
        raise ValueError(f"{key} does not have the size of its shape")
    kind = KINDS.get(key.partition(".")[2].split(".")[0])
    if kind is not None and (tensor.dtype, len(shape)) != kind:
        raise ValueError(f"{key} has type {tensor.dtype} and {len(shape)} axes; expected {kind[0]} and {kind[1]}")
    return tensor


def checksum(arrays: Mapping[str, np.ndarray]) -> int:
    """Return the CRC-32 of one episode's arrays and their names without the group; JPEG offsets start at 0."""
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(np.ascontiguousarray(arrays[name]).data, total)
    return total


def raw_name(camera: str) -> str:
    """Return the name of the tensor of raw frames, uint8 ``[n h w 3]``."""
    return f"frames.{camera}"


def jpeg_name(camera: str) -> str:
    """Return the name of the tensor of JPEG files end to end, uint8 ``[bytes]``."""
    return f"jpeg.{camera}"


def offsets_name(camera: str) -> str:
    """Return the name of the tensor with the first byte of each JPEG file, int64 ``[n + 1]``."""
    return f"offsets.{camera}"


def array_name(name: str) -> str:
    """Return the name of the tensor of another array with one row a frame."""
    return f"array.{name}"


def pyarrow() -> Any:
    """Return the package pyarrow with its parquet module.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pyarrow as package
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("pyarrow", "data") from error
    return package


def read_table(content: bytes) -> Any:
    """Return the table of a Parquet file.

    It is read by this thread alone and without reading ahead: Arrow's threads, beside those of torch, sometimes abort a
    process that ends soon after.

    Raises:
        Exception: of any kind, where the file is damaged.
    """
    arrow = pyarrow()
    file = arrow.parquet.ParquetFile(arrow.BufferReader(content), pre_buffer=False)
    if file.metadata.num_rows > len(content):  # each row has a checksum, which cannot be compressed
        raise ValueError(f"it declares {file.metadata.num_rows} rows in {len(content)} bytes")
    return file.read(use_threads=False)


def simplejpeg() -> Any:
    """Return the package simplejpeg.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import simplejpeg as package
    except ModuleNotFoundError as error:
        raise MissingExtraError("simplejpeg", "data") from error
    return package


def index_schema() -> Any:
    """Return the columns of the index, as a ``pyarrow.Schema``."""
    arrow = pyarrow()
    camera = arrow.struct(
        [
            ("name", arrow.string()),
            ("height", arrow.int32()),
            ("width", arrow.int32()),
            ("encoding", arrow.string()),  # "raw" or "jpeg"
            ("fast", arrow.bool_()),  # decode with the fast inverse transform
        ]
    )
    return arrow.schema(
        [
            ("key", arrow.string()),
            ("split", arrow.string()),
            ("number", arrow.int64()),  # official number in its split, or null
            ("shard", arrow.string()),  # file name in shards/
            ("group", arrow.int32()),
            ("first", arrow.int64()),  # row of its first frame in the tensors of its group
            ("length", arrow.int64()),  # frames
            ("camera", arrow.string()),  # name of the main camera
            ("cameras", arrow.list_(camera)),
            ("fps", arrow.float64()),
            ("text", arrow.string()),
            ("meta", arrow.string()),  # JSON
            ("crc32", arrow.uint32()),
        ]
    )
