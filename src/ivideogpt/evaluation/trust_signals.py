"""Signals of an imagined frame that are known without the truth, beside its real error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.intervals import Bootstrap, Estimate

#: Share of all frames in the quarter with the highest signal, and in the one with the lowest.
_TAIL = 0.25
# Fewest clips of a correlation.
_MIN_CLIPS = 3


@dataclass(frozen=True)
class Trust:
    """Relation of a signal to the error of a frame.

    Attributes:
        spearman: rank correlation with the error over all frames of all clips, -1 to 1; 0: none.
        pearson: linear correlation over the same.
        same_frame: rank correlation among clips at one frame number, mean over frame numbers: without the part that
            later frames are worse.
        tail_ratio: mean error of the quarter of frames with the highest signal over that of the lowest quarter.
    """

    spearman: Estimate
    pearson: Estimate
    same_frame: Estimate
    tail_ratio: Estimate


def measure_trust(signal: Tensor, error: Tensor, bootstrap: Bootstrap) -> Trust:
    """Compare a signal with the error.

    Args:
        signal: ``[n f]``: of frame f of clip n, known without the truth.
        error: ``[n f]``: of the same frame; any measure where more is worse.
        bootstrap: of the n clips.

    Raises:
        UserError: the shapes differ.
    """
    if signal.shape != error.shape or signal.ndim != 2:
        raise UserError(f"signal is {list(signal.shape)} and error is {list(error.shape)}; expected the same [n f]")
    signals, errors = (x.detach().double().cpu().numpy() for x in (signal, error))

    def over(figure: Callable[[np.ndarray, np.ndarray], float]) -> Estimate:
        return bootstrap.over(lambda clips: figure(signals[clips], errors[clips]))

    return Trust(
        spearman=over(lambda a, b: correlation(ranks(a.ravel()), ranks(b.ravel()))),
        pearson=over(lambda a, b: correlation(a.ravel(), b.ravel())),
        same_frame=over(_at_one_frame),
        tail_ratio=over(_tail_ratio),
    )


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation of two float64 ``[n]``; NaN where one is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale > 0 else float("nan")


def _at_one_frame(signal: np.ndarray, error: np.ndarray) -> float:
    if len(signal) < _MIN_CLIPS:
        return float("nan")
    values = np.array([correlation(ranks(a), ranks(b)) for a, b in zip(signal.T, error.T, strict=True)])
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float("nan")


def _tail_ratio(signal: np.ndarray, error: np.ndarray) -> float:
    order, count = np.argsort(signal.ravel(), kind="stable"), max(int(signal.size * _TAIL), 1)
    ordered = error.ravel()[order]
    least = ordered[:count].mean()
    return float(ordered[-count:].mean() / least) if least > 0 else float("nan")


def ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks ``[n]`` in ascending order; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
