"""The episodes of a LeRobot dataset, read where they are: training without a conversion.

    episodes = open_source("lerobot:recordings/pick")      # or lerobot:owner/name of the Hub; else an EpisodeStore
    arrays = episodes.arrays(3, ["actions"], range(40, 56))

Frames are decoded from the videos at each use, so a converted store is faster; docs/data.md has the numbers.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.jpeg import decode_jpeg
from ivideogpt.data.convert.lerobot import episode_frames, episode_numbers, facts, full_name, open_lerobot
from ivideogpt.data.convert.source_episode import Frames, JpegFrames, SourceEpisode
from ivideogpt.data.convert.source_files import name_list
from ivideogpt.data.convert.tables import parquet_columns, read_parquet
from ivideogpt.data.mixtures import LEROBOT
from ivideogpt.data.store import format as store_format
from ivideogpt.data.store.metadata import IndexFacts, action_statistics
from ivideogpt.data.store.reader import EpisodeStore

# Episodes whose numbers, and files whose tables, stay in memory: where tables hold numbers alone, and where pictures.
_MOST_KEPT = {"numbers": (256, 64), "pictures": (16, 2)}


class LeRobotEpisodes:
    """A LeRobot dataset as a source of clips, with the episodes, names and numbers that its conversion would have."""

    def __init__(self, folder: str) -> None:
        """Read the lists of the dataset.

        Args:
            folder: ``lerobot:`` and a folder, or the Hub id of a dataset, which is downloaded once.

        Raises:
            UserError: there is no such dataset, or it is damaged.
        """
        self.folder = folder
        source = folder.removeprefix(LEROBOT)
        self._source: str | Path = Path(source) if Path(source).exists() else source
        _, self._dataset, entries, self._camera = open_lerobot(self._source)
        self._entries = sorted(entries, key=lambda entry: (entry.split != "train", entry.split, entry.index))
        self._numbers: OrderedDict[int, tuple[SourceEpisode, dict[str, list[Any]]]] = OrderedDict()
        self._tables: OrderedDict[Path, Any] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self._entries)

    def reopened(self) -> LeRobotEpisodes:
        """Return the same episodes without their memory, for another process."""
        other = copy.copy(self)
        other._numbers, other._tables = OrderedDict(), OrderedDict()
        return other

    @cached_property
    def facts(self) -> IndexFacts:
        """Description of the dataset; the statistics of its actions take one pass over the tables."""
        episodes, fields = [], ()
        for index in range(len(self)):
            numbers, _ = self._episode(index)
            if numbers.actions is not None:
                episodes.append(numbers.actions[:-1])
                fields = numbers.action_fields
        return IndexFacts(
            format=store_format.FORMAT,
            dataset=facts(self._source),
            episodes=len(self),
            frames=int(self.lengths.sum()),
            cameras={name: () for name in self._dataset.cameras},
            actions=action_statistics(episodes, fields) if episodes else None,
        )

    @cached_property
    def keys(self) -> list[str]:
        """The name of each episode."""
        return [f"episode_{entry.index:06d}" for entry in self._entries]

    @cached_property
    def splits(self) -> list[str]:
        """The split of each episode."""
        return [entry.split for entry in self._entries]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Frames of each episode, int64 ``[n]``."""
        return np.array([entry.length for entry in self._entries], np.int64)

    @cached_property
    def shards(self) -> list[str]:
        """The parquet files of the episodes."""
        return sorted({entry.data for entry in self._entries})

    @cached_property
    def shard_numbers(self) -> np.ndarray:
        """Position of each episode's file in ``shards``, int ``[n]``."""
        places = {name: place for place, name in enumerate(self.shards)}
        return np.array([places[entry.data] for entry in self._entries])

    def has(self, index: int, name: str) -> bool:
        """Return whether an episode has "actions", "rewards", "terminated" or "state"."""
        return getattr(self._episode(index)[0], name) is not None

    def arrays(
        self,
        index: int,
        names: Iterable[str],
        rows: Sequence[int] | np.ndarray | None = None,
        *,
        camera: str | None = None,
    ) -> dict[str, np.ndarray]:
        """Return some frames of an episode and named rows; see ``EpisodeStore.arrays``.

        Raises:
            UserError: the episode has no such row or camera, or a file is damaged.
        """
        entry, (numbers, table) = self._entries[index], self._episode(index)
        wanted = np.arange(entry.length) if rows is None else np.asarray(rows)
        if not len(wanted) or wanted.min() < 0 or wanted.max() >= entry.length:
            raise UserError(f"frames {wanted.tolist()} were asked of {self.keys[index]}, which has {entry.length}")
        name = self._camera if camera is None else full_name(camera, self._dataset)
        if name not in self._dataset.cameras:
            raise UserError(f"{self.folder} has no camera {name!r}; it has {name_list(self._dataset.cameras)}")
        used, places = np.unique(wanted, return_inverse=True)  # a video is read forwards
        frames = _decoded(episode_frames(self._dataset, entry, table, name, used.tolist()), self.keys[index])
        arrays = {key: value[wanted] for key in names if (value := getattr(numbers, key)) is not None}
        return arrays | {"frames": frames[places]}

    @property
    def _most_kept(self) -> tuple[int, int]:
        has_pictures = any(self._dataset.features[key]["dtype"] == "image" for key in self._dataset.cameras)
        return _MOST_KEPT["pictures" if has_pictures else "numbers"]

    def _episode(self, index: int) -> tuple[SourceEpisode, dict[str, list[Any]]]:
        """Return an episode without frames, and its table."""
        if index in self._numbers:
            self._numbers.move_to_end(index)
            return self._numbers[index]
        self._numbers[index] = episode_numbers(self._dataset, self._entries[index], self._camera, self._read_rows)
        if len(self._numbers) > self._most_kept[0]:
            self._numbers.popitem(last=False)
        return self._numbers[index]

    def _read_rows(self, path: Path, columns: list[str], episode: int) -> Any:
        """Return the rows of an episode from the table of its file, which stays in memory."""
        if path not in self._tables:
            available = parquet_columns(path)
            if missing := [key for key in columns if key not in available]:
                raise UserError(f"{path} has no column {missing[0]!r}; it has {name_list(available)}")
            # Arrow's threads do not survive the fork of a worker process.
            table = read_parquet(path, columns=columns, use_threads=False, pre_buffer=False)
            self._tables[path] = table, table["episode_index"].to_numpy()
            if len(self._tables) > self._most_kept[1]:
                self._tables.popitem(last=False)
        table, episodes = self._tables[path]
        (rows,) = np.nonzero(episodes == episode)
        if len(rows) and rows[-1] - rows[0] + 1 != len(rows):
            raise UserError(f"{path} has rows of other episodes between those of episode {episode}; write it again")
        return table.slice(rows[0] if len(rows) else 0, len(rows))


#: Recorded episodes that clips are cut from.
EpisodeSource = EpisodeStore | LeRobotEpisodes


def open_source(folder: str | Path) -> EpisodeSource:
    """Open a store, or a LeRobot dataset after the prefix ``lerobot:``.

    Raises:
        UserError: there is none, or it is damaged.
    """
    text = str(folder)
    return LeRobotEpisodes(text) if text.startswith(LEROBOT) else EpisodeStore(folder)


def _decoded(frames: Frames, name: str) -> np.ndarray:
    """Return frames as uint8 ``[t h w 3]``."""
    if not isinstance(frames, JpegFrames):
        return frames
    decoded = np.empty((len(frames), frames.height, frames.width, 3), np.uint8)
    for row, (file, frame) in enumerate(zip(frames.files, decoded, strict=True)):
        try:
            decode_jpeg(file, fast=frames.fast, out=frame)
        except UserError as error:
            raise UserError(f"frame {row} of {name}: {error}; repair or remove the episode") from error
    return decoded
