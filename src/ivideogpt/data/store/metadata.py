"""Description of the dataset of an episode store; it is kept as JSON in the metadata of the index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.source_episode import ActionField, Omission


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """Description of a dataset, given when it is converted.

    Attributes:
        name: of the dataset in the catalogue; a folder holds one dataset.
        url: of the download.
        licence: its terms, in a few words.
        base_stride: frames that last as long as three of fractal20220817_data; see ``DatasetInfo``.
        options: of the conversion, plain JSON values; a folder holds episodes of one choice of options.
        notes: further plain JSON values.
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
        count: number of actions.
        low, high, mean, std: a number for each dimension; std is that of the population.
        fields: meaning of the numbers, in order; empty: unknown.
    """

    count: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fields: tuple[ActionField, ...] = ()

    def __post_init__(self) -> None:
        """Raise UserError if the numbers of dimensions differ."""
        widths = {len(values) for values in (self.low, self.high, self.mean, self.std)}
        if self.fields:
            widths.add(sum(field.size for field in self.fields))
        if len(widths) > 1 or self.count < 0:
            raise UserError(f"statistics of actions have {sorted(widths)} dimensions; expected one number of them")

    @property
    def dim(self) -> int:
        """Dimensions of an action."""
        return len(self.low)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each dimension, such as "action/world_vector[0]"; empty: unknown."""
        return tuple(
            field.name if field.size == 1 else f"{field.name}[{index}]"
            for field in self.fields
            for index in range(field.size)
        )


@dataclass(frozen=True, kw_only=True)
class PartFacts:
    """Description of one finished shard, in its small index.

    Attributes:
        task: the name of the shard.
        actions: of its episodes, or None.
        omissions: parts of the source that are not in it.
    """

    task: str
    actions: ActionStatistics | None = None
    omissions: tuple[Omission, ...] = ()


@dataclass(frozen=True, kw_only=True)
class IndexFacts:
    """Description of a whole store, in its index.

    Attributes:
        format: version of the layout.
        dataset: description of the dataset.
        episodes, frames: numbers of them.
        cameras: the sizes (height, width) of the frames of each camera.
        actions: of all episodes, or None.
    """

    format: str
    dataset: StoreFacts
    episodes: int
    frames: int
    cameras: dict[str, tuple[tuple[int, int], ...]]
    actions: ActionStatistics | None = None


def action_statistics(episodes: Sequence[np.ndarray], fields: tuple[ActionField, ...]) -> ActionStatistics:
    """Return the statistics of actions ``[t a]``, at least one array; without any action they are zeros."""
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
    """Return the statistics of several shards together; None if no shard has actions.

    Raises:
        UserError: the actions differ in dimensions or in their meaning.
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
