"""Ranges of bytes of the files of a store: by memory map on this machine, through fsspec from elsewhere."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.core.reading import check_is_file, local_path, reading
from ivideogpt.data.store.format import SHARDS, Tensor, read_header
from ivideogpt.data.store.remote_folder import RemoteFolder

# A memory map keeps its file open.
_MOST_OPEN = 128
_ADVICE = "copy or convert it again"


class StoreFolder(Protocol):
    """The folder of a store, here or elsewhere."""

    name: str

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading."""
        ...

    def size(self, path: str) -> int:
        """Return the bytes of a file."""
        ...

    def ranges(self, path: str, wanted: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Return ranges of bytes of a file, uint8 ``[n]`` each; they may be read-only."""
        ...


class LocalFolder:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._folder = folder
        self._maps: OrderedDict[str, np.ndarray] = OrderedDict()

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading; a FIFO or a device is refused."""
        file = self._folder / path
        if file.exists():
            check_is_file(file, "file of a store")
        return file.open("rb")

    def size(self, path: str) -> int:
        """Return the bytes of a file."""
        return (self._folder / path).stat().st_size

    def ranges(self, path: str, wanted: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Return ranges of bytes of a file as views of its memory map."""
        content = self._maps.get(path)
        if content is None:
            with self.open(path) as file:
                content = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            self._maps[path] = content
            if len(self._maps) > _MOST_OPEN:
                self._maps.popitem(last=False)
        return [content[start:stop] for start, stop in wanted]


def open_folder(folder: str | Path) -> StoreFolder:
    """Return the folder at a path or URL.

    Raises:
        UserError: the path cannot be that of a folder, or no installed package can reach the URL.
    """
    return RemoteFolder(str(folder)) if "://" in str(folder) else LocalFolder(local_path(folder))


class Shards:
    """The shards of a store: the tensors of each, and ranges of their bytes."""

    def __init__(self, folder: StoreFolder) -> None:
        self._folder = folder
        self._headers: OrderedDict[str, dict[int, dict[str, Tensor]]] = OrderedDict()

    def path(self, shard: str) -> str:
        """Return the path of a shard, for errors."""
        return f"{self._folder.name}/{SHARDS}/{shard}"

    def groups(self, shard: str) -> dict[int, dict[str, Tensor]]:
        """Return the tensors of each group of a shard, by their names without the group.

        Raises:
            UserError: the shard is missing, damaged or cut off.
        """
        if shard in self._headers:
            return self._headers[shard]
        file = f"{SHARDS}/{shard}"
        with reading(self.path(shard), _ADVICE, fault="cannot be read"):
            size = self._folder.size(file)
            if not size:
                raise UserError(f"{self.path(shard)} is empty; {_ADVICE}")
            tensors = read_header(
                lambda start, stop: self._folder.ranges(file, [(start, stop)])[0].tobytes(), size, self.path(shard)
            )
        groups: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            group, _, kind = name.partition(".")
            groups.setdefault(int(group) if group.isdecimal() else -1, {})[kind] = tensor
        self._headers[shard] = groups
        if len(self._headers) > _MOST_OPEN:
            self._headers.popitem(last=False)
        return groups

    def read(self, shard: str, wanted: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Return ranges of bytes of a shard, uint8 ``[n]`` each.

        Raises:
            UserError: they cannot be read.
        """
        with reading(self.path(shard), _ADVICE, fault="cannot be read"):
            contents = self._folder.ranges(f"{SHARDS}/{shard}", wanted)
        for content, (start, stop) in zip(contents, wanted, strict=True):
            if len(content) != stop - start:
                raise UserError(f"{self.path(shard)} was cut off while it was read; {_ADVICE}")
        return contents
