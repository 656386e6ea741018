"""The open stores of a mixture: draws the episode and frames of a clip, and reads them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.data.catalog import DATASETS, DatasetInfo
from ivideogpt.data.clips import ClipSpec, DrawnRows, draw_rows
from ivideogpt.data.lerobot_episodes import EpisodeSource, open_source
from ivideogpt.data.mixtures import Mixture, MixtureSource
from ivideogpt.data.store.reader import EpisodeStore


@dataclass(frozen=True)
class OpenSource:
    """An open store and its settings for clips.

    Attributes:
        source: in the mixture.
        store: the episodes.
        episodes: int64 ``[n]``: those of the split.
        stride: distance between used frames.
        embodiment: its id in the mixture.
        action_dim: dimensions of an action; 0: it has none.
        centre_crop: the official loader crops frames of this dataset to a square before it resizes them.
    """

    source: MixtureSource
    store: EpisodeSource
    episodes: np.ndarray
    stride: int
    embodiment: int
    action_dim: int
    centre_crop: bool


@dataclass(frozen=True)
class ClipPlace:
    """The source, episode and frames of a clip.

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
    """One clip before augmentation.

    Attributes:
        frames: uint8 ``[t h w 3]`` of the size in the store.
        actions: float32 ``[t a]``, padded to the width of the mixture, or None.
        action_mask: bool ``[t a]``: True where a number of ``actions`` is one of the robot's.
        rewards: float32 ``[t]`` or None.
        place: its source, episode and frames.
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
        """Open every store.

        Raises:
            UserError: a store cannot be read or has no episode of the split, or its actions have more dimensions than
                the mixture allows.
        """
        self.mixture, self.spec = mixture, spec
        self.sources: list[OpenSource] = []
        names: list[str] = []
        for source in mixture.sources:
            store = open_source(source.path)
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
        """True where all episodes of all sources have rewards; only headers of files are read."""
        return all(source.store.has(episode, "rewards") for source in self.sources for episode in source.episodes)

    @property
    def is_remote(self) -> bool:
        """True where reading a clip may wait for a network."""
        return any("://" in source.store.folder for source in self.sources)

    def reopened(self) -> OpenMixture:
        """Return a copy with newly opened stores, for another process."""
        copy = object.__new__(OpenMixture)
        copy.__dict__ = dict(self.__dict__)
        copy.sources = [replace(source, store=source.store.reopened()) for source in self.sources]
        return copy

    def _action_width(self) -> int:
        """Return the dimensions of an action in a batch; 0: no actions."""
        if not (self.spec.actions and self.spec.has_transitions):
            return 0
        widest = max(self.sources, key=lambda source: source.action_dim)
        width = self.mixture.action_width
        if width is not None and widest.action_dim > width:
            raise UserError(
                f"the actions of {widest.store.folder} have {widest.action_dim} numbers and action_width is {width}; "
                "give at least as many"
            )
        return widest.action_dim if width is None else width

    def place(self, random: np.random.Generator) -> ClipPlace:
        """Draw a clip: a source by its weight, one of its episodes, and frames of the episode."""
        number = min(bisect_right(self._ends, random.random()), len(self.sources) - 1)
        source = self.sources[number]
        episode = int(source.episodes[random.integers(len(source.episodes))])
        length = int(source.store.lengths[episode])
        return ClipPlace(number, episode, draw_rows(self.spec, length, source.stride, random))

    def read(self, place: ClipPlace) -> ClipArrays:
        """Read a clip.

        Actions and rewards are those recorded at the used frames. With a stride above 1, or random frames, those of the
        frames in between are skipped, as in the official loader. Rows without a next frame (the last one, the goal, and
        repeats of the last frame) are zero and masked.

        Raises:
            UserError: the file is damaged, the episode lacks the camera or the rewards, or a number is not finite.
        """
        source, drawn = self.sources[place.source], place.drawn
        arrays = source.store.arrays(place.episode, self._labels, drawn.rows, camera=source.source.camera)
        actions = mask = rewards = None
        if "actions" in self._labels:
            actions = np.zeros((len(drawn.rows), self.action_width), np.float32)
            mask = np.zeros(actions.shape, bool)
            if "actions" in arrays:
                width = arrays["actions"].shape[1]
                actions[:, :width] = np.where(drawn.transitions[:, None], arrays["actions"], 0)
                mask[:, :width] = drawn.transitions[:, None]
        if "rewards" in self._labels:
            if "rewards" not in arrays:
                raise self._cannot_use(place, "no rewards; set rewards=False")
            rewards = np.where(drawn.transitions, arrays["rewards"], 0).astype(np.float32)
        for label, value in (("actions", actions), ("rewards", rewards)):
            if value is not None and not np.isfinite(value).all():
                raise self._cannot_use(place, f"NaN or infinity in {label}; remove or repair the episode")
        return ClipArrays(arrays["frames"], actions, mask, rewards, place, source.embodiment, source.centre_crop)

    def _cannot_use(self, place: ClipPlace, why: str) -> UserError:
        store = self.sources[place.source].store
        return UserError(f"episode {store.keys[place.episode]!r} of {store.folder} has {why}")


def _open(source: MixtureSource, store: EpisodeSource, spec: ClipSpec, embodiment: int) -> OpenSource:
    episodes = np.arange(len(store))
    if source.split is not None:
        episodes = np.flatnonzero(np.array([split == source.split for split in store.splits], bool))
    if not len(episodes):
        splits = ", ".join(sorted(set(store.splits))) or "none"
        raise UserError(f"{store.folder} has no episode of split {source.split!r}; its splits: {splits}")
    facts = store.facts
    dataset = DATASETS.get(facts.dataset.name)
    return OpenSource(
        source=source,
        store=store,
        episodes=episodes,
        stride=_stride(source, store, spec),
        embodiment=embodiment,
        action_dim=0 if facts.actions is None else facts.actions.dim,
        centre_crop=dataset is not None and dataset.centre_crop,
    )


def _stride(source: MixtureSource, store: EpisodeSource, spec: ClipSpec) -> int:
    """Return the stride of the source, else of the clips, else by the catalogue's rule and the store's base stride."""
    for stride in (source.stride, spec.stride):
        if stride is not None:
            return stride
    facts = store.facts.dataset
    return DatasetInfo(name=facts.name, base_stride=facts.base_stride).stride(spec.video_stepsize)


def pooled_actions(opened: OpenMixture) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each dimension of raw actions, over sources by their weights.

    The standard deviation is 1 for a dimension that never changes.
    """
    shares, mean, square = (np.zeros(opened.action_width) for _ in range(3))
    for source, share in zip(opened.sources, opened.mixture.probabilities, strict=True):
        actions = source.store.facts.actions
        if actions is not None and actions.dim <= opened.action_width:
            shares[: actions.dim] += share
            mean[: actions.dim] += share * np.array(actions.mean)
            square[: actions.dim] += share * (np.array(actions.std) ** 2 + np.array(actions.mean) ** 2)
    shares = np.where(shares, shares, 1)
    mean, square = mean / shares, square / shares
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return tuple(mean.tolist()), tuple(np.where(std > 1e-6 * (1 + np.abs(mean)), std, 1.0).tolist())


def action_ranges(opened: OpenMixture) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the lowest and the highest value of each dimension of raw actions, over all sources that have it."""
    ranges = [x for source in opened.sources if (x := source.store.facts.actions) and x.dim <= opened.action_width]
    low, high = np.full(opened.action_width, np.inf), np.full(opened.action_width, -np.inf)
    for actions in ranges:
        low[: actions.dim] = np.minimum(low[: actions.dim], actions.low)
        high[: actions.dim] = np.maximum(high[: actions.dim], actions.high)
    return tuple(low.tolist()), tuple(high.tolist())


def as_mixture(stores: Mixture | EpisodeStore | MixtureSource | str | Sequence[MixtureSource]) -> Mixture:
    """Return a mixture of one store or of some sources; a mixture is returned unchanged."""
    if isinstance(stores, Mixture):
        return stores
    if isinstance(stores, EpisodeStore):
        stores = stores.folder
    if isinstance(stores, str):
        stores = MixtureSource(path=stores)
    return Mixture(sources=(stores,) if isinstance(stores, MixtureSource) else tuple(stores))
