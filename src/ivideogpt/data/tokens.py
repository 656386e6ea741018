"""Tokens of a mixture on disk: a transformer trains on them without running a tokenizer.

    loader = TokenLoader(TokenStore("tokens/bridge"), batch_size=16, frames=16)
    for clip in loader: ...                 # TokenClip: codes of context and future frames, actions, rewards

A *take* is a sequence of frames that were tokenized together. If the codes of a frame do not depend on other frames, a
take is an episode, and any window of it is a clip. If later frames are coded against the context, a take is one clip,
and shorter clips are its beginning. ``training.tokenize_store`` writes such folders; docs/data.md describes them.
"""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from ivideogpt.core.config import from_dict
from ivideogpt.core.errors import UserError
from ivideogpt.core.layout import TokenLayout
from ivideogpt.core.reading import reading
from ivideogpt.data.clip_order import ClipCursor
from ivideogpt.data.loader import clip_random
from ivideogpt.data.mixtures import LARGEST_ACTION_WIDTH, Mixture, MixtureSource
from ivideogpt.data.store.byte_ranges import open_folder
from ivideogpt.data.store.format import Tensor as StoredTensor
from ivideogpt.data.store.format import read_header

FORMAT = "ivideogpt-tokens-1"
FACTS, INDEX, SHARDS = "tokens.json", "index.safetensors", "shards"
#: Columns of the index, one number a take: file, store of the mixture, first row in the file, frames, episode.
COLUMNS = ("shard", "source", "first", "length", "episode")
_MOST_OPEN = 128
# Batches of remote tokens that are fetched at the same time, and clips of each.
_BATCHES_AHEAD, _MOST_REQUESTS = 4, 16
_ADVICE = "delete it and tokenize again"


@dataclass(frozen=True, kw_only=True)
class TokenFacts:
    """Description of a folder of tokens.

    Attributes:
        format: version of the layout.
        tokenizer: ``CompressiveTokenizer.fingerprint`` of the tokenizer.
        layout: of its tokens.
        context_frames: context frames of a clip.
        frames: of a take that is one clip, context and goal included; the fewest of a take that is an episode.
        whole: takes are episodes.
        goal_first: the first frame of a take is its goal.
        sources: path of each store.
        weights: share of the clips from each store, relative to the others.
        splits: the split of each; None: all.
        cameras: of each; None: the main camera of the catalogue.
        strides: distance between used frames, of each.
        embodiments: name of the robot of each.
        hop: recorded frames from one take of one clip to the next; 0: takes are episodes.
        action_width: dimensions of an action; 0: no actions.
        action_mean, action_std: of raw actions, for normalising.
        rewards: the tokens have rewards.
        shards: names of the files, in order.
    """

    format: str = FORMAT
    tokenizer: str
    layout: TokenLayout
    context_frames: int
    frames: int
    whole: bool
    goal_first: bool
    sources: tuple[str, ...]
    weights: tuple[float, ...]
    splits: tuple[str | None, ...]
    cameras: tuple[str | None, ...]
    strides: tuple[int, ...]
    embodiments: tuple[str, ...]
    hop: int
    action_width: int
    action_mean: tuple[float, ...]
    action_std: tuple[float, ...]
    rewards: bool
    shards: tuple[str, ...]

    def __post_init__(self) -> None:
        """Raise UserError if a number is out of range or contradicts another."""
        lists = (self.sources, self.weights, self.splits, self.cameras, self.strides, self.embodiments)
        sizes = (self.layout.context_tokens, self.layout.dynamics_tokens, self.layout.dynamics_codes)
        holds = {
            "layout": all(1 <= size < 2**31 for size in (*sizes, self.layout.context_codes)),
            "context_frames": 1 <= self.context_frames < self.frames < 2**31,
            "list of sources": bool(self.sources) and len({len(values) for values in lists}) == 1,
            "weight": all(0 < weight < float("inf") for weight in self.weights),
            "stride": all(stride >= 1 for stride in self.strides) and self.hop >= 0,
            "action_width": 0 <= self.action_width <= LARGEST_ACTION_WIDTH
            and len(self.action_mean) == len(self.action_std) == self.action_width,
            "name of a shard": not any(set(name) & set("/\\\0") or name in ("", "..") for name in self.shards),
        }
        if wrong := [name for name, is_right in holds.items() if not is_right]:
            raise UserError(f"the description of a folder of tokens has an impossible {wrong[0]}; tokenize again")

    @property
    def mixture(self) -> Mixture:
        """The stores that the tokens were made of."""
        rows = zip(self.sources, self.weights, self.splits, self.cameras, self.strides, self.embodiments, strict=True)
        sources = (
            MixtureSource(path=path, weight=weight, split=split, camera=camera, stride=stride, embodiment=embodiment)
            for path, weight, split, camera, stride, embodiment in rows
        )
        return Mixture(sources=tuple(sources), action_width=self.action_width or None)


@dataclass(frozen=True)
class TokenClip:
    """A batch of clips as codes.

    Attributes:
        context: int64 ``[b c n]`` context codes.
        dynamics: int64 ``[b f m]`` dynamics codes, from 0.
        actions: float32 ``[b t a]`` raw, or None; row t leads from frame t to t + 1, the last row is padding.
        action_mask: bool ``[b t a]`` or None: True where ``actions`` holds a recorded number.
        rewards: float32 ``[b t]`` or None, same convention as the actions.
    """

    context: torch.Tensor
    dynamics: torch.Tensor
    actions: torch.Tensor | None
    action_mask: torch.Tensor | None
    rewards: torch.Tensor | None


class TokenStore:
    """A folder of tokens, opened."""

    def __init__(self, folder: str | Path) -> None:
        """Load the description of the folder and the location of each take.

        Args:
            folder: of the tokens, or a URL that fsspec knows.

        Raises:
            UserError: it holds no tokens, is not finished, or is damaged.
        """
        self._files = open_folder(folder)
        self.folder = self._files.name
        text = self._content(FACTS)
        if text is None:
            raise UserError(f"{folder} holds no tokens; expected {FACTS} in it, as `ivideogpt tokenize` writes it")
        with reading(f"{folder}/{FACTS}", _ADVICE):
            facts = json.loads(text)
        self.facts = from_dict(TokenFacts, facts, where=f"{folder}/{FACTS}")
        if self.facts.format != FORMAT:
            raise UserError(f"{folder} has the format {self.facts.format!r}; expected {FORMAT}: tokenize again")
        index = self._content(INDEX)
        if index is None:
            raise UserError(f"{folder} is not finished; give the same `ivideogpt tokenize` command again")
        self.shard, self.source, self.first, self.length, self.episode = self._read_index(index)
        self._headers: OrderedDict[int, dict[str, StoredTensor]] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of takes."""
        return len(self.length)

    def clip(self, take: int, start: int, frames: int) -> TokenClip:
        """Return a batch of one clip.

        Args:
            take: its number.
            start: first frame of the clip in the take; 0 if a take is one clip.
            frames: of the clip.

        Raises:
            UserError: the file is damaged, or the take has no such frames.
        """
        facts, count = self.facts, self.facts.context_frames
        if start and not facts.whole or start + frames > self.length[take] or frames <= count:
            raise UserError(f"take {take} of {self.folder} has no clip of {frames} frames from frame {start}")
        number, row = int(self.shard[take]), int(self.first[take])
        low, high = row + start, row + start + frames
        wanted: dict[str, tuple[int, int]] = {}
        if facts.whole:
            wanted["codes"] = (low, high)
        else:
            number_in_file = row // facts.frames
            wanted |= dict.fromkeys(("context", "dynamics"), (number_in_file, number_in_file + 1))
        if facts.action_width:
            wanted |= {"actions": (low, high), "action_mask": (low, high)}
        if facts.rewards:
            wanted["rewards"] = (low, high)
        arrays = self._slices(number, wanted)
        if facts.whole:
            codes = arrays["codes"].long()[None]
            context, dynamics = codes[:, :count], codes[:, count:]
        else:
            context, dynamics = arrays["context"].long(), arrays["dynamics"].long()[:, : frames - count]
        self._check_codes(number, context, facts.layout.context_codes)
        self._check_codes(number, dynamics, facts.layout.dynamics_codes)
        actions, mask, rewards = (arrays.get(name) for name in ("actions", "action_mask", "rewards"))
        if actions is not None and mask is not None:
            actions, mask = actions[None].clone(), mask[None].bool()
            actions[:, -1], mask[:, -1] = 0, False
        if rewards is not None:
            rewards = rewards[None].clone()
            rewards[:, -1] = 0
        return TokenClip(context, dynamics, actions, mask, rewards)

    def _content(self, path: str) -> bytes | None:
        """Return the content of a file of the folder, or None where there is none."""
        try:
            with self._files.open(path) as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _read_index(self, content: bytes) -> list[np.ndarray]:
        """Return the columns of the index, int64 ``[n]`` each."""
        path, facts = f"{self.folder}/{INDEX}", self.facts
        with reading(path, _ADVICE):
            tensors = safetensors.numpy.load(content)
            columns = {name: tensors[name] for name in COLUMNS}
            if any(column.dtype != np.int64 or column.ndim != 1 for column in columns.values()):
                raise ValueError("a column is no list of whole numbers")
            if len({len(column) for column in columns.values()}) > 1:
                raise ValueError("its columns differ in length")
            limits = {"shard": len(facts.shards), "source": len(facts.sources), "first": 2**61, "length": 2**31}
            for name, column in columns.items():
                if len(column) and not 0 <= column.min() <= column.max() < limits.get(name, 2**62):
                    raise ValueError(f"an entry of {name!r} is out of range")
            return list(columns.values())

    def _shard_path(self, number: int) -> str:
        return f"{SHARDS}/{self.facts.shards[number]}.safetensors"

    def _slices(self, number: int, wanted: dict[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
        """Return rows of tensors of a shard, by their names."""
        path = self._shard_path(number)
        name = f"{self.folder}/{path}"
        with reading(name, _ADVICE):
            if number not in self._headers:
                size = self._files.size(path)
                self._headers[number] = read_header(
                    lambda start, stop: self._files.ranges(path, [(start, stop)])[0].tobytes(), size, name, form=None
                )
                if len(self._headers) > _MOST_OPEN:
                    self._headers.popitem(last=False)
            tensors = self._headers[number]
            for name, (low, high) in wanted.items():
                shape = self._row_shape(name)
                if tensors[name].shape[1:] != shape or not 0 <= low <= high <= tensors[name].shape[0]:
                    raise ValueError(f"{name} has no rows {low} to {high} of shape {list(shape)}")
            contents = self._files.ranges(path, [tensors[name].rows(*rows) for name, rows in wanted.items()])
            return {
                name: torch.from_numpy(tensors[name].array(content).copy())
                for name, content in zip(wanted, contents, strict=True)
            }

    def _row_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one row of a tensor."""
        facts, layout = self.facts, self.facts.layout
        return {
            "codes": (layout.context_tokens,),
            "context": (facts.context_frames, layout.context_tokens),
            "dynamics": (facts.frames - facts.context_frames, layout.dynamics_tokens),
            "actions": (facts.action_width,),
            "action_mask": (facts.action_width,),
            "rewards": (),
        }[name]

    def _check_codes(self, number: int, codes: torch.Tensor, size: int) -> None:
        """Raise UserError if a code is outside of its codebook."""
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
            raise UserError(
                f"{self.folder}/{self._shard_path(number)} is damaged (a code is not one of {size}); {_ADVICE}"
            )


class TokenLoader(ClipCursor):
    """Endless batches of clips of tokens, each a pure function of the seed and its number."""

    def __init__(
        self, store: TokenStore, *, batch_size: int, frames: int, seed: int = 0, rank: int = 0, ranks: int = 1
    ) -> None:
        """Find the takes that are long enough for a clip.

        Args:
            store: the tokens.
            batch_size: clips of a batch, on this rank.
            frames: of a clip, context included.
            seed: of the random numbers.
            rank: of this process; see ``ClipCursor``.
            ranks: number of processes that train together.

        Raises:
            UserError: no take is long enough, or a goal-first clip would have to be cut.
        """
        super().__init__(batch_size=batch_size, seed=seed, rank=rank, ranks=ranks)
        facts = store.facts
        if facts.goal_first and frames != facts.frames:
            raise UserError(f"clips of {frames} frames were asked for; these begin with a goal and have {facts.frames}")
        self.store, self.frames = store, frames
        starts = np.maximum(store.length - frames + 1, 0)
        starts = starts if facts.whole else np.minimum(starts, 1)
        self._takes, self._ends, self._episodes = [], [], []
        for number, path in enumerate(facts.sources):
            takes = np.flatnonzero((store.source == number) & (starts > 0))
            if not len(takes):
                longest = int(store.length.max(initial=0))
                raise UserError(f"{path} has no take of {frames} frames (longest of all: {longest}); use shorter clips")
            takes = takes[np.argsort(store.episode[takes], kind="stable")]
            self._takes.append(takes)
            self._ends.append(np.cumsum(starts[takes]))
            # The first take of each episode, and the end of the last one.
            self._episodes.append(np.append(np.unique(store.episode[takes], return_index=True)[1], len(takes)))
        self._shares = np.cumsum(facts.weights) / sum(facts.weights)

    def __iter__(self) -> Iterator[TokenClip]:
        """Yield batches from ``step`` on, without end; ``step`` counts them."""
        if "://" in self.store.folder:
            yield from self._fetched_ahead()
        while True:
            clip = self.clips(self.numbers(self.step))
            self.step += 1
            yield clip

    def _fetched_ahead(self) -> Iterator[TokenClip]:
        """Yield batches that threads fetch from afar while earlier ones are used."""
        with ThreadPoolExecutor(_BATCHES_AHEAD) as threads:
            waiting = deque(
                threads.submit(self.clips, self.numbers(self.step + ahead)) for ahead in range(_BATCHES_AHEAD)
            )
            while True:
                clip = waiting.popleft().result()
                self.step += 1
                waiting.append(threads.submit(self.clips, self.numbers(self.step + _BATCHES_AHEAD - 1)))
                yield clip

    def clips(self, numbers: Sequence[int]) -> TokenClip:
        """Return a batch of clips by their numbers."""

        def read(number: int) -> TokenClip:
            return self.store.clip(*self._place(number), self.frames)

        if "://" in self.store.folder and len(numbers) > 1:
            with ThreadPoolExecutor(min(len(numbers), _MOST_REQUESTS)) as threads:
                rows = list(threads.map(read, numbers))
        else:
            rows = list(map(read, numbers))

        def joined(name: str) -> Any:
            values = [getattr(row, name) for row in rows]
            return None if values[0] is None else torch.cat(values)

        return TokenClip(*(joined(name) for name in ("context", "dynamics", "actions", "action_mask", "rewards")))

    def _place(self, number: int) -> tuple[int, int]:
        """Return take and first frame of clip ``number``: a random episode, then a random clip of it."""
        random = clip_random(self.seed, number)
        source = min(int(np.searchsorted(self._shares, random.random(), side="right")), len(self._shares) - 1)
        ends, bounds = self._ends[source], self._episodes[source]
        episode = int(random.integers(len(bounds) - 1))
        begin = int(ends[bounds[episode] - 1]) if bounds[episode] else 0
        ticket = begin + int(random.integers(int(ends[bounds[episode + 1] - 1]) - begin))
        place = int(np.searchsorted(ends, ticket, side="right"))
        return int(self._takes[source][place]), ticket - (int(ends[place - 1]) if place else 0)
