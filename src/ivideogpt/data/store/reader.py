"""Reads an episode store: any clip is read without reading the rest.

    store = EpisodeStore("stores/bridge")        # or a URL that fsspec knows
    episode = store[12]                          # an Episode, frames uint8 [t h w 3]
    clip = store.clip(12, range(40, 56))         # 16 frames of it
    store.verify()                               # compare every byte with the checksums

``writer.convert_to_store`` makes a store; docs/data.md describes the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.core.reading import check_unpacked_size
from ivideogpt.data.convert.jpeg import decode_jpeg
from ivideogpt.data.store import format as store_format
from ivideogpt.data.store.byte_ranges import Shards, open_folder
from ivideogpt.data.store.format import Tensor
from ivideogpt.data.store.index import Camera, Location, StoreIndex

_TRANSITIONS = ("actions", "rewards", "terminated")
# Frames of one colour take a thousand times their JPEG files.
_JPEG_RATIO = 5


class EpisodeStore(Sequence[Episode]):
    """A converted dataset: its episodes in their official order.

    Attributes:
        folder: path or URL of the store.
        facts: description of the dataset, its cameras and its actions.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read the index.

        Args:
            folder: of the store, or a URL that fsspec knows.

        Raises:
            UserError: there is no finished store, or its index is damaged.
        """
        self.folder = str(folder)
        self._folder = open_folder(folder)
        self._shards = Shards(self._folder)
        self._index = StoreIndex(self._folder)
        self._table, self.facts = self._index.table, self._index.facts

    def __reduce__(self) -> tuple[type[EpisodeStore], tuple[str]]:
        # A worker process opens the store anew: memory maps and connections cannot be sent to it.
        return EpisodeStore, (self.folder,)

    @classmethod
    def from_hub(cls, repository: str, *, revision: str | None = None) -> EpisodeStore:
        """Open a store in a dataset repository of the Hugging Face Hub; only what is read is fetched.

        Args:
            repository: ``owner/name``, or ``owner/name/folder`` for a folder in it.
            revision: branch, tag or commit.

        Raises:
            UserError: there is no such store, or the Hub cannot be reached.
        """
        owner, name, *folder = repository.split("/")
        version = "" if revision is None else f"@{revision.replace('/', '%2F')}"
        return cls("/".join([f"hf://datasets/{owner}/{name}{version}", *folder]))

    def reopened(self) -> EpisodeStore:
        """Return the store opened again, for another process: memory maps and connections do not survive there."""
        return EpisodeStore(self.folder)

    def __repr__(self) -> str:
        return f"EpisodeStore({self.folder!r}): {len(self)} episodes of {self.facts.dataset.name}"

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self._index.lengths)

    def __getitem__(self, index: int) -> Episode:  # pyright: ignore[reportIncompatibleMethodOverride]  no slices
        """Return the whole episode ``index``; -1 is the last.

        Raises:
            IndexError: there is no such episode.
            UserError: its file is damaged.
        """
        return self._episode(self._location(index), None, None)

    # The whole store

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
        """Frames a second of each episode, float64 ``[n]``; NaN where its source does not state it."""
        return self._table["fps"].to_numpy()

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of the index and the shards."""
        paths = [store_format.INDEX, *(f"{store_format.SHARDS}/{name}" for name in self.shards)]
        return sum(self._folder.size(path) for path in paths)

    @property
    def shards(self) -> list[str]:
        """The files in ``shards/`` that hold the episodes."""
        return list(self._index.shards)

    @property
    def shard_numbers(self) -> np.ndarray:
        """Position of each episode's file in ``shards``, int ``[n]``."""
        return self._index.shard_of

    def find(self, key: str, split: str | None = None) -> int:
        """Return the index of an episode.

        Args:
            key: its name.
            split: needed where two splits use one name.

        Raises:
            UserError: there is no such episode, or there are several.
        """
        indices = [i for i, name in enumerate(self.keys) if name == key and split in (None, self.splits[i])]
        if not indices:
            raise UserError(f"{self.folder} has no episode {key!r}; its first is {self.keys[0]!r}")
        if len(indices) > 1:
            splits = ", ".join(self.splits[i] for i in indices)
            raise UserError(f"{self.folder} has an episode {key!r} in each of {splits}; give the split")
        return indices[0]

    def check(self) -> None:
        """Check that every shard exists and holds the episodes that the index lists; no episode is read.

        Raises:
            UserError: names the first file and episode that is wrong.
        """
        for index in self._by_shard(range(len(self))):
            self._tensors(self._location(index))

    def verify(self, indices: Iterable[int] | None = None) -> None:
        """Compare every byte of some episodes, or of all, with the checksums in the index.

        Raises:
            UserError: names the first file and episode that is damaged.
        """
        self.check()
        chosen = self._by_shard(range(len(self)) if indices is None else indices)
        checksums = self._table["crc32"].to_numpy()
        for index in tqdm(chosen, desc=f"verifying {self.facts.dataset.name}", unit="episode", disable=None):
            location = self._location(index)
            if store_format.checksum(self._stored_arrays(location)) != checksums[index]:
                raise self._damaged(location, "its bytes are not those that were written")

    # One episode

    def info(self, index: int) -> dict[str, Any]:
        """Return the row of the index (key, split, shard, cameras, fps, text, meta and others); read no shard."""
        row = self._table.slice(self._location(index).index, 1).to_pylist()[0]
        return row | {"meta": self._index.meta(self._location(index).index)}

    def has(self, index: int, name: str) -> bool:
        """Return whether an episode has "actions", "rewards", "terminated" or "state"; read a file's header at most."""
        return name in self._tensors(self._location(int(index)))

    def clip(self, index: int, rows: Sequence[int] | np.ndarray | None = None, *, camera: str | None = None) -> Episode:
        """Return some frames of an episode with their rows; the last action row becomes padding again.

        Args:
            index: of the episode.
            rows: frames in any order, for example ``range(40, 56)``. The range of bytes from the first to the last
                is read and nothing else. None: all.
            camera: default: the main camera of the catalogue.

        Raises:
            UserError: the episode has no such row, or the file is damaged.
        """
        return self._episode(self._location(index), rows, camera)

    def arrays(
        self,
        index: int,
        names: Iterable[str],
        rows: Sequence[int] | np.ndarray | None = None,
        *,
        camera: str | None = None,
    ) -> dict[str, np.ndarray]:
        """Return some frames of an episode and named rows, as new arrays.

        Args:
            index: of the episode.
            names: of "actions", "rewards", "terminated" and "state"; names that the episode does not have are skipped.
            rows: frames in any order; None: all.
            camera: default: the main camera of the catalogue.

        Returns:
            "frames", uint8 ``[t h w 3]``, and the arrays by their names, the rows as they were recorded.

        Raises:
            UserError: the episode has no such row or camera, or the file is damaged.
        """
        location = self._location(index)
        return self._arrays(location, names, self._frame_numbers(location, rows), self._camera(location, camera))

    def camera(self, index: int, name: str, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return frames uint8 ``[t h w 3]`` of one camera, all or some of them.

        Raises:
            UserError: the episode has no such camera or row, or the file is damaged.
        """
        location = self._location(index)
        numbers = self._frame_numbers(location, rows)
        return self._arrays(location, (), numbers, self._camera(location, name))["frames"]

    def array(self, index: int, name: str) -> np.ndarray:
        """Return an additional array of the episode, one row a frame.

        Raises:
            UserError: the episode has none of that name, or the file is damaged.
        """
        location = self._location(index)
        tensors = self._tensors(location)
        if store_format.array_name(name) not in tensors:
            names = [key.removeprefix("array.") for key in tensors if key.startswith("array.")]
            raise UserError(f"{self._label(location)} has no array {name!r}; it has {', '.join(names) or 'none'}")
        tensor = tensors[store_format.array_name(name)]
        return self._rows(location, {name: tensor}, self._frame_numbers(location, None))[name]

    # Reading

    def _location(self, index: int) -> Location:
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"{self.folder} has {len(self)} episodes; there is no episode {index}")
        return self._index.location(position)

    def _by_shard(self, indices: Iterable[int]) -> list[int]:
        """Return episodes in the order of their files."""
        index = self._index
        return sorted(indices, key=lambda i: (index.shard_of[i], index.groups[i], index.firsts[i]))

    def _tensors(self, location: Location) -> dict[str, Tensor]:
        """Return the tensors of the episode's group by their names without the group."""
        try:
            tensors = self._shards.groups(location.shard).get(location.group)
        except UserError as error:
            raise UserError(f"{self._label(location)} cannot be read: {error}") from error
        if tensors is None:
            raise self._damaged(location, f"there is no group {location.group}")
        for name, tensor in tensors.items():
            rows = tensor.shape[0] - name.startswith("offsets.")
            if location.first + location.length > rows and not name.startswith("jpeg."):
                raise self._damaged(location, f"{name} ends at row {rows}")
        return tensors

    def _episode(self, location: Location, rows: Sequence[int] | np.ndarray | None, camera_name: str | None) -> Episode:
        camera = self._camera(location, camera_name)
        arrays = self._arrays(location, store_format.ROWS, self._frame_numbers(location, rows), camera)
        for label in _TRANSITIONS:
            if rows is not None and label in arrays:
                arrays[label][-1] = 0
        split, fps, text = (self._table[column][location.index].as_py() for column in ("split", "fps", "text"))
        meta = {"dataset": self.facts.dataset.name, "camera": camera.name, "fps": fps, "text": text}
        key = self._index.key(location.index)
        return Episode(key=key, split=split, meta=self._index.meta(location.index) | meta, **arrays)

    def _camera(self, location: Location, name: str | None) -> Camera:
        """Return a camera of the episode; None: the main camera of the catalogue."""
        name = self._index.main_camera(location.index) if name is None else name
        cameras = {camera.name: camera for camera in self._index.cameras(location.index)}
        if name not in cameras:
            raise UserError(f"{self._label(location)} has no camera {name!r}; it has {', '.join(cameras)}")
        return cameras[name]

    def _frame_numbers(self, location: Location, rows: Sequence[int] | np.ndarray | None) -> np.ndarray:
        """Return checked frame numbers, int ``[t]``; None: all.

        Raises:
            UserError: there are none, or the episode does not have one of them.
        """
        numbers = np.arange(location.length) if rows is None else np.asarray(rows)
        label = self._label(location)
        if not len(numbers):
            raise UserError(f"no frames were asked of {label}; give at least one row")
        if numbers.min() < 0 or numbers.max() >= location.length:
            raise UserError(
                f"frames {numbers.min()} to {numbers.max()} were asked of {label}, which has {location.length}"
            )
        return numbers

    def _arrays(
        self, location: Location, names: Iterable[str], rows: np.ndarray, camera: Camera
    ) -> dict[str, np.ndarray]:
        """Return frames, and rows of the named tensors that the episode has."""
        stored = self._tensors(location)
        tensors = {name: stored[name] for name in names if name in stored}
        if camera.encoding == "raw":
            tensors["frames"] = self._tensor(location, store_format.raw_name(camera.name))
        arrays = self._rows(location, tensors, rows)
        if camera.encoding != "raw":
            arrays["frames"] = self._decoded(location, camera, rows)
        return arrays

    def _rows(self, location: Location, tensors: dict[str, Tensor], rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return copies of rows of tensors; all ranges of bytes are read in one request."""
        low, high = int(rows.min()), int(rows.max()) + 1
        wanted = [tensor.rows(location.first + low, location.first + high) for tensor in tensors.values()]
        contents = self._shards.read(location.shard, wanted)
        return {
            name: tensor.array(content).take(rows - low, axis=0)
            for (name, tensor), content in zip(tensors.items(), contents, strict=True)
        }

    def _decoded(self, location: Location, camera: Camera, rows: np.ndarray) -> np.ndarray:
        """Return frames that are stored as JPEG files."""
        low, high = int(rows.min()), int(rows.max()) + 1
        offsets, blob = self._jpeg_files(location, camera.name, low, high)
        shape = (len(rows), camera.height, camera.width, 3)
        check_unpacked_size(
            f"{self._label(location)} of {self.folder}", unpacked=int(np.prod(shape)), stored=_JPEG_RATIO * len(blob)
        )
        frames = np.empty(shape, np.uint8)
        for frame, row in zip(frames, rows.tolist(), strict=True):
            file = blob[offsets[row - low] : offsets[row - low + 1]].tobytes()
            try:
                decode_jpeg(file, fast=camera.fast, out=frame)
            except MissingExtraError:
                raise
            except UserError as error:
                raise self._damaged(location, f"frame {row}: {error}") from error
        return frames

    def _jpeg_files(self, location: Location, camera: str, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """Return JPEG files of some frames end to end, and the first byte of each; the first begins at 0."""
        offsets = self._tensor(location, store_format.offsets_name(camera))
        files = self._tensor(location, store_format.jpeg_name(camera))
        (content,) = self._shards.read(location.shard, [offsets.rows(location.first + low, location.first + high + 1)])
        begins = offsets.array(content)
        if begins[0] < 0 or (np.diff(begins) < 0).any() or begins[-1] > files.shape[0]:
            raise self._damaged(location, f"the offsets of camera {camera!r} lead outside of it")
        (blob,) = self._shards.read(location.shard, [files.rows(int(begins[0]), int(begins[-1]))])
        return begins - begins[0], blob

    def _tensor(self, location: Location, name: str) -> Tensor:
        """Return a tensor that the index lists."""
        tensor = self._tensors(location).get(name)
        if tensor is None:
            raise self._damaged(location, f"there is no {name}")
        return tensor

    def _stored_arrays(self, location: Location) -> dict[str, np.ndarray]:
        """Return all arrays of an episode as they are stored, for the checksum."""
        tensors = self._tensors(location)
        plain = {name: tensor for name, tensor in tensors.items() if not name.startswith(("jpeg.", "offsets."))}
        wanted = [tensor.rows(location.first, location.first + location.length) for tensor in plain.values()]
        stored = dict(zip(plain, self._shards.read(location.shard, wanted), strict=True))
        for name in tensors:
            if name.startswith("jpeg."):
                camera = name.removeprefix("jpeg.")
                offsets, stored[name] = self._jpeg_files(location, camera, 0, location.length)
                stored[store_format.offsets_name(camera)] = offsets
        return stored

    def _damaged(self, location: Location, why: str) -> UserError:
        path = self._shards.path(location.shard)
        return UserError(f"{self._label(location)} in {path} is damaged ({why}); copy or convert the file again")

    def _label(self, location: Location) -> str:
        return f"episode {self._index.key(location.index)!r}"
