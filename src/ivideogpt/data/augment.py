"""Augmentation of clips: one crop and one change of colours for all frames of a clip.

    draw = draw_augmentation(Augmentation(), height, width, np.random.default_rng(0))
    pixels = augment(frames, draw, size=64)      # uint8 [t h w 3] to float32 [t 3 64 64] in [0, 1], on the same device

By default brightness, contrast, saturation and hue are one 3x4 matrix; ``exact`` repeats the operations of Pillow,
frame by frame (``color_jitter``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ivideogpt.core.errors import UserError
from ivideogpt.data.color_jitter import BRIGHTNESS, CONTRAST, HUE, LUMA, SATURATION, jitter_frames

_TRIES = 10
_UNCHANGED = (1.0, 1.0, 1.0, 0.0)
# From RGB to YIQ as NTSC defines it: luma, and a plane of colours that a change of hue rotates.
_TO_YIQ = np.array([LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)])
_TO_RGB = np.linalg.inv(_TO_YIQ)
# Basis of the colour matrices: grey of the same luma, the colour without it, and that colour rotated by 90 degrees.
_BASIS = _TO_RGB @ np.array([np.diag((1, 0, 0)), np.diag((0, 1, 1)), ((0, 0, 0), (0, 0, 1), (0, -1, 0))]) @ _TO_YIQ


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Ranges of a random augmentation; the defaults are the official ones.

    Attributes:
        scale: area of the crop, as a share of the square of the frame's shorter side.
        ratio: width to height of the crop.
        brightness, contrast, saturation: largest distance of the factor from 1; 0: unchanged.
        hue: largest rotation, in turns of the colour circle; 0: unchanged.
        exact: repeat the steps of Pillow and of the official loader for each frame, rounding included; slower.
    """

    scale: tuple[float, float] = (0.8, 1.0)
    ratio: tuple[float, float] = (0.9, 1.1)
    brightness: float = 0.1
    contrast: float = 0.1
    saturation: float = 0.1
    hue: float = 0.05
    exact: bool = False

    def __post_init__(self) -> None:
        """Raise UserError if a number is out of range."""
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high < float("inf"):
                raise UserError(f"{name} is {(low, high)}; expected two numbers above 0, the smaller one first")
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"{name} is {getattr(self, name)}; expected 0 to {most}")

    @classmethod
    def strong(cls, *, exact: bool = False) -> Augmentation:
        """Return the ranges of the official option ``--strong_aug``."""
        return cls(
            scale=(0.6, 1.0), ratio=(0.75, 4 / 3), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.5, exact=exact
        )


@dataclass(frozen=True, kw_only=True)
class AugmentationDraw:
    """The augmentation of one clip.

    Attributes:
        top, left, height, width: of the crop, in pixels of the recorded frames.
        order: of brightness (0), contrast (1), saturation (2) and hue (3); used by ``exact`` only.
        factors: of brightness, contrast and saturation, and the rotation of hue in turns.
        exact: see ``Augmentation``.
    """

    top: int
    left: int
    height: int
    width: int
    order: tuple[int, ...] = (BRIGHTNESS, CONTRAST, SATURATION, HUE)
    factors: tuple[float, float, float, float] = _UNCHANGED
    exact: bool = False


def draw_augmentation(
    augmentation: Augmentation, height: int, width: int, random: np.random.Generator
) -> AugmentationDraw:
    """Draw the augmentation of a clip of ``height`` x ``width`` pixels.

    Source: thuml/iVideoGPT ``get_crop_params`` and ``get_jittor_params``; the same ranges and the same rules.
    """
    top, left, crop_height, crop_width = _draw_crop(augmentation, height, width, random)
    strengths = (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    factors = [random.uniform(max(0.0, 1 - strength), 1 + strength) for strength in strengths]
    return AugmentationDraw(
        top=top,
        left=left,
        height=crop_height,
        width=crop_width,
        order=tuple(random.permutation(4).tolist()),
        factors=(*factors, random.uniform(-augmentation.hue, augmentation.hue)),  # pyright: ignore[reportArgumentType]
        exact=augmentation.exact,
    )


def _draw_crop(
    augmentation: Augmentation, height: int, width: int, random: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return top, left, height and width."""
    (smallest, largest), (narrow, wide) = augmentation.scale, augmentation.ratio
    for _ in range(_TRIES):
        area = min(height, width) ** 2 * random.uniform(smallest, largest)
        ratio = math.exp(random.uniform(math.log(narrow), math.log(wide)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = random.integers(height - crop_height + 1), random.integers(width - crop_width + 1)
            return int(top), int(left), crop_height, crop_width
    crop_height, crop_width = height, width
    if width / height < narrow:
        crop_height = round(width / narrow)
    elif width / height > wide:
        crop_width = round(height * wide)
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def centre_square(height: int, width: int) -> AugmentationDraw:
    """Return the crop to the largest square in the centre, colours unchanged."""
    side = min(height, width)
    return AugmentationDraw(top=(height - side) // 2, left=(width - side) // 2, height=side, width=side)


def whole_frame(height: int, width: int) -> AugmentationDraw:
    """Return the whole frame as the crop, colours unchanged."""
    return AugmentationDraw(top=0, left=0, height=height, width=width)


def both_sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width of a size: one number for a square, or both."""
    return size if isinstance(size, tuple) else (size, size)


def resize(frames: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resize frames uint8 ``[t h w 3]`` to uint8 ``[t 3 height width]``: bilinear, antialiased, rounded."""
    pixels = frames.permute(0, 3, 1, 2)  # einops would add a tenth of the time of resizing small frames
    sides = both_sides(size)
    if tuple(frames.shape[1:3]) == sides:
        return pixels
    if frames.device.type == "cpu":  # the kernel for 8-bit pixels is ten times as fast as that for floats
        return torch.nn.functional.interpolate(pixels, sides, mode="bilinear", antialias=True)
    return _resize_floats(pixels, sides).round_().clamp_(0, 255).to(torch.uint8)


def _resize_floats(pixels: Tensor, sides: tuple[int, int]) -> Tensor:
    return torch.nn.functional.interpolate(pixels.float(), sides, mode="bilinear", antialias=True)


def augment(frames: Tensor, draw: AugmentationDraw, size: int | tuple[int, int]) -> Tensor:
    """Crop, resize and recolour one clip.

    Args:
        frames: uint8 ``[t h w 3]``, on any device.
        draw: the augmentation.
        size: side of the result, or its height and width.

    Returns:
        float32 ``[t 3 height width]`` in [0, 1].
    """
    out = torch.empty((1, len(frames), 3, *both_sides(size)), dtype=torch.float32, device=frames.device)
    augment_clips([frames], [draw], out)
    return out[0]


def augment_clips(frames: Sequence[Tensor], draws: Sequence[AugmentationDraw], out: Tensor) -> None:
    """Crop, resize and recolour clips.

    Args:
        frames: of each clip, uint8 ``[t h w 3]``; sizes may differ.
        draws: the augmentation of each.
        out: receives the result, float32 ``[b t 3 height width]``, contiguous, on the device of the frames.
    """
    size = (out.shape[-2], out.shape[-1])
    matrices = colour_matrices(np.array([draw.factors for draw in draws]))
    products, offsets = (torch.from_numpy((matrix / 255).astype(np.float32)).to(out.device) for matrix in matrices)
    planes = torch.empty_like(out[0])
    flat = planes.flatten(2)
    for clip, draw, product, offset, target in zip(frames, draws, products, offsets, out, strict=True):
        cropped = clip[:, draw.top : draw.top + draw.height, draw.left : draw.left + draw.width]
        if draw.exact:
            floats = _resize_floats(rearrange(cropped, "t h w c -> t c h w"), size).clamp_(0, 255)
            target.copy_(jitter_frames(floats.to(torch.uint8), draw.order, draw.factors)).div_(255)
        elif draw.factors == _UNCHANGED:
            target.copy_(resize(cropped, size)).div_(255)
        else:
            planes.copy_(resize(cropped, size))
            shift = offset @ flat.mean(dim=(0, 2))
            torch.baddbmm(shift[:, None], product.expand(len(flat), 3, 3), flat, out=target.flatten(2)).clamp_(0, 1)


def colour_matrices(factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all four changes as matrices A and B: a colour c becomes A c + B m, where m is the clip's mean colour.

    A and B m together are the 3x4 matrix of a clip. Contrast is relative to the clip's grey mean. Hue rotates the
    colour plane of YIQ; Pillow rotates the hexagon of HSV. Saturation and hue keep luma and grey. Nothing is clipped
    between the steps, so their order does not matter.

    Args:
        factors: of each clip, float64 ``[b 4]``; see ``AugmentationDraw``.

    Returns:
        A and B, float64 ``[b 3 3]``.
    """
    brightness, contrast, saturation, hue = factors.T
    scale, angle = brightness * contrast, 2 * math.pi * hue
    weights = np.stack([scale, scale * saturation * np.cos(angle), scale * saturation * np.sin(angle)])
    grey = brightness * (1 - contrast)
    return np.einsum("pb,pij->bij", weights, _BASIS), np.einsum("b,ij->bij", grey, _BASIS[0])
