"""Episodes in a folder of standard files, for training: any clip is read without reading the rest.

    store = EpisodeStore("stores/bridge")        # or a URL that fsspec knows
    episode = store[12]                          # an Episode, frames uint8 [t h w 3]
    clip = store.clip(12, range(40, 56))         # 16 frames of it
    store.verify()                               # every byte is as it was written

``store_writer.convert_to_store`` makes one; docs/data.md describes the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.data.convert.jpeg import decode_jpeg
from ivideogpt.data.store import format as form
from ivideogpt.data.store.byte_ranges import Shards, place_of
from ivideogpt.data.store.index import Camera, Entry, StoreIndex

_TRANSITIONS = ("actions", "rewards", "terminated")


class EpisodeStore(Sequence[Episode]):
    """A converted dataset: its episodes in their official order."""

    def __init__(self, folder: str | Path) -> None:
        """Reads the index.

        Args:
            folder: of the store, or a URL that fsspec knows.

        Raises:
            UserError: there is no finished store, or its index is damaged.
        """
        self.folder = str(folder)
        self._place = place_of(folder)
        self._shards = Shards(self._place)
        self._index = StoreIndex(self._place)
        self._table, self.facts = self._index.table, self._index.facts

    def __reduce__(self) -> tuple[type[EpisodeStore], tuple[str]]:
        # A worker process opens the store anew: memory maps and connections do not travel.
        return EpisodeStore, (self.folder,)

    def __repr__(self) -> str:
        return f"EpisodeStore({self.folder!r}): {len(self)} episodes of {self.facts.dataset.name}"

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self._index.lengths)

    def __getitem__(self, index: int) -> Episode:  # pyright: ignore[reportIncompatibleMethodOverride]  no slices
        """The whole episode at ``index``; -1 is the last.

        Raises:
            IndexError: there is none.
            UserError: its file is damaged.
        """
        return self._episode(self._entry(index), None, None)

    @cached_property
    def keys(self) -> list[str]:
        """The official name of each episode."""
        return self._table["key"].to_pylist()

    @cached_property
    def splits(self) -> list[str]:
        """The split of each episode."""
        return self._table["split"].to_pylist()

    @property
    def lengths(self) -> np.ndarray:
        """Frames of each episode, int64 ``[n]``."""
        return self._index.lengths

    @property
    def rates(self) -> np.ndarray:
        """Frames a second of each episode, float64 ``[n]``; NaN where its source does not say."""
        return self._table["fps"].to_numpy()

    @cached_property
    def num_bytes(self) -> int:
        """What index and shards take on disk."""
        return sum(self._place.size(path) for path in [form.INDEX, *(f"{form.SHARDS}/{name}" for name in self.shards)])

    @property
    def shards(self) -> list[str]:
        """The files in ``shards/`` that hold the episodes."""
        return list(self._index.shards)

    @property
    def shard_numbers(self) -> np.ndarray:
        """The place of each episode's file in ``shards``, int ``[n]``."""
        return self._index.shard_of

    def find(self, key: str, split: str | None = None) -> int:
        """The index of an episode.

        Args:
            key: its name.
            split: where two splits use one name.

        Raises:
            UserError: there is none, or several.
        """
        found = [i for i, name in enumerate(self.keys) if name == key and split in (None, self.splits[i])]
        if not found:
            raise UserError(f"{self.folder} has no episode {key!r}; its first is {self.keys[0]!r}")
        if len(found) > 1:
            splits = ", ".join(self.splits[i] for i in found)
            raise UserError(f"{self.folder} has an episode {key!r} in each of {splits}; give the split")
        return found[0]

    def info(self, index: int) -> dict[str, Any]:
        """The row of the index: key, split, number, shard, cameras, fps, text, meta and others; reads no shard."""
        row = self._table.slice(self._entry(index).index, 1).to_pylist()[0]
        return row | {"meta": json.loads(row["meta"])}

    def camera(self, index: int, name: str, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Frames uint8 ``[t h w 3]`` of one camera, all or some of them.

        Raises:
            UserError: the episode has no such camera or row, or the file is damaged.
        """
        entry = self._entry(index)
        return self._arrays(entry, (), self._chosen(entry, rows), self._camera(entry, name))["frames"]

    def array(self, index: int, name: str) -> np.ndarray:
        """Another array of the episode, one row a frame.

        Raises:
            UserError: the episode has none of that name, or the file is damaged.
        """
        entry = self._entry(index)
        tensors = self._tensors(entry)
        if form.array_name(name) not in tensors:
            known = [key.removeprefix("array.") for key in tensors if key.startswith("array.")]
            raise UserError(f"{self._named(entry)} has no array {name!r}; it has {', '.join(known) or 'none'}")
        return self._rows(entry, {name: tensors[form.array_name(name)]}, self._chosen(entry, None))[name]

    def has(self, index: int, name: str) -> bool:
        """Whether an episode has "actions", "rewards", "terminated" or "state"; reads no more than a file's header."""
        return name in self._tensors(self._entry(int(index)))

    def clip(self, index: int, rows: Sequence[int] | np.ndarray | None = None, *, camera: str | None = None) -> Episode:
        """Some frames of an episode with their rows; the last action row becomes padding again.

        Args:
            index: of the episode.
            rows: frames in any order, for example ``range(40, 56)``; what lies between the first and the last is one
                range of bytes, and nothing else is read. None: all.
            camera: default: the one that the catalogue uses.

        Raises:
            UserError: the episode has no such row, or the file is damaged.
        """
        return self._episode(self._entry(index), rows, camera)

    def arrays(
        self,
        index: int,
        names: Iterable[str],
        rows: Sequence[int] | np.ndarray | None = None,
        *,
        camera: str | None = None,
    ) -> dict[str, np.ndarray]:
        """Some frames of an episode and only those of their rows that are wanted, as arrays of their own.

        Args:
            index: of the episode.
            names: of "actions", "rewards", "terminated" and "state"; one that the episode does not have is left out.
            rows: frames in any order; None: all.
            camera: default: the one that the catalogue uses.

        Returns:
            "frames", uint8 ``[t h w 3]``, and the arrays by their names, the rows as they were recorded.

        Raises:
            UserError: the episode has no such row or camera, or the file is damaged.
        """
        entry = self._entry(index)
        return self._arrays(entry, names, self._chosen(entry, rows), self._camera(entry, camera))

    def check(self) -> None:
        """Checks that every shard is there and holds the episodes that the index says; reads no episode.

        Raises:
            UserError: names the first file and episode that is wrong.
        """
        for index in self._by_shard(range(len(self))):
            self._tensors(self._entry(index))

    def verify(self, indices: Iterable[int] | None = None) -> None:
        """Checks every byte of some episodes, or of all, against the sums in the index.

        Raises:
            UserError: names the first file and episode that is damaged.
        """
        self.check()
        chosen = self._by_shard(range(len(self)) if indices is None else indices)
        sums = self._table["crc32"].to_numpy()
        for index in tqdm(chosen, desc=f"verifying {self.facts.dataset.name}", unit="episode", disable=None):
            entry = self._entry(index)
            if form.checksum(self._stored(entry)) != sums[index]:
                raise self._damaged(entry, "its bytes are not those that were written")

    def _by_shard(self, indices: Iterable[int]) -> list[int]:
        """In the order of the files."""
        index = self._index
        return sorted(indices, key=lambda i: (index.shard_of[i], index.groups[i], index.firsts[i]))

    def _entry(self, index: int) -> Entry:
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"{self.folder} has {len(self)} episodes; there is no episode {index}")
        return self._index.entry(place)

    def _tensors(self, entry: Entry) -> dict[str, form.Tensor]:
        """The tensors of the episode's group by their names without it."""
        try:
            found = self._shards.groups(entry.shard).get(entry.group)
        except UserError as error:
            raise UserError(f"{self._named(entry)} cannot be read: {error}") from error
        if found is None:
            raise self._damaged(entry, f"there is no group {entry.group}")
        for name, tensor in found.items():
            rows = tensor.shape[0] - name.startswith("offsets.")
            if entry.first + entry.length > rows and not name.startswith("jpeg."):
                raise self._damaged(entry, f"{name} ends at row {rows}")
        return found

    def _episode(self, entry: Entry, rows: Sequence[int] | np.ndarray | None, name: str | None) -> Episode:
        camera = self._camera(entry, name)
        arrays = self._arrays(entry, form.ROWS, self._chosen(entry, rows), camera)
        for label in _TRANSITIONS:
            if rows is not None and label in arrays:
                arrays[label][-1] = 0
        split, fps, text, meta = (
            self._table[column][entry.index].as_py() for column in ("split", "fps", "text", "meta")
        )
        facts = {"dataset": self.facts.dataset.name, "camera": camera.name, "fps": fps, "text": text}
        return Episode(key=self._index.key(entry.index), split=split, meta=json.loads(meta) | facts, **arrays)

    def _camera(self, entry: Entry, name: str | None) -> Camera:
        """A camera of the episode; None: the one that the catalogue uses."""
        name = self._index.main_camera(entry.index) if name is None else name
        cameras = self._index.cameras(entry.index)
        for camera in cameras:
            if camera.name == name:
                return camera
        known = ", ".join(camera.name for camera in cameras)
        raise UserError(f"{self._named(entry)} has no camera {name!r}; it has {known}")

    def _chosen(self, entry: Entry, rows: Sequence[int] | np.ndarray | None) -> np.ndarray:
        """Rows that the episode has, int ``[t]``; None: all.

        Raises:
            UserError: one is outside, or there are none.
        """
        chosen = np.arange(entry.length) if rows is None else np.asarray(rows)
        if not len(chosen):
            raise UserError(f"no frames were asked of {self._named(entry)}; give at least one row")
        if chosen.min() < 0 or chosen.max() >= entry.length:
            raise UserError(
                f"frames {chosen.min()} to {chosen.max()} were asked of {self._named(entry)}, which has {entry.length}"
            )
        return chosen

    def _arrays(self, entry: Entry, names: Iterable[str], rows: np.ndarray, camera: Camera) -> dict[str, np.ndarray]:
        """Frames, and rows of those named tensors of the episode that there are."""
        there = self._tensors(entry)
        tensors = {name: there[name] for name in names if name in there}
        if camera.encoding == "raw":
            tensors["frames"] = self._tensor(entry, form.raw_name(camera.name))
        arrays = self._rows(entry, tensors, rows)
        if camera.encoding != "raw":
            arrays["frames"] = self._decoded(entry, camera, rows)
        return arrays

    def _rows(self, entry: Entry, tensors: dict[str, form.Tensor], rows: np.ndarray) -> dict[str, np.ndarray]:
        """Copies of rows of tensors of the episode; all ranges are asked for together."""
        low, high = int(rows.min()), int(rows.max()) + 1
        wanted = [tensor.rows(entry.first + low, entry.first + high) for tensor in tensors.values()]
        found = self._shards.read(entry.shard, wanted)
        return {
            name: tensor.array(content).take(rows - low, axis=0)
            for (name, tensor), content in zip(tensors.items(), found, strict=True)
        }

    def _decoded(self, entry: Entry, camera: Camera, rows: np.ndarray) -> np.ndarray:
        """Frames that are stored as JPEG files."""
        low, high = int(rows.min()), int(rows.max()) + 1
        offsets, blob = self._files(entry, camera.name, low, high)
        frames = np.empty((len(rows), camera.height, camera.width, 3), np.uint8)
        for place, row in enumerate(rows.tolist()):
            file = blob[offsets[row - low] : offsets[row - low + 1]].tobytes()
            try:
                decode_jpeg(file, fast=camera.fast, out=frames[place])
            except MissingExtraError:
                raise
            except UserError as error:
                raise self._damaged(entry, f"frame {row}: {error}") from error
        return frames

    def _files(self, entry: Entry, camera: str, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """JPEG files of some frames end to end, and where each begins; the first begins at 0."""
        offsets = self._tensor(entry, form.offsets_name(camera))
        files = self._tensor(entry, form.jpeg_name(camera))
        (content,) = self._shards.read(entry.shard, [offsets.rows(entry.first + low, entry.first + high + 1)])
        begins = offsets.array(content)
        if begins[0] < 0 or (np.diff(begins) < 0).any() or begins[-1] > files.shape[0]:
            raise self._damaged(entry, f"the offsets of camera {camera!r} lead outside of it")
        (blob,) = self._shards.read(entry.shard, [files.rows(int(begins[0]), int(begins[-1]))])
        return begins - begins[0], blob

    def _tensor(self, entry: Entry, name: str) -> form.Tensor:
        """A tensor that the index says is there."""
        found = self._tensors(entry).get(name)
        if found is None:
            raise self._damaged(entry, f"there is no {name}")
        return found

    def _stored(self, entry: Entry) -> dict[str, np.ndarray]:
        """All arrays of an episode as they are stored, which its sum is made of."""
        tensors = self._tensors(entry)
        plain = {name: tensor for name, tensor in tensors.items() if not name.startswith(("jpeg.", "offsets."))}
        wanted = [tensor.rows(entry.first, entry.first + entry.length) for tensor in plain.values()]
        stored = dict(zip(plain, self._shards.read(entry.shard, wanted), strict=True))
        for name in tensors:
            if name.startswith("jpeg."):
                camera = name.removeprefix("jpeg.")
                stored[form.offsets_name(camera)], stored[name] = self._files(entry, camera, 0, entry.length)
        return stored

    def _damaged(self, entry: Entry, why: str) -> UserError:
        path = self._shards.path(entry.shard)
        return UserError(f"{self._named(entry)} in {path} is damaged ({why}); copy or convert the file again")

    def _named(self, entry: Entry) -> str:
        """What errors call an episode."""
        return f"episode {self._index.key(entry.index)!r}"
