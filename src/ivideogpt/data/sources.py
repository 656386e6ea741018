"""The stores of a mixture, opened: which episode a clip comes from, and reading it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.data.catalog import DATASETS, DatasetInfo
from ivideogpt.data.clips import ClipSpec, DrawnRows, draw_rows
from ivideogpt.data.mixtures import Mixture, MixtureSource
from ivideogpt.data.store import EpisodeStore


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
        self._ends = np.cumsum(mixture.probabilities)
        self.action_width = self._action_width()

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
        number = min(int(np.searchsorted(self._ends, random.random(), side="right")), len(self.sources) - 1)
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
            UserError: the file is damaged, or the episode lacks the camera or the rewards.
        """
        source, drawn = self.sources[place.source], place.drawn
        episode = source.store.clip(place.episode, drawn.as_selection(), camera=source.source.camera)
        actions = mask = rewards = None
        if self.action_width:
            actions = np.zeros((len(drawn.rows), self.action_width), np.float32)
            mask = np.zeros(actions.shape, bool)
            if episode.actions is not None:
                width = episode.actions.shape[1]
                actions[:, :width] = np.where(drawn.transitions[:, None], episode.actions, 0)
                mask[:, :width] = drawn.transitions[:, None]
        if self.spec.rewards and self.spec.has_transitions:
            if episode.rewards is None:
                raise UserError(f"episode {episode.key!r} of {source.store.folder} has no rewards; set rewards=False")
            rewards = np.where(drawn.transitions, episode.rewards, 0).astype(np.float32)
        return ClipArrays(episode.frames, actions, mask, rewards, place, source.embodiment, source.centre_crop)


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


def as_mixture(stores: Mixture | EpisodeStore | MixtureSource | str | Sequence[MixtureSource]) -> Mixture:
    """A mixture of one store or of some sources; a mixture as it is."""
    if isinstance(stores, Mixture):
        return stores
    if isinstance(stores, EpisodeStore):
        stores = stores.folder
    if isinstance(stores, str):
        stores = MixtureSource(path=stores)
    return Mixture(sources=(stores,) if isinstance(stores, MixtureSource) else tuple(stores))
