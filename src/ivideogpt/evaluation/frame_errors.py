"""Metrics of imagined frames against the true ones: a new metric is one more entry of `FRAME_METRICS`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ivideogpt.metrics.image import mse, psnr, ssim


@dataclass(frozen=True)
class Metric:
    """One number a frame.

    Attributes:
        key: in files and JSON.
        label: for people, with the unit.
        higher: a higher value is closer.
        measure: imagined and true frames, float ``[b t c h w]`` in [0, 1] each, to float32 ``[b t]``.
        digits: decimals to show.
    """

    key: str
    label: str
    higher: bool
    measure: Callable[[Tensor, Tensor], Tensor]
    digits: int


#: Key -> metric that every evaluation measures; none of them needs weights.
FRAME_METRICS: dict[str, Metric] = {
    "psnr": Metric("psnr", "PSNR, dB", True, psnr, 2),
    "ssim": Metric("ssim", "SSIM", True, ssim, 3),
    "mse": Metric("mse", "MSE", False, mse, 5),
}


def perceptual_metric(distance: Callable[[Tensor, Tensor], Tensor], name: str) -> Metric:
    """Make a metric of a perceptual distance of frames ``[.. 3 h w]``, under its own name."""
    key = re.sub(r"\W+", "_", name.lower()).strip("_")
    return Metric(key, name, False, partial(_measure_frames, distance), 4)


def _measure_frames(distance: Callable[[Tensor, Tensor], Tensor], imagined: Tensor, true: Tensor) -> Tensor:
    return distance(imagined, true).float()


@dataclass(frozen=True)
class FrameScores:
    """Scores of n clips with k futures each by one metric.

    Attributes:
        context: float32 ``[n c]``: of the context frames, encoded and decoded.
        future: float32 ``[n k f]``: of the imagined frames.
    """

    context: Tensor
    future: Tensor

    def over_time(self, whole: bool) -> Tensor:
        """Return the mean over the frames of each future, ``[n k]``.

        Args:
            whole: over the whole clip, context included, as in the official evaluation; False: over the future.
        """
        if not whole:
            return self.future.mean(dim=-1)
        context = self.context[:, None].expand(-1, self.future.shape[1], -1)
        return torch.cat([context, self.future], dim=-1).mean(dim=-1)


def best_of(values: Tensor, higher: bool) -> Tensor:
    """Return the best of the futures of each clip, ``[n k]`` to ``[n]``.

    Source: paper section 4.1 and thuml/iVideoGPT: mean over time first, then the best future, by each metric its own;
    same.
    """
    return values.amax(dim=1) if higher else values.amin(dim=1)
