"""Reads ranges of bytes from the files of a store: by memory map on this machine, through fsspec from elsewhere."""

from __future__ import annotations

import io
import mmap
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.data.store.format import SHARDS, Tensor, read_header

# A memory map holds a file open.
_MOST_OPEN = 128


class Place(Protocol):
    """Where a store lies."""

    name: str

    def open(self, path: str) -> BinaryIO:
        """A whole file."""
        ...

    def size(self, path: str) -> int:
        """Bytes of a file."""
        ...

    def ranges(self, path: str, wanted: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Some ranges of a file, uint8 ``[n]`` each; they may be read-only."""
        ...


class LocalPlace:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._folder = folder
        self._maps: OrderedDict[str, np.ndarray] = OrderedDict()

    def open(self, path: str) -> BinaryIO:
        """A whole file."""
        return (self._folder / path).open("rb")

    def size(self, path: str) -> int:
        """Bytes of a file."""
        return (self._folder / path).stat().st_size

    def ranges(self, path: str, wanted: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Some ranges of a file, as views of its memory map."""
        content = self._maps.get(path)
        if content is None:
            with self.open(path) as file:
                content = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            self._maps[path] = content
            if len(self._maps) > _MOST_OPEN:
                self._maps.popitem(last=False)
        return [content[start:stop] for start, stop in wanted]


class RemotePlace:
    """A folder that fsspec can reach, for example ``s3://bucket/store``."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ModuleNotFoundError as error:
            raise MissingExtraError("fsspec", "data") from error
        self.name = url.rstrip("/")
        try:
            self._files: Any
            self._files, root = fsspec.url_to_fs(self.name)
        except (ImportError, ValueError) as error:
            raise UserError(f"{url} cannot be read ({error}); install what it needs, or copy the store here") from error
        self._root = str(root).rstrip("/")

    def open(self, path: str) -> BinaryIO:
        """A whole file."""
        return io.BytesIO(self._files.cat_file(f"{self._root}/{path}"))

    def size(self, path: str) -> int:
        """Bytes of a file."""
        return int(self._files.size(f"{self._root}/{path}"))

    def ranges(self, path: str, wanted: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Some ranges of a file, asked for together."""
        asked = [(start, stop) for start, stop in wanted if stop > start]
        names = [f"{self._root}/{path}"] * len(asked)
        starts, stops = [start for start, _ in asked], [stop for _, stop in asked]
        found = iter(self._files.cat_ranges(names, starts, stops, on_error="raise") if asked else [])
        return [np.frombuffer(next(found) if stop > start else b"", np.uint8) for start, stop in wanted]


def place_of(folder: str | Path) -> Place:
    """Where a folder or URL leads."""
    return RemotePlace(str(folder)) if "://" in str(folder) else LocalPlace(Path(folder))


class Shards:
    """The shards of a store: the tensors of each, and their bytes."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._headers: OrderedDict[str, dict[int, dict[str, Tensor]]] = OrderedDict()

    def path(self, shard: str) -> str:
        """What errors call a shard."""
        return f"{self._place.name}/{SHARDS}/{shard}"

    def groups(self, shard: str) -> dict[int, dict[str, Tensor]]:
        """The tensors of each group of a shard, by their names without the group.

        Raises:
            UserError: it is missing, damaged or cut off.
        """
        found = self._headers.get(shard)
        if found is not None:
            return found
        file = f"{SHARDS}/{shard}"
        try:
            size = self._place.size(file)
            if not size:
                raise UserError(f"{self.path(shard)} is empty; copy or convert it again")
            tensors = read_header(
                lambda start, stop: self._place.ranges(file, [(start, stop)])[0].tobytes(), size, self.path(shard)
            )
        except OSError as error:
            raise UserError(f"{self.path(shard)} cannot be read ({error}); copy or convert it again") from error
        found = self._headers[shard] = {}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            found.setdefault(int(group) if group.isdecimal() else -1, {})[rest] = tensor
        if len(self._headers) > _MOST_OPEN:
            self._headers.popitem(last=False)
        return found

    def read(self, shard: str, wanted: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Some ranges of bytes of a shard.

        Raises:
            UserError: they cannot be read.
        """
        try:
            found = self._place.ranges(f"{SHARDS}/{shard}", wanted)
        except OSError as error:
            raise UserError(f"{self.path(shard)} cannot be read ({error}); copy or convert it again") from error
        for content, (start, stop) in zip(found, wanted, strict=True):
            if len(content) != stop - start:
                raise UserError(f"{self.path(shard)} was cut off while it was read; copy or convert it again")
        return found
