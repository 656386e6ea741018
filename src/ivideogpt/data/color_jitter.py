"""Brightness, contrast, saturation and hue of 8-bit frames exactly as Pillow changes them; vectorised, on any device.

Each step rounds and clips as Pillow does. The official loader applies ``ImageEnhance.Brightness``, ``Contrast`` and
``Color`` and a shift of the 8-bit hue in Pillow's HSV, one frame at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
LUMA = (0.299, 0.587, 0.114)


def jitter_frames(frames: Tensor, order: tuple[int, ...], factors: tuple[float, float, float, float]) -> Tensor:
    """Return frames after the four changes in the given order.

    Args:
        frames: uint8 ``[t 3 h w]``.
        order: of ``BRIGHTNESS``, ``CONTRAST``, ``SATURATION`` and ``HUE``.
        factors: of each change; hue in turns, -0.5 to 0.5.

    Returns:
        uint8 ``[t 3 h w]``.
    """
    for kind in order:
        factor = factors[kind]
        if kind == BRIGHTNESS:
            frames = _blend(torch.zeros_like(frames), frames, factor)
        elif kind == CONTRAST:
            mean = (_grey(frames).double().mean(dim=(1, 2, 3), keepdim=True) + 0.5).to(torch.uint8)
            frames = _blend(mean, frames, factor)
        elif kind == SATURATION:
            frames = _blend(_grey(frames), frames, factor)
        else:
            frames = _shift_hue(frames, factor)
    return frames


def _blend(first: Tensor, second: Tensor, factor: float) -> Tensor:
    """Interpolate from ``first`` (factor 0) to ``second`` (factor 1) or beyond, clipped and truncated to 8 bits."""
    start = first.float()
    return (start + factor * (second.float() - start)).clamp_(0, 255).to(torch.uint8)


def _grey(frames: Tensor) -> Tensor:
    """Return the luma of frames uint8 ``[t 3 h w]`` in fixed point: uint8 ``[t 1 h w]``."""
    red, green, blue = frames.int().split(1, dim=1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)


def _shift_hue(frames: Tensor, turns: float) -> Tensor:
    hue, saturation, value = _to_hsv(frames)
    return _to_rgb((hue + int(turns * 255)) % 256, saturation, value)


def _to_hsv(frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue, saturation and value, int32 ``[t h w]``, each 0 to 255."""
    red, green, blue = frames.float().unbind(dim=1)
    value, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    spread = value - low
    grey = spread == 0
    divisor = torch.where(grey, 1.0, spread)
    from_red, from_green, from_blue = (value - red) / divisor, (value - green) / divisor, (value - blue) / divisor
    hue = torch.where(
        red == value,
        from_blue - from_green,
        torch.where(green == value, 2.0 + from_red - from_blue, 4.0 + from_green - from_red),
    )
    # Double precision and back, as in Pillow's C code.
    hue = torch.fmod(hue.double() / 6.0 + 1.0, 1.0).float()
    hue = torch.where(grey, 0.0, hue.double().mul(255.0).floor())
    saturation = torch.where(grey, 0.0, (spread / torch.where(grey, 1.0, value)).double().mul(255.0).floor())
    return hue.int(), saturation.int(), value.int()


def _to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return frames uint8 ``[t 3 h w]`` from hue, saturation and value, int32 ``[t h w]``."""
    position, purity, level = hue.float() * 6.0 / 255.0, saturation.float() / 255.0, value.float()
    sextant = position.floor()
    fraction = position - sextant
    falling = (level * (1.0 - purity * fraction) + 0.5).floor()
    rising = (level * (1.0 - purity * (1.0 - fraction)) + 0.5).floor()
    low = (level * (1.0 - purity) + 0.5).floor()
    sextant = (sextant.int() % 6)[:, None]
    colours = [
        (level, rising, low),
        (falling, level, low),
        (low, level, rising),
        (low, falling, level),
        (rising, low, level),
        (level, low, falling),
    ]
    frames = torch.stack(colours[0], dim=1)
    for number, triple in enumerate(colours[1:], 1):
        frames = torch.where(sextant == number, torch.stack(triple, dim=1), frames)
    frames = torch.where((saturation == 0)[:, None], level[:, None], frames)
    return frames.clamp_(0, 255).to(torch.uint8)
