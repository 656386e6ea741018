"""Tokens of a mixture, kept on disk: a transformer trains on them without a tokenizer at work.

    loader = TokenLoader(TokenStore("tokens/bridge"), batch_size=16, frames=16)
    for clip in loader: ...                 # TokenClip: codes of context and future frames, actions, rewards

A *take* is a row of frames that were tokenised together. Where a tokenizer gives a frame the same codes wherever it
stands, a take is an episode, and any window of it is a clip. Where later frames are coded against the context, a take
is one clip, and shorter clips are its beginning. ``train.tokenizing`` writes such folders; docs/data.md describes them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ivideogpt.core.config import from_dict, load_json
from ivideogpt.core.errors import UserError
from ivideogpt.core.layout import TokenLayout
from ivideogpt.data.clip_order import ClipCursor
from ivideogpt.data.loader import clip_random
from ivideogpt.data.mixtures import Mixture, MixtureSource

FORMAT = "ivideogpt-tokens-1"
FACTS, INDEX, SHARDS = "tokens.json", "index.safetensors", "shards"
#: Of the index, one number a take: file, store of the mixture, first row in the file, frames, episode of the store.
COLUMNS = ("shard", "source", "first", "length", "episode")
_MOST_OPEN = 128


@dataclass(frozen=True, kw_only=True)
class TokenFacts:
    """What a folder of tokens says of itself.

    Attributes:
        format: the version of the layout.
        tokenizer: ``CompressiveTokenizer.fingerprint`` of the one that made them.
        layout: of its tokens.
        context_frames: frames of a clip that are context.
        frames: of a take of one clip, context and goal included; the fewest of a take that is an episode.
        whole: takes are episodes.
        goal_first: the first frame of a take is its goal.
        sources: path of each store.
        weights: how often clips come from each, relative to the others.
        splits: the split of each; None: all.
        cameras: of each; None: the one that the catalogue uses.
        strides: distance between used frames, of each.
        embodiments: name of the robot of each.
        hop: recorded frames from one take of one clip to the next; 0: takes are episodes.
        action_width: numbers of an action; 0: none.
        action_mean, action_std: of raw actions, for normalising.
        rewards: whether rewards are kept.
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
        action_mask: bool ``[b t a]`` or None: True where a number of ``actions`` is one of the robot's.
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
        """Reads what the folder says and where each take lies.

        Raises:
            UserError: it holds no tokens, or the work on it is not finished.
        """
        self.folder = Path(folder)
        if not (self.folder / FACTS).is_file():
            raise UserError(f"{folder} holds no tokens; expected {FACTS} in it, as `ivideogpt tokenize` writes it")
        self.facts = from_dict(TokenFacts, load_json(self.folder / FACTS), where=str(self.folder / FACTS))
        if self.facts.format != FORMAT:
            raise UserError(f"{folder} has the format {self.facts.format!r}; expected {FORMAT}: tokenize again")
        if not (self.folder / INDEX).is_file():
            raise UserError(f"{folder} is not finished; give the same `ivideogpt tokenize` command again")
        index = _read(self.folder / INDEX, COLUMNS)
        self.shard, self.source, self.first, self.length, self.episode = (index[name].numpy() for name in COLUMNS)
        self._open: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        """Number of takes."""
        return len(self.length)

    def clip(self, take: int, start: int, frames: int) -> TokenClip:
        """A batch of one clip.

        Args:
            take: its number.
            start: first frame of the clip in the take; 0 where a take is one clip.
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
            place = row // facts.frames
            wanted |= {"context": (place, place + 1), "dynamics": (place, place + 1)}
        if facts.action_width:
            wanted |= {"actions": (low, high), "action_mask": (low, high)}
        if facts.rewards:
            wanted["rewards"] = (low, high)
        found = self._slices(number, wanted)
        if facts.whole:
            codes = found["codes"].long()[None]
            context, dynamics = codes[:, :count], codes[:, count:]
        else:
            context, dynamics = found["context"].long(), found["dynamics"].long()[:, : frames - count]
        actions, mask, rewards = (found.get(name) for name in ("actions", "action_mask", "rewards"))
        if actions is not None and mask is not None:
            actions, mask = actions[None].clone(), mask[None].bool()
            actions[:, -1], mask[:, -1] = 0, False
        if rewards is not None:
            rewards = rewards[None].clone()
            rewards[:, -1] = 0
        return TokenClip(context, dynamics, actions, mask, rewards)

    def _slices(self, number: int, wanted: dict[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
        path = self.folder / SHARDS / f"{self.facts.shards[number]}.safetensors"
        try:
            if number not in self._open:
                self._open[number] = safe_open(path, framework="pt").__enter__()
                if len(self._open) > _MOST_OPEN:
                    self._open.popitem(last=False)[1].__exit__(None, None, None)
            shard = self._open[number]
            return {name: shard.get_slice(name)[low:high] for name, (low, high) in wanted.items()}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}); delete it and tokenize again") from error


class TokenLoader(ClipCursor):
    """Endless batches of clips of tokens, each a pure function of the seed and its number."""

    def __init__(
        self, store: TokenStore, *, batch_size: int, frames: int, seed: int = 0, rank: int = 0, ranks: int = 1
    ) -> None:
        """Finds the takes that have room for a clip.

        Args:
            store: the tokens.
            batch_size: clips of a batch, on this rank.
            frames: of a clip, context included.
            seed: of what is drawn.
            rank: of this process; see ``ClipCursor``.
            ranks: how many train together.

        Raises:
            UserError: no take is that long, or a goal-first clip is to be cut.
        """
        super().__init__(batch_size=batch_size, seed=seed, rank=rank, ranks=ranks)
        facts = store.facts
        if facts.goal_first and frames != facts.frames:
            raise UserError(f"clips of {frames} frames were asked for; these begin with a goal and have {facts.frames}")
        self.store, self.frames = store, frames
        rooms = np.maximum(store.length - frames + 1, 0)
        rooms = rooms if facts.whole else np.minimum(rooms, 1)
        self._takes, self._ends, self._episodes = [], [], []
        for number, path in enumerate(facts.sources):
            takes = np.flatnonzero((store.source == number) & (rooms > 0))
            if not len(takes):
                longest = int(store.length.max(initial=0))
                raise UserError(f"{path} has no take of {frames} frames (longest of all: {longest}); use shorter clips")
            takes = takes[np.argsort(store.episode[takes], kind="stable")]
            self._takes.append(takes)
            self._ends.append(np.cumsum(rooms[takes]))
            # Where the takes of each episode begin, and where the last one ends.
            self._episodes.append(np.append(np.unique(store.episode[takes], return_index=True)[1], len(takes)))
        self._shares = np.cumsum(facts.weights) / sum(facts.weights)

    def __iter__(self) -> Iterator[TokenClip]:
        """Batches from ``step`` on, without end; ``step`` counts those that were given out."""
        while True:
            clip = self.clips(self.numbers(self.step))
            self.step += 1
            yield clip

    def clips(self, numbers: Sequence[int]) -> TokenClip:
        """A batch of any clips by their numbers."""
        rows = [self.store.clip(*self._place(number), self.frames) for number in numbers]

        def joined(name: str) -> Any:
            values = [getattr(row, name) for row in rows]
            return None if values[0] is None else torch.cat(values)

        return TokenClip(*(joined(name) for name in ("context", "dynamics", "actions", "action_mask", "rewards")))

    def _place(self, number: int) -> tuple[int, int]:
        """Take and first frame of clip ``number``: any episode that has room, then any clip of it."""
        random = clip_random(self.seed, number)
        source = min(int(np.searchsorted(self._shares, random.random(), side="right")), len(self._shares) - 1)
        ends, bounds = self._ends[source], self._episodes[source]
        episode = int(random.integers(len(bounds) - 1))
        begin = int(ends[bounds[episode] - 1]) if bounds[episode] else 0
        ticket = begin + int(random.integers(int(ends[bounds[episode + 1] - 1]) - begin))
        place = int(np.searchsorted(ends, ticket, side="right"))
        return int(self._takes[source][place]), ticket - (int(ends[place - 1]) if place else 0)


def _read(path: Path, names: Sequence[str]) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and tokenize again") from error
