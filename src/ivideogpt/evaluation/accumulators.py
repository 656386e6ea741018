"""Accumulators of an evaluation: from each batch of clips only numbers and a few pictures are kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor

from ivideogpt.evaluation.frame_errors import FrameScores, Metric
from ivideogpt.evaluation.rollouts import Futures
from ivideogpt.evaluation.token_accuracy import frozen_frames, repetition


class Columns:
    """Named tensors that grow batch by batch along their first axis, on the CPU."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, name: str, values: Tensor) -> None:
        """Append values ``[n ...]`` of the next clips."""
        self._parts[name].append(values.detach().cpu())

    def join(self, later: Columns) -> None:
        """Append the values of later clips."""
        for name, parts in later._parts.items():
            self._parts[name] += parts

    def tensors(self) -> dict[str, Tensor]:
        """Return each tensor ``[all clips ...]``."""
        return {name: torch.cat(parts) for name, parts in self._parts.items()}


class ScoreTable:
    """Scores of the frames by row and metric."""

    def __init__(self) -> None:
        self._context = Columns()
        self._rows: dict[str, Columns] = defaultdict(Columns)

    def add_context(self, metrics: Sequence[Metric], context: Tensor, true: Tensor) -> None:
        """Measure decoded context frames ``[n c ...]`` of the next clips."""
        for metric in metrics:
            self._context.add(metric.key, metric.measure(context, true))

    def add(self, metrics: Sequence[Metric], row: str, frames: Tensor, true: Tensor) -> None:
        """Measure futures ``[n k f c h w]`` of the next clips against the truth ``[n f c h w]``."""
        self.add_scores(row, measure_frames(metrics, frames, true))

    def join(self, later: ScoreTable) -> None:
        """Append the scores of later clips."""
        self._context.join(later._context)
        for row, columns in later._rows.items():
            self._rows[row].join(columns)

    def add_scores(self, row: str, scores: dict[str, Tensor]) -> None:
        """Append scores ``[n k f]`` of the next clips by the key of a metric."""
        for key, values in scores.items():
            self._rows[row].add(key, values)

    def scores(self) -> dict[str, dict[str, FrameScores]]:
        """Return the scores of all clips: row -> key of a metric -> scores."""
        context = self._context.tensors()
        return {
            row: {key: FrameScores(context[key], values) for key, values in columns.tensors().items()}
            for row, columns in self._rows.items()
        }


class FutureAccumulator:
    """All futures of one batch of clips, which may come some after the others.

    Attributes:
        seconds: of the imagination so far.
        first: first future of each clip, ``[n f c h w]``.
        best: future of each clip with the highest PSNR, ``[n f c h w]``.
    """

    def __init__(self, true: Tensor, metrics: Sequence[Metric]) -> None:
        """Begin a batch with the truth ``[n f c h w]``; PSNR must be among the metrics."""
        self._true, self._metrics = true, metrics
        self._parts: dict[str, list[Tensor]] = defaultdict(list)
        self._ratio = torch.full((len(true),), -torch.inf, device=true.device)
        self._count = 0
        self._sum = torch.zeros_like(true, dtype=torch.float64)
        self._squares = torch.zeros_like(true, dtype=torch.float64)
        self.first = self.best = true
        self.seconds = 0.0

    def add(self, futures: Futures) -> None:
        """Take in some futures of every clip."""
        scores = measure_frames(self._metrics, futures.frames, self._true)
        for key, values in scores.items():
            self._parts[key].append(values)
        self._parts["entropies"].append(futures.entropies)
        self._parts["repetition"].append(repetition(futures.ids))
        self._parts["frozen_frames"].append(frozen_frames(futures.ids))
        if futures.rewards is not None:
            self._parts["rewards"].append(futures.rewards.float())
        # first and best future
        if self._count == 0:
            self.first = futures.frames[:, 0]
            self.best = self.first
        ratios, samples = scores["psnr"].mean(dim=-1).max(dim=1)
        frames = futures.frames[torch.arange(len(samples), device=samples.device), samples]
        better = ratios > self._ratio
        self.best = torch.where(better[:, None, None, None, None], frames, self.best)
        self._ratio = torch.where(better, ratios, self._ratio)
        # moments of the pixels
        pixels = futures.frames.double()
        self._sum += pixels.sum(dim=1)
        self._squares += pixels.square().sum(dim=1)
        self._count += futures.frames.shape[1]
        self.seconds += futures.seconds

    def scores(self) -> dict[str, Tensor]:
        """Return the scores ``[n k f]`` by the key of a metric."""
        return {metric.key: self.values(metric.key) for metric in self._metrics}

    def values(self, name: str) -> Tensor:
        """Return ``[n k ...]``: "entropies", "repetition", "frozen_frames" or "rewards"."""
        return torch.cat(self._parts[name], dim=1)

    def has(self, name: str) -> bool:
        """Return whether there are values of that name."""
        return name in self._parts

    def disagreement(self) -> Tensor:
        """Return the standard deviation of a pixel over the futures, root mean square over each frame: ``[n f]``."""
        variance = (self._squares / self._count - (self._sum / self._count) ** 2).clamp(min=0)
        return variance.mean(dim=(-3, -2, -1)).sqrt().float()


def measure_frames(metrics: Sequence[Metric], frames: Tensor, true: Tensor) -> dict[str, Tensor]:
    """Measure futures ``[n k f c h w]`` against the truth ``[n f c h w]``: key of a metric -> ``[n k f]``."""
    k = frames.shape[1]
    flat, repeated = rearrange(frames, "n k ... -> (n k) ..."), repeat(true, "n ... -> (n k) ...", k=k)
    return {x.key: rearrange(x.measure(flat, repeated), "(n k) f -> n k f", k=k) for x in metrics}


def to_pixels(frames: Tensor) -> Tensor:
    """Convert frames in [0, 1] to uint8."""
    return (frames.clamp(0, 1) * 255).round().byte()
