"""MSE, PSNR and SSIM of two videos, frame by frame.

Every function takes two float tensors ``[b t c h w]`` in [0, 1] and returns one number a frame, float32 ``[b t]``.
Means over time and the best of several samples are left to the caller.
"""

from __future__ import annotations

import math

import torch
from einops import reduce
from torch import Tensor

from ivideogpt.core.errors import UserError

#: PSNR of identical frames, in dB, where the true value is infinite.
PSNR_LIMIT = 100.0

# Wang et al. 2004: side and deviation of the Gaussian window in pixels, and the constants K1 and K2.
_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03
# Rounding may leave a decoded pixel this far outside [0, 1].
_TOLERANCE = 1e-3


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Compute the mean squared error over channels and pixels; 0 where frames are equal.

    Args:
        a: float ``[b t c h w]`` in [0, 1].
        b: the same shape and range.

    Returns:
        float32 ``[b t]``, 0 to 1.

    Raises:
        UserError: the shapes differ, are not 5-dimensional or empty, or values are not floats in [0, 1].
    """
    a, b = _checked(a, b)
    return reduce((a - b) ** 2, "b t c h w -> b t", "mean")


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio for a data range of 1, in dB: ``10 log10(1 / mse)``, higher is closer.

    Frames closer than 100 dB, identical ones among them, get ``PSNR_LIMIT`` = 100 dB.

    Source: differs from the official evaluation (see parity), which adds 1e-8 to the mse: identical frames get
    80 dB there, and below 50 dB both agree to 0.005 dB.

    Args:
        a: float ``[b t c h w]`` in [0, 1].
        b: the same shape and range.

    Returns:
        float32 ``[b t]`` in dB, at most 100.

    Raises:
        UserError: as ``mse``.
    """
    return -10 * torch.log10(mse(a, b).clamp(min=10 ** (-PSNR_LIMIT / 10)))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Compute the structural similarity (Wang et al. 2004), mean over channels and pixels; 1 where frames are equal.

    A Gaussian window of 11 x 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, on each channel, only where the window
    lies wholly inside the frame; population variances, no downsampling.

    Source: the official evaluation (piqa.SSIM); same.

    Args:
        a: float ``[b t c h w]`` in [0, 1], at least 11 pixels high and wide.
        b: the same shape and range.

    Returns:
        float32 ``[b t]``, at most 1, below 0 where frames are each other's negatives.

    Raises:
        UserError: as ``mse``, or the frames are smaller than the window.
    """
    a, b = _checked(a, b)
    if min(a.shape[-2:]) < _WINDOW:
        raise UserError(
            f"the frames are {a.shape[-1]} x {a.shape[-2]} pixels; SSIM needs at least {_WINDOW} x {_WINDOW}"
        )
    mean_a, mean_b = _blurred(a), _blurred(b)
    variances = _blurred(a * a) - mean_a**2 + _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _K1**2) / (mean_a**2 + mean_b**2 + _K1**2)
    structure = (2 * covariance + _K2**2) / (variances + _K2**2)
    return reduce(luminance * structure, "b t c h w -> b t", "mean")


def _blurred(frames: Tensor) -> Tensor:
    """Return Gaussian means ``[.. h-10 w-10]`` of ``[.. h w]``.

    Shifted sums instead of a convolution: as fast, and never in reduced precision (autocast, TF32), in which the
    variances, small differences of large numbers, would be lost.
    """
    window = [math.exp(-((offset - _WINDOW // 2) ** 2) / (2 * _SIGMA**2)) for offset in range(_WINDOW)]
    for axis in (-2, -1):
        length = frames.shape[axis] - _WINDOW + 1
        total = torch.zeros_like(frames.narrow(axis, 0, length))
        for offset, weight in enumerate(window):
            total.add_(frames.narrow(axis, offset, length), alpha=weight / sum(window))
        frames = total
    return frames


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Check both videos; return them as float32."""
    if a.shape != b.shape or a.ndim != 5 or a.numel() == 0:
        raise UserError(
            f"the videos have shapes {list(a.shape)} and {list(b.shape)}; expected [b t c h w] twice, not empty"
        )
    for name, video in (("first", a), ("second", b)):
        if not video.is_floating_point():
            raise UserError(f"the {name} video has type {video.dtype}; expected floats in [0, 1]: divide uint8 by 255")
        low, high = (value.item() for value in video.detach().aminmax())
        # Written so that NaN fails too.
        if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
            raise UserError(
                f"the {name} video has values from {low:g} to {high:g}; expected [0, 1]: clamp or divide by 255"
            )
    return a.float(), b.float()
