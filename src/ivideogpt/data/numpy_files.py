"""Arrays of ``.npy`` and ``.npz`` files; the size that a file declares is checked before memory is taken.

    actions = read_npy("actions.npy")
    with NumpyArchive("episode.npz") as archive:
        shape, dtype = archive.header("frames")
        frames = archive.read("frames")

Python objects are never unpickled.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy_format

from ivideogpt.core.errors import UserError
from ivideogpt.core.reading import check_is_file, check_unpacked_size, local_path, reading

_CHUNK = 2**20
_HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those of numpy; others unpack without a limit


def read_npy(path: str | Path) -> np.ndarray:
    """Load the array of an ``.npy`` file.

    Raises:
        UserError: the file is missing or damaged, is not as long as its header says, or holds Python objects.
    """
    path = local_path(path)
    check_is_file(path, ".npy file")
    with (
        reading(path, "save it again with numpy.save", fault="is not a readable .npy file"),
        path.open("rb") as file,
    ):
        shape, fortran_order, dtype = _read_header(file, str(path))
        length = path.stat().st_size - file.tell()
        return _read_array(file, shape, fortran_order, dtype, length)


class NumpyArchive:
    """The named arrays of an ``.npz`` file, for a ``with`` block.

    Attributes:
        path: of the file.
        names: of its arrays, in order.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file and read its directory.

        Raises:
            UserError: the file is missing, damaged, or not an ``.npz`` file.
        """
        self.path = local_path(path)
        check_is_file(self.path, ".npz file")
        with reading(self.path, "save it again with numpy.savez", fault="is not a readable .npz file"):
            with self.path.open("rb") as file:
                is_bare = file.read(len(npy_format.MAGIC_PREFIX)) == npy_format.MAGIC_PREFIX
            if is_bare:
                raise UserError(
                    f"{self.path} holds one bare array; expected a .npz of named arrays; save it with numpy.savez"
                )
            self._zip = zipfile.ZipFile(self.path)
            entries = [entry for entry in self._zip.infolist() if entry.filename.endswith(".npy")]
        self._entries = {entry.filename.removesuffix(".npy"): entry for entry in entries}
        self.names = tuple(self._entries)
        if len(self.names) < len(entries):
            self._zip.close()
            raise UserError(f"{self.path} holds two arrays of one name; save it again with numpy.savez")

    def __enter__(self) -> NumpyArchive:
        return self

    def __exit__(self, *error: object) -> None:
        self._zip.close()

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape and number type of an array without reading it.

        Raises:
            UserError: there is no such array, or it is damaged.
        """
        with self._reading(name), self._zip.open(self._entry(name)) as file:
            shape, _, dtype = _read_header(file, f"array {name!r} of {self.path}")
            return shape, dtype

    def read(self, name: str) -> np.ndarray:
        """Load an array.

        Raises:
            UserError: there is no such array, it is damaged, declares another size than its bytes have, or holds
                Python objects.
        """
        label = f"array {name!r} of {self.path}"
        with self._reading(name):
            entry = self._entry(name)
            with self._zip.open(entry) as file:
                shape, fortran_order, dtype = _read_header(file, label)
                if dtype.hasobject:
                    raise UserError(
                        f"{label} holds Python objects, which are never unpickled; save it as plain numbers"
                    )
                check_unpacked_size(label, unpacked=entry.file_size, stored=entry.compress_size)
                return _read_array(file, shape, fortran_order, dtype, entry.file_size - file.tell())

    def _reading(self, name: str):
        return reading(f"array {name!r} of {self.path}", "copy or record the file again")

    def _entry(self, name: str) -> zipfile.ZipInfo:
        if name not in self._entries:
            names = ", ".join(self.names) or "nothing"
            raise UserError(f"{self.path} has no array {name!r}; it has {names}: give one as camera_key")
        entry = self._entries[name]
        if entry.compress_type not in _ZIP_METHODS:
            raise UserError(f"{self.path} is packed in an unusual way; save it again with numpy.savez")
        return entry


def _read_header(file: IO[bytes], label: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy_format.read_magic(file)
    if version not in _HEADERS:
        raise UserError(f"{label} holds a table of named columns; save it as plain numbers")
    return _HEADERS[version](file)


def _read_array(
    file: IO[bytes], shape: tuple[int, ...], fortran_order: bool, dtype: np.dtype, length: int
) -> np.ndarray:
    """Return the array that follows its header; ``length`` bytes are left in the file."""
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never unpickled; save plain numbers")
    expected = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or expected != length:
        raise ValueError(f"its header declares {expected} bytes of data, but the file has {length}")
    content = np.empty(expected, np.uint8)
    position = 0
    while position < expected:
        chunk = file.read(min(_CHUNK, expected - position))
        if not chunk:
            raise ValueError(f"it ends after {position} of {expected} bytes")
        content[position : position + len(chunk)] = np.frombuffer(chunk, np.uint8)
        position += len(chunk)
    file.read(1)  # at the end, a zip file compares its checksum
    array = content.view(dtype) if expected else np.empty(0, dtype)
    return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)
