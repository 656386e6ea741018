"""What an episode store says of its dataset as a whole; it lies as JSON in the metadata of the index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.source_episode import ActionField, Omission


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """What is said about a dataset when it is converted.

    Attributes:
        name: of the dataset, as the catalogue has it; a folder holds one dataset.
        url: where it came from.
        licence: its terms, in a few words.
        base_stride: frames that last as long as three of fractal20220817_data; see ``DatasetInfo``.
        options: that it was converted with, as plain JSON values; a folder holds episodes of one choice.
        notes: anything else, as plain JSON values.
    """

    name: str
    url: str = ""
    licence: str = ""
    base_stride: float = 1
    options: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ActionStatistics:
    """The actions of a store in raw units, padding rows not counted.

    Attributes:
        count: how many actions.
        low, high, mean, std: a number for each dimension; std is that of the population.
        fields: what the numbers are, in order; empty: unknown.
    """

    count: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fields: tuple[ActionField, ...] = ()

    @property
    def dim(self) -> int:
        """Numbers of an action."""
        return len(self.low)

    @property
    def names(self) -> tuple[str, ...]:
        """One for each dimension, such as "action/world_vector[0]"; empty: unknown."""
        return tuple(
            field.name if field.size == 1 else f"{field.name}[{place}]"
            for field in self.fields
            for place in range(field.size)
        )


@dataclass(frozen=True, kw_only=True)
class PartFacts:
    """What the small index of one finished shard says of it.

    Attributes:
        task: the name of the shard.
        actions: of its episodes, or None.
        omissions: what of the source is not in it.
    """

    task: str
    actions: ActionStatistics | None = None
    omissions: tuple[Omission, ...] = ()


@dataclass(frozen=True, kw_only=True)
class IndexFacts:
    """What the index of a whole store says of it.

    Attributes:
        format: the version of the layout.
        dataset: what was said when it was converted.
        episodes, frames: how many there are.
        cameras: the sizes (height, width) that the frames of each camera have.
        actions: of all episodes, or None.
    """

    format: str
    dataset: StoreFacts
    episodes: int
    frames: int
    cameras: dict[str, tuple[tuple[int, int], ...]]
    actions: ActionStatistics | None = None


def action_statistics(episodes: Sequence[np.ndarray], fields: tuple[ActionField, ...]) -> ActionStatistics:
    """The statistics of actions ``[t a]``, at least one array; of no action at all they are zeros."""
    values = np.concatenate(episodes).astype(np.float64)
    count = len(values)
    if not count:
        values = np.zeros((1, values.shape[1]))
    # Constant dimensions have a spread of exactly 0, not of rounding.
    constant = values.min(0) == values.max(0)
    return ActionStatistics(
        count=count,
        low=tuple(values.min(0).tolist()),
        high=tuple(values.max(0).tolist()),
        mean=tuple(np.where(constant, values[0], values.mean(0)).tolist()),
        std=tuple(np.where(constant, 0.0, values.std(0)).tolist()),
        fields=fields,
    )


def merged(parts: Sequence[ActionStatistics]) -> ActionStatistics | None:
    """The statistics of several shards together; None where no shard has actions.

    Raises:
        UserError: the actions differ in width or in what their numbers are.
    """
    if not parts:
        return None
    for part in parts:
        if (part.dim, part.fields) != (parts[0].dim, parts[0].fields):
            raise UserError(
                f"some shards have actions of {parts[0].dim} numbers {list(parts[0].names)} and others of {part.dim} "
                f"{list(part.names)}; convert them into two folders"
            )
    parts = [part for part in parts if part.count] or list(parts[:1])
    counts = np.array([part.count for part in parts], np.float64)
    weights = (counts / max(counts.sum(), 1))[:, None]
    means, low, high = (np.array([getattr(part, name) for part in parts]) for name in ("mean", "low", "high"))
    low, high = low.min(0), high.max(0)
    mean = np.where(low == high, low, (weights * means).sum(0))
    spread = np.array([part.std for part in parts]) ** 2 + (means - mean) ** 2
    return ActionStatistics(
        count=int(counts.sum()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        mean=tuple(mean.tolist()),
        std=tuple(np.sqrt((weights * spread).sum(0)).tolist()),
        fields=parts[0].fields,
    )
