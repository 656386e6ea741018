"""Confidence intervals of means over clips: percentiles over clips drawn again with replacement."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from torch import Tensor

#: Number of resamples.
RESAMPLES = 2000
#: Number of resamples for figures that are computed anew for each.
FEWER_RESAMPLES = 200
#: Share of the resamples that lies inside an interval.
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; of fewer than 2 clips the ends are NaN.

    Attributes:
        value: over all clips.
        low: end below which 2.5 % of the resamples lie.
        high: end above which 2.5 % of the resamples lie.
    """

    value: float
    low: float
    high: float


def share_estimate(successes: int, count: int) -> Estimate:
    """Estimate a share, such as a success rate; the interval is right for shares near 0 and 1 too.

    Args:
        successes: 0 to ``count``.
        count: of independent trials; none: NaN.

    Source: Wilson 1927, the score interval.
    """
    if not count:
        return Estimate(float("nan"), float("nan"), float("nan"))
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, spread = successes / count, z**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half))


class Bootstrap:
    """The same resamples of n clips for every figure, so that figures can be compared.

    Clips are drawn, because frames and futures of one clip are no independent evidence. With few clips percentile
    intervals are somewhat too narrow.

    Source: Efron 1979, the percentile interval.
    """

    def __init__(self, clips: int, seed: int = 0, resamples: int = RESAMPLES) -> None:
        """Draw the resamples.

        Args:
            clips: their number.
            seed: of the draw.
            resamples: their number.
        """
        random = np.random.default_rng(seed)
        self._clips = clips
        #: Multiplicity of each clip in a resample, ``[resamples n]``.
        self._counts = random.multinomial(clips, np.full(clips, 1 / clips), resamples).astype(np.float64)

    def mean(self, values: Tensor) -> Estimate:
        """Estimate the mean of one number a clip, ``[n]``; NaN is left out."""
        return self.ratio(values, values.new_ones(len(values)))

    def ratio(self, above: Tensor, below: Tensor) -> Estimate:
        """Estimate the sum of ``above`` ``[n]`` over the sum of ``below`` ``[n]``; clips with a NaN are left out."""
        top, bottom = (x.detach().double().cpu().numpy() for x in (above, below))
        finite = np.isfinite(top) & np.isfinite(bottom)
        top, bottom = np.where(finite, top, 0), np.where(finite, bottom, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            value, drawn = top.sum() / bottom.sum(), (self._counts @ top) / (self._counts @ bottom)
        return self._estimate(float(value), drawn)

    def over(self, figure: Callable[[np.ndarray], float], resamples: int = FEWER_RESAMPLES) -> Estimate:
        """Estimate any figure of a choice of clips.

        Args:
            figure: from numbers of clips int64 ``[n]``, some of them several times.
            resamples: fewer, as each is computed anew.
        """
        numbers = np.arange(self._clips)
        drawn = [figure(np.repeat(numbers, count.astype(int))) for count in self._counts[:resamples]]
        return self._estimate(figure(numbers), np.array(drawn))

    def _estimate(self, value: float, drawn: np.ndarray) -> Estimate:
        drawn = drawn[np.isfinite(drawn)]
        if self._clips < 2 or not len(drawn):
            return Estimate(value, float("nan"), float("nan"))
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(value, float(low), float(high))
