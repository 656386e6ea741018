"""HDF5 files: opened and read by key, with errors that name the missing key and the available ones.

Nothing is read that lies outside of the file (external links, external storage, virtual arrays), and no array whose
declared size is far above what the file stores.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.core.reading import check_is_file, check_unpacked_size
from ivideogpt.data.convert.source_files import name_list, reading_file

if TYPE_CHECKING:
    import h5py

SUFFIXES = (".hdf5", ".h5")
_SIGNATURE, _LARGEST_USER_BLOCK = b"\x89HDF\r\n\x1a\n", 2**20
# A heap (a "global heap collection"): this, its bytes, then objects of a header of 16 bytes and data at multiples of 8.
_HEAP, _OBJECT_HEADER = b"GCOL\x01\0\0\0", 16


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading, for a ``with`` block; every error in the block names the file.

    Raises:
        MissingExtraError: h5py is not installed.
        UserError: the file, or a part that is read in the block, is damaged.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise MissingExtraError("h5py", "data") from error
    check_is_file(path, "HDF5 file")
    with reading_file(path, "HDF5 file"):
        status = path.stat()
        _check_heaps(path, status.st_size, status.st_mtime_ns)
        with h5py.File(path, "r") as file:
            yield file


@lru_cache(maxsize=1024)
def _check_heaps(path: Path, size: int, modified: int) -> None:
    """Check the heaps of texts and of arrays of variable length, in which the HDF5 library would loop for ever.

    Args:
        path: of the file.
        size: bytes of the file.
        modified: time of the file; a file that has not changed is checked once.

    Raises:
        ValueError: an object of a heap takes no bytes, or ends outside of its heap.
    """
    if not size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        begin = content.find(_SIGNATURE, 0, _LARGEST_USER_BLOCK)
        if begin < 0 or len(content) < begin + 15:
            return  # no HDF5 file; the library says so
        bytes_of_length = content[begin + (14 if content[begin + 8] < 2 else 10)]
        start = content.find(_HEAP) if bytes_of_length == 8 else -1
        while start >= 0:
            (heap_size,) = struct.unpack("<Q", content[start + 8 : start + 16])
            end, position = start + heap_size, start + _OBJECT_HEADER
            if end > len(content):
                raise ValueError("a heap ends outside of the file")
            while position + _OBJECT_HEADER <= end:
                index, _, stored = struct.unpack("<HxxIQ", content[position : position + _OBJECT_HEADER])
                step = _OBJECT_HEADER + -(-stored // 8) * 8 if index else stored
                if step < _OBJECT_HEADER or position + step > end:
                    raise ValueError(f"an object of a heap has {stored} bytes")
                position += step
            start = content.find(_HEAP, start + 8)


def group(parent: h5py.Group, key: str) -> h5py.Group:
    """Return the group of that name.

    Raises:
        UserError: there is no such group; the message names the available ones.
    """
    import h5py

    item = _item(parent, key)
    if not isinstance(item, h5py.Group):
        raise UserError(f"{_where(parent, key)} is an array; expected a group")
    return item


def dataset(parent: h5py.Group, key: str) -> h5py.Dataset:
    """Return the dataset of that name without reading it.

    Raises:
        UserError: there is no such dataset; the message names the available ones.
    """
    import h5py

    item = _item(parent, key)
    if not isinstance(item, h5py.Dataset):
        raise UserError(f"{_where(parent, key)} is a group; expected an array")
    return item


def array(parent: h5py.Group, key: str) -> np.ndarray:
    """Return the whole array of that name.

    Raises:
        UserError: as ``dataset``; the array lies in other files, or declares far more bytes than the file stores.
    """
    stored, where = dataset(parent, key), _where(parent, key)
    if stored.external or stored.is_virtual:
        raise UserError(f"{where} lies in other files, which are not read; copy the array into this file")
    check_unpacked_size(where, unpacked=int(stored.nbytes), stored=int(stored.id.get_storage_size()))
    return np.asarray(stored[()])


def attribute(item: h5py.Group | h5py.Dataset, name: str) -> Any:
    """Return an attribute.

    Raises:
        UserError: there is none of that name; the message names the available ones.
    """
    if name not in item.attrs:
        raise UserError(f"{item.file.filename}: {item.name} has no attribute {name!r}; it has {name_list(item.attrs)}")
    return item.attrs[name]


def count_attribute(item: h5py.Group | h5py.Dataset, name: str) -> int:
    """Return an attribute that counts something.

    Raises:
        UserError: there is none of that name, or it is no whole number of at least 0.
    """
    value = np.asarray(attribute(item, name))
    if value.size != 1 or value.dtype.kind not in "iu" or int(value.ravel()[0]) < 0:
        raise UserError(
            f"{item.file.filename}: {item.name} has {value.tolist()!r} as its attribute {name!r}; expected a number"
        )
    return int(value.ravel()[0])


def is_frames(values: np.ndarray | h5py.Dataset) -> bool:
    """Return whether an array holds RGB frames, uint8 ``[t h w 3]``."""
    return len(values.shape) == 4 and values.shape[3] == 3 and values.dtype == np.uint8 and 0 not in values.shape


def _item(parent: h5py.Group, key: str) -> Any:
    import h5py

    item: Any = parent
    for step, part in enumerate(key.split("/")):
        if not hasattr(item, "keys") or part not in item:
            available = name_list(item) if hasattr(item, "keys") else "an array"
            reached = "/".join(key.split("/")[:step]) or "it"
            raise UserError(f"{_where(parent, key)} is missing; {reached} holds {available}")
        if isinstance(item.get(part, getlink=True), h5py.ExternalLink):
            raise UserError(f"{_where(parent, key)} lies in another file, which is not read; copy it into this file")
        item = item[part]
    return item


def _where(parent: h5py.Group, key: str) -> str:
    return f"{parent.file.filename}: {str(parent.name).rstrip('/')}/{key}"
