"""The index of a store in memory: what reading a clip needs is kept as arrays, the rest as the table it came in."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np

from ivideogpt.core.config import from_dict
from ivideogpt.core.errors import UserError
from ivideogpt.data.store import format as form
from ivideogpt.data.store.byte_ranges import Place
from ivideogpt.data.store.metadata import IndexFacts


class Entry(NamedTuple):
    """Where an episode lies: its rows in the tensors of its group.

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
    """How the frames of a camera are stored.

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
    """One row an episode.

    Attributes:
        table: all of it, a ``pyarrow.Table``.
        facts: about the store as a whole.
        lengths, firsts, groups: the columns "length", "first" and "group", int ``[n]``.
        shards: the file names in ``shards/``.
        shard_of: the place of each episode's file in ``shards``, int ``[n]``.
    """

    def __init__(self, place: Place) -> None:
        """Reads the index of the store at ``place``.

        Raises:
            UserError: there is no finished store, or its index is damaged.
        """
        self.table, self.facts = _read(place)
        self.lengths: np.ndarray = self.table["length"].to_numpy()
        self.firsts: np.ndarray = self.table["first"].to_numpy()
        self.groups: np.ndarray = self.table["group"].to_numpy()
        self.shards, self.shard_of = _words(self.table["shard"].combine_chunks())
        self._main, self._main_of = _words(self.table["camera"].combine_chunks())
        cameras = self.table["cameras"].combine_chunks()
        self._ends: np.ndarray = cameras.offsets.to_numpy()
        fields = {field.name: cameras.values.field(field.name) for field in cameras.type.value_type}
        self._names, self._name_of = _words(fields["name"])
        self._encodings, self._encoding_of = _words(fields["encoding"])
        self._heights, self._widths, self._fast = (
            fields[name].to_numpy(zero_copy_only=False) for name in ("height", "width", "fast")
        )

    def entry(self, index: int) -> Entry:
        """Where episode ``index`` (from 0) lies."""
        return Entry(
            index,
            self.shards[self.shard_of[index]],
            int(self.groups[index]),
            int(self.firsts[index]),
            int(self.lengths[index]),
        )

    def key(self, index: int) -> str:
        """The official name of an episode."""
        return self.table["key"][index].as_py()

    def main_camera(self, index: int) -> str:
        """The name of the camera that the catalogue uses."""
        return self._main[self._main_of[index]]

    def cameras(self, index: int) -> list[Camera]:
        """The cameras of an episode."""
        return [
            Camera(
                self._names[self._name_of[place]],
                int(self._heights[place]),
                int(self._widths[place]),
                self._encodings[self._encoding_of[place]],
                bool(self._fast[place]),
            )
            for place in range(self._ends[index], self._ends[index + 1])
        ]


def _words(column: Any) -> tuple[list[str], np.ndarray]:
    """The different words of a column of text, and which of them each row has."""
    encoded = column.dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _read(place: Place) -> tuple[Any, IndexFacts]:
    form.pyarrow()  # what is missing here comes before what is missing there
    path = f"{place.name}/{form.INDEX}"
    try:
        with place.open(form.INDEX) as file:
            table = form.read_table(file.read())
        facts = json.loads((table.schema.metadata or {}).get(form.FACTS_KEY, b"{}"))
    except FileNotFoundError:
        raise UserError(f"{place.name} has no {form.INDEX}; expected a store whose conversion is finished") from None
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise UserError(f"{path} cannot be read ({error}); copy it or convert again") from error
    if facts.get("format") != form.FORMAT:
        raise UserError(f"{path} is of format {facts.get('format')!r}; expected {form.FORMAT!r}")
    return table.combine_chunks(), from_dict(IndexFacts, facts, where=path)
