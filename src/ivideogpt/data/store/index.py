"""The index of a store in memory: columns that every clip needs as arrays, the others as the Parquet table."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np

from ivideogpt.core.config import from_dict
from ivideogpt.core.errors import UserError
from ivideogpt.core.reading import reading
from ivideogpt.data.store import format as store_format
from ivideogpt.data.store.byte_ranges import StoreFolder
from ivideogpt.data.store.metadata import IndexFacts

_MAY_BE_NULL = ("number", "fps", "text")
_LARGEST_SIDE = 65_535  # of a frame, in pixels: the limit of JPEG
_ADVICE = "copy it, or convert again"


class Location(NamedTuple):
    """The rows of an episode in the tensors of its group.

    Attributes:
        index: number of the episode.
        shard: file name in ``shards/``.
        group: number of the group.
        first: row of its first frame.
        length: frames.
    """

    index: int
    shard: str
    group: int
    first: int
    length: int


class Camera(NamedTuple):
    """A camera of an episode and the encoding of its frames.

    Attributes:
        name: of the camera.
        height, width: of its frames, in pixels.
        encoding: "raw" or "jpeg".
        fast: decode with the fast inverse transform.
    """

    name: str
    height: int
    width: int
    encoding: str
    fast: bool


class StoreIndex:
    """The rows of ``index.parquet``, one for each episode.

    Attributes:
        table: all columns, a ``pyarrow.Table``.
        facts: the description of the store.
        lengths, firsts, groups: the columns "length", "first" and "group", int ``[n]``.
        shards: the file names in ``shards/``.
        shard_of: position of each episode's file in ``shards``, int ``[n]``.
    """

    def __init__(self, folder: StoreFolder) -> None:
        """Load and check the index of the store in ``folder``.

        Raises:
            UserError: there is no finished store, or its index is damaged.
        """
        self._path = f"{folder.name}/{store_format.INDEX}"
        store_format.pyarrow()  # a missing package is reported before a missing file
        with reading(self._path, _ADVICE, fault="cannot be read"):
            self.table, self.facts = _load(folder, self._path)
            self.lengths: np.ndarray = self.table["length"].to_numpy()
            self.firsts: np.ndarray = self.table["first"].to_numpy()
            self.groups: np.ndarray = self.table["group"].to_numpy()
            self.shards, self.shard_of = _dictionary(self.table["shard"].combine_chunks())
            self._main_cameras, self._main_camera_of = _dictionary(self.table["camera"].combine_chunks())
            cameras = self.table["cameras"].combine_chunks()
            self._camera_ends: np.ndarray = cameras.offsets.to_numpy()
            fields = {field.name: cameras.values.field(field.name) for field in cameras.type.value_type}
            self._names, self._name_of = _dictionary(fields["name"])
            self._encodings, self._encoding_of = _dictionary(fields["encoding"])
            self._heights, self._widths, self._fast = (
                fields[name].to_numpy(zero_copy_only=False) for name in ("height", "width", "fast")
            )
            self._check(any(field.null_count for field in fields.values()))

    def location(self, index: int) -> Location:
        """Return the location of episode ``index`` (from 0)."""
        return Location(
            index,
            self.shards[self.shard_of[index]],
            int(self.groups[index]),
            int(self.firsts[index]),
            int(self.lengths[index]),
        )

    def key(self, index: int) -> str:
        """Return the official name of an episode."""
        return self.table["key"][index].as_py()

    def meta(self, index: int) -> dict[str, Any]:
        """Return the meta of an episode, plain JSON values.

        Raises:
            UserError: it is damaged.
        """
        with reading(f"the meta of episode {self.key(index)!r} in {self._path}", _ADVICE):
            return dict(json.loads(self.table["meta"][index].as_py()))

    def main_camera(self, index: int) -> str:
        """Return the name of the camera that the catalogue uses."""
        return self._main_cameras[self._main_camera_of[index]]

    def cameras(self, index: int) -> list[Camera]:
        """Return the cameras of an episode."""
        return [
            Camera(
                self._names[self._name_of[place]],
                int(self._heights[place]),
                int(self._widths[place]),
                self._encodings[self._encoding_of[place]],
                bool(self._fast[place]),
            )
            for place in range(self._camera_ends[index], self._camera_ends[index + 1])
        ]

    def _check(self, has_nulls: bool) -> None:
        """Refuse values that no store has.

        Raises:
            ValueError: names the column.
        """
        missing = [name for name in self.table.column_names if self.table[name].null_count]
        if has_nulls or (missing := sorted(set(missing) - set(_MAY_BE_NULL))):
            raise ValueError(f"it has no value for {', '.join(missing) or 'a camera'} in some episode")
        sizes = np.concatenate([self._heights, self._widths])
        in_range = {
            "length": np.all(self.lengths >= 1),
            "first": np.all(self.firsts >= 0) and np.all(self.firsts < 2**62 - self.lengths),
            "group": np.all(self.groups >= 0),
            "size of a camera": np.all((sizes >= 1) & (sizes <= _LARGEST_SIDE)),
            "encoding": set(self._encodings) <= {"raw", "jpeg"},
            "shard": not any("/" in name or "\\" in name or name in ("", ".", "..") for name in self.shards),
        }
        if wrong := [name for name, holds in in_range.items() if not holds]:
            raise ValueError(f"it has an impossible {wrong[0]} of an episode")
        if (self.facts.episodes, self.facts.frames) != (len(self.lengths), int(self.lengths.sum())):
            raise ValueError(
                f"it lists {len(self.lengths)} episodes of {int(self.lengths.sum())} frames, but says that it has "
                f"{self.facts.episodes} of {self.facts.frames}"
            )


def _dictionary(column: Any) -> tuple[list[str], np.ndarray]:
    """Return the different values of a column of text, and the position of each row's value among them."""
    encoded = column.dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _load(folder: StoreFolder, path: str) -> tuple[Any, IndexFacts]:
    try:
        with folder.open(store_format.INDEX) as file:
            table = store_format.read_table(file.read())
    except (FileNotFoundError, NotADirectoryError):
        # The Hub does not tell a private repository from a missing one.
        private = " (a private repository needs HF_TOKEN)" if folder.name.startswith("hf://") else ""
        raise UserError(
            f"{folder.name} has no {store_format.INDEX}; expected a store whose conversion is finished{private}"
        ) from None
    facts = json.loads((table.schema.metadata or {}).get(store_format.FACTS_KEY, b"{}"))
    if not isinstance(facts, dict) or facts.get("format") != store_format.FORMAT:
        stated = facts.get("format") if isinstance(facts, dict) else None
        raise UserError(f"{path} is of format {stated!r}; expected {store_format.FORMAT!r}")
    schema = store_format.index_schema()
    if missing := [name for name in schema.names if name not in table.column_names]:
        raise UserError(f"{path} has no column {missing[0]!r}; {_ADVICE}")
    return table.select(schema.names).cast(schema).combine_chunks(), from_dict(IndexFacts, facts, where=path)
