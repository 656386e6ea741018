"""How far imagined frames are from the true ones: which numbers, over which frames, of which futures."""

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
        higher: whether more is closer.
        measure: of found and true frames, float ``[b t c h w]`` in [0, 1] each: float32 ``[b t]``.
        digits: decimals to show.
    """

    key: str
    label: str
    higher: bool
    measure: Callable[[Tensor, Tensor], Tensor]
    digits: int


#: What needs no weights.
IMAGE_METRICS = (
    Metric("psnr", "PSNR, dB", True, psnr, 2),
    Metric("ssim", "SSIM", True, ssim, 3),
    Metric("mse", "MSE", False, mse, 5),
)


def perceptual_metric(distance: Callable[[Tensor, Tensor], Tensor], name: str) -> Metric:
    """A perceptual distance of frames ``[.. 3 h w]`` as a metric under its own name."""
    key = re.sub(r"\W+", "_", name.lower()).strip("_")
    return Metric(key, name, False, partial(_measure_frames, distance), 4)


def _measure_frames(distance: Callable[[Tensor, Tensor], Tensor], found: Tensor, true: Tensor) -> Tensor:
    return distance(found, true).float()


@dataclass(frozen=True)
class FrameScores:
    """One metric of n clips with k futures each.

    Attributes:
        context: float32 ``[n c]``: of the context frames, encoded and decoded.
        future: float32 ``[n k f]``: of the imagined frames.
    """

    context: Tensor
    future: Tensor

    def over_time(self, whole: bool) -> Tensor:
        """Mean over the frames of each future, ``[n k]``.

        Args:
            whole: over the whole clip, context included, as the official evaluation takes it; False: over the future.
        """
        if not whole:
            return self.future.mean(dim=-1)
        context = self.context[:, None].expand(-1, self.future.shape[1], -1)
        return torch.cat([context, self.future], dim=-1).mean(dim=-1)


def best_of(values: Tensor, higher: bool) -> Tensor:
    """The best of the futures of each clip, ``[n k]`` to ``[n]``.

    Source: paper section 4.1 and thuml/iVideoGPT: mean over time first, then the best future, by each metric its own;
    same.
    """
    return values.amax(dim=1) if higher else values.amin(dim=1)
