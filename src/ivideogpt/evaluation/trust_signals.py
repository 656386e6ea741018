"""Can a person tell without the truth which imagined frames to believe? Signals of a frame beside its real error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.intervals import Bootstrap, Estimate

#: Share of all frames that counts as the least sure ones, and as the surest.
_TAIL = 0.25
# Fewer clips have no correlation worth the name.
_LEAST = 3


@dataclass(frozen=True)
class Trust:
    """How well a signal tells the error of a frame.

    Attributes:
        spearman: rank correlation with the error over all frames of all clips, -1 to 1; 0: it tells nothing.
        pearson: linear correlation over the same.
        same_frame: rank correlation among clips at one frame number, mean over frame numbers: what the signal tells
            beyond "later frames are worse".
        tail_ratio: mean error of the quarter of frames with the highest signal over that of the lowest quarter.
    """

    spearman: Estimate
    pearson: Estimate
    same_frame: Estimate
    tail_ratio: Estimate


def measure_trust(signal: Tensor, error: Tensor, bootstrap: Bootstrap) -> Trust:
    """Compares a signal with the error.

    Args:
        signal: ``[n f]``: of frame f of clip n, known without the truth.
        error: ``[n f]``: of the same frame; any measure where more is worse.
        bootstrap: of the n clips.

    Raises:
        UserError: the shapes differ.
    """
    if signal.shape != error.shape or signal.ndim != 2:
        raise UserError(f"signal is {list(signal.shape)} and error is {list(error.shape)}; expected the same [n f]")
    told, real = (x.detach().double().cpu().numpy() for x in (signal, error))

    def over(figure: Callable[[np.ndarray, np.ndarray], float]) -> Estimate:
        return bootstrap.over(lambda clips: figure(told[clips], real[clips]))

    return Trust(
        spearman=over(lambda a, b: correlation(ranks(a.ravel()), ranks(b.ravel()))),
        pearson=over(lambda a, b: correlation(a.ravel(), b.ravel())),
        same_frame=over(_at_one_frame),
        tail_ratio=over(_tail_ratio),
    )


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of two float64 ``[n]``; NaN where one is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale > 0 else float("nan")


def _at_one_frame(signal: np.ndarray, error: np.ndarray) -> float:
    if len(signal) < _LEAST:
        return float("nan")
    found = np.array([correlation(ranks(a), ranks(b)) for a, b in zip(signal.T, error.T, strict=True)])
    return float(found[np.isfinite(found)].mean()) if np.isfinite(found).any() else float("nan")


def _tail_ratio(signal: np.ndarray, error: np.ndarray) -> float:
    order, count = np.argsort(signal.ravel(), kind="stable"), max(int(signal.size * _TAIL), 1)
    ordered = error.ravel()[order]
    least = ordered[:count].mean()
    return float(ordered[-count:].mean() / least) if least > 0 else float("nan")


def ranks(values: np.ndarray) -> np.ndarray:
    """Places ``[n]`` in ascending order; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
