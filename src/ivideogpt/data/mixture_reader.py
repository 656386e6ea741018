"""The stores of a mixture, opened: which episode a clip comes from, and reading it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.data.catalog import DATASETS, DatasetInfo
from ivideogpt.data.clips import ClipSpec, DrawnRows, draw_rows
from ivideogpt.data.mixtures import Mixture, MixtureSource
from ivideogpt.data.store.reader import EpisodeStore


@dataclass(frozen=True)
class OpenSource:
    """A store with what clips need to know about it.

    Attributes:
        source: as the mixture has it.
        store: the episodes.
        episodes: int64 ``[n]``: those of the split.
        stride: distance between used frames.
        embodiment: its id in the mixture.
        action_dim: numbers of an action; 0: it has none.
        centre_crop: the official loader crops frames of this dataset to a square before it resizes them.
    """

    source: MixtureSource
    store: EpisodeStore
    episodes: np.ndarray
    stride: int
    embodiment: int
    action_dim: int
    centre_crop: bool


@dataclass(frozen=True)
class ClipPlace:
    """Where a clip lies.

    Attributes:
        source: number of the source.
        episode: number of the episode in its store.
        drawn: its frames.
    """

    source: int
    episode: int
    drawn: DrawnRows


@dataclass(frozen=True)
class ClipArrays:
    """One clip as it was read.

    Attributes:
        frames: uint8 ``[t h w 3]`` at the size of the store.
        actions: float32 ``[t a]``, padded to the width of the mixture, or None.
        action_mask: bool ``[t a]``: True where a number of ``actions`` is one of the robot's.
        rewards: float32 ``[t]`` or None.
        place: where it lies.
        embodiment: id of the robot.
        centre_crop: of its source.
    """

    frames: np.ndarray
    actions: np.ndarray | None
    action_mask: np.ndarray | None
    rewards: np.ndarray | None
    place: ClipPlace
    embodiment: int
    centre_crop: bool


class OpenMixture:
    """The stores of a mixture, ready to draw clips from."""

    def __init__(self, mixture: Mixture, spec: ClipSpec) -> None:
        """Opens every store.

        Raises:
            UserError: a store cannot be read, or has no episode of the split, or its actions are wider than the mixture
                allows.
        """
        self.mixture, self.spec = mixture, spec
        self.sources: list[OpenSource] = []
        names: list[str] = []
        for source in mixture.sources:
            store = EpisodeStore(source.path)
            name = source.embodiment or store.facts.dataset.name
            names += [] if name in names else [name]
            self.sources.append(_open(source, store, spec, names.index(name)))
        self.embodiments = tuple(names)
        self._ends = np.cumsum(mixture.probabilities).tolist()
        self.action_width = self._action_width()
        rewards = spec.rewards and spec.has_transitions
        self._labels = [label for label, read in (("actions", self.action_width > 0), ("rewards", rewards)) if read]

    @property
    def has_rewards(self) -> bool:
        """Whether all episodes of all sources have rewards; reads no more than the headers of files."""
        return all(one.store.has(episode, "rewards") for one in self.sources for episode in one.episodes)

    def reopened(self) -> OpenMixture:
        """The same with the stores opened anew, for another process."""
        copy = object.__new__(OpenMixture)
        copy.__dict__ = dict(self.__dict__)
        copy.sources = [replace(one, store=EpisodeStore(one.store.folder)) for one in self.sources]
        return copy

    def _action_width(self) -> int:
        """Numbers of an action in a batch; 0: no actions."""
        if not (self.spec.actions and self.spec.has_transitions):
            return 0
        widest = max(self.sources, key=lambda one: one.action_dim)
        width = self.mixture.action_width
        if width is not None and widest.action_dim > width:
            raise UserError(
                f"the actions of {widest.store.folder} have {widest.action_dim} numbers and action_width is {width}; "
                "give at least as many"
            )
        return widest.action_dim if width is None else width

    def place(self, random: np.random.Generator) -> ClipPlace:
        """Draws a clip: a source by its weight, any of its episodes, and frames of that."""
        number = min(bisect_right(self._ends, random.random()), len(self.sources) - 1)
        source = self.sources[number]
        episode = int(source.episodes[random.integers(len(source.episodes))])
        length = int(source.store.lengths[episode])
        return ClipPlace(number, episode, draw_rows(self.spec, length, source.stride, random))

    def read(self, place: ClipPlace) -> ClipArrays:
        """Reads a clip.

        Actions and rewards are those recorded at the used frames: with a stride above 1, or random frames, those of the
        frames in between are left out, as in the official loader. Rows that lead nowhere (the last one, the goal, and
        where the last frame repeats) are zero and masked.

        Raises:
            UserError: the file is damaged, the episode lacks the camera or the rewards, or a number is not finite.
        """
        source, drawn = self.sources[place.source], place.drawn
        found = source.store.arrays(place.episode, self._labels, drawn.rows, camera=source.source.camera)
        actions = mask = rewards = None
        if "actions" in self._labels:
            actions = np.zeros((len(drawn.rows), self.action_width), np.float32)
            mask = np.zeros(actions.shape, bool)
            if "actions" in found:
                width = found["actions"].shape[1]
                actions[:, :width] = np.where(drawn.transitions[:, None], found["actions"], 0)
                mask[:, :width] = drawn.transitions[:, None]
        if "rewards" in self._labels:
            if "rewards" not in found:
                raise self._unfit(place, "no rewards; set rewards=False")
            rewards = np.where(drawn.transitions, found["rewards"], 0).astype(np.float32)
        for label, value in (("actions", actions), ("rewards", rewards)):
            if value is not None and not np.isfinite(value).all():
                raise self._unfit(place, f"NaN or infinity in {label}; remove or repair the episode")
        return ClipArrays(found["frames"], actions, mask, rewards, place, source.embodiment, source.centre_crop)

    def _unfit(self, place: ClipPlace, why: str) -> UserError:
        store = self.sources[place.source].store
        return UserError(f"episode {store.keys[place.episode]!r} of {store.folder} has {why}")


def _open(source: MixtureSource, store: EpisodeStore, spec: ClipSpec, embodiment: int) -> OpenSource:
    episodes = np.arange(len(store))
    if source.split is not None:
        episodes = np.flatnonzero(np.array([split == source.split for split in store.splits], bool))
    if not len(episodes):
        there = ", ".join(sorted(set(store.splits))) or "none"
        raise UserError(f"{store.folder} has no episode of split {source.split!r}; its splits: {there}")
    facts = store.facts
    known = DATASETS.get(facts.dataset.name)
    return OpenSource(
        source=source,
        store=store,
        episodes=episodes,
        stride=_stride(source, store, spec),
        embodiment=embodiment,
        action_dim=0 if facts.actions is None else facts.actions.dim,
        centre_crop=known is not None and known.centre_crop,
    )


def _stride(source: MixtureSource, store: EpisodeStore, spec: ClipSpec) -> int:
    """What the source says, else the clips, else the rule of the catalogue with the base stride of the store."""
    for stride in (source.stride, spec.stride):
        if stride is not None:
            return stride
    facts = store.facts.dataset
    return DatasetInfo(name=facts.name, base_stride=facts.base_stride).stride(spec.video_stepsize)


def pooled_actions(opened: OpenMixture) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each number of raw actions, sources by their weights; 1 where it never changes."""
    shares, mean, square = (np.zeros(opened.action_width) for _ in range(3))
    for source, share in zip(opened.sources, opened.mixture.probabilities, strict=True):
        said = source.store.facts.actions
        if said is not None and said.dim <= opened.action_width:
            shares[: said.dim] += share
            mean[: said.dim] += share * np.array(said.mean)
            square[: said.dim] += share * (np.array(said.std) ** 2 + np.array(said.mean) ** 2)
    shares = np.where(shares, shares, 1)
    mean, square = mean / shares, square / shares
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return tuple(mean.tolist()), tuple(np.where(std > 1e-6 * (1 + np.abs(mean)), std, 1.0).tolist())


def as_mixture(stores: Mixture | EpisodeStore | MixtureSource | str | Sequence[MixtureSource]) -> Mixture:
    """A mixture of one store or of some sources; a mixture as it is."""
    if isinstance(stores, Mixture):
        return stores
    if isinstance(stores, EpisodeStore):
        stores = stores.folder
    if isinstance(stores, str):
        stores = MixtureSource(path=stores)
    return Mixture(sources=(stores,) if isinstance(stores, MixtureSource) else tuple(stores))
