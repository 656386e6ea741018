"""Augmentation of whole clips: one crop and one change of colour for all frames of a clip.

    drawn = draw_augmentation(Augmentation(), height, width, np.random.default_rng(0))
    pixels = augment(frames, drawn, size=64)     # uint8 [t h w 3] to float32 [t 3 64 64] in [0, 1], on the same device

By default brightness, contrast, saturation and hue are one 3x4 matrix; ``exact`` does what Pillow does, frame by frame
(in ``jitter``).
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
# From RGB to YIQ (luma, and colour as a plane that hue turns), as NTSC defines it.
_TO_YIQ = np.array([LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)])
_TO_RGB = np.linalg.inv(_TO_YIQ)
# What the colour matrices are made of: grey of the same luma, what is left without it, and that with a quarter turn.
_PARTS = _TO_RGB @ np.array([np.diag((1, 0, 0)), np.diag((0, 1, 1)), ((0, 0, 0), (0, 0, 1), (0, -1, 0))]) @ _TO_YIQ


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What clips are changed by; the defaults are the official ones.

    Attributes:
        scale: area of the crop, of the square of the frame's shorter side.
        ratio: width to height of the crop.
        brightness, contrast, saturation: factors within this of 1; 0: unchanged.
        hue: turned by at most this, in turns of the colour circle; 0: unchanged.
        exact: as Pillow and the official loader do it, a frame and a step at a time, rounding included; slower.
    """

    scale: tuple[float, float] = (0.8, 1.0)
    ratio: tuple[float, float] = (0.9, 1.1)
    brightness: float = 0.1
    contrast: float = 0.1
    saturation: float = 0.1
    hue: float = 0.05
    exact: bool = False

    def __post_init__(self) -> None:
        """Raises UserError where a number cannot be."""
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high < float("inf"):
                raise UserError(f"{name} is {(low, high)}; expected two numbers above 0, the smaller one first")
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"{name} is {getattr(self, name)}; expected 0 to {most}")

    @classmethod
    def strong(cls, *, exact: bool = False) -> Augmentation:
        """What the official flag ``--strong_aug`` asks for."""
        return cls(
            scale=(0.6, 1.0), ratio=(0.75, 4 / 3), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.5, exact=exact
        )


@dataclass(frozen=True, kw_only=True)
class AugmentationDraw:
    """The augmentation of one clip.

    Attributes:
        top, left, height, width: of the crop, in pixels of the recorded frames.
        order: of brightness (0), contrast (1), saturation (2) and hue (3); matters to ``exact`` only.
        factors: of each of these; hue in turns.
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
    """Draws what a clip of ``height`` x ``width`` pixels is changed by.

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
    """Top, left, height and width."""
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
    """The largest square in the middle, in its own colours."""
    side = min(height, width)
    return AugmentationDraw(top=(height - side) // 2, left=(width - side) // 2, height=side, width=side)


def whole_frame(height: int, width: int) -> AugmentationDraw:
    """All of it, in its own colours."""
    return AugmentationDraw(top=0, left=0, height=height, width=width)


def resize(frames: Tensor, size: int) -> Tensor:
    """Frames uint8 ``[t h w 3]`` as uint8 ``[t 3 size size]``: bilinear, antialiased, rounded."""
    pixels = frames.permute(0, 3, 1, 2)  # a pattern would take a tenth of the time of resizing small frames
    if tuple(frames.shape[1:3]) == (size, size):
        return pixels
    if frames.device.type == "cpu":  # made for 8-bit pixels: ten times as fast as with floats
        return torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return _resize_floats(pixels, size).round_().clamp_(0, 255).to(torch.uint8)


def _resize_floats(pixels: Tensor, size: int) -> Tensor:
    return torch.nn.functional.interpolate(pixels.float(), (size, size), mode="bilinear", antialias=True)


def augment(frames: Tensor, drawn: AugmentationDraw, size: int) -> Tensor:
    """Crops, resizes and colours one clip.

    Args:
        frames: uint8 ``[t h w 3]``, on any device.
        drawn: what to do.
        size: width and height of the result.

    Returns:
        float32 ``[t 3 size size]`` in [0, 1].
    """
    out = torch.empty((1, len(frames), 3, size, size), dtype=torch.float32, device=frames.device)
    augment_clips([frames], [drawn], out)
    return out[0]


def augment_clips(frames: Sequence[Tensor], draws: Sequence[AugmentationDraw], out: Tensor) -> None:
    """Crops, resizes and colours clips.

    Args:
        frames: of each clip, uint8 ``[t h w 3]``; sizes may differ.
        draws: what to do with each.
        out: where to write the result, float32 ``[b t 3 size size]``, contiguous, on the device of the frames.
    """
    size = out.shape[-1]
    matrices = colour_matrices(np.array([drawn.factors for drawn in draws]))
    products, offsets = (torch.from_numpy((one / 255).astype(np.float32)).to(out.device) for one in matrices)
    planes = torch.empty_like(out[0])
    flat = planes.flatten(2)
    for clip, drawn, product, offset, target in zip(frames, draws, products, offsets, out, strict=True):
        cropped = clip[:, drawn.top : drawn.top + drawn.height, drawn.left : drawn.left + drawn.width]
        if drawn.exact:
            floats = _resize_floats(rearrange(cropped, "t h w c -> t c h w"), size).clamp_(0, 255)
            target.copy_(jitter_frames(floats.to(torch.uint8), drawn.order, drawn.factors)).div_(255)
        elif drawn.factors == _UNCHANGED:
            target.copy_(resize(cropped, size)).div_(255)
        else:
            planes.copy_(resize(cropped, size))
            shift = offset @ flat.mean(dim=(0, 2))
            torch.baddbmm(shift[:, None], product.expand(len(flat), 3, 3), flat, out=target.flatten(2)).clamp_(0, 1)


def colour_matrices(factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All four changes as matrices A and B: a colour c becomes A c + B m, m being the clip's mean colour.

    A and B m together are the 3x4 matrix of a clip. Contrast is about the clip's grey mean. Hue turns the colour
    plane of YIQ; Pillow turns the hexagon of HSV. Saturation and hue keep luma and leave grey as it is. As nothing is
    clipped between the steps, this makes their order irrelevant.

    Args:
        factors: of each clip, float64 ``[b 4]``; see ``AugmentationDraw``.

    Returns:
        A and B, float64 ``[b 3 3]``.
    """
    brightness, contrast, saturation, hue = factors.T
    scale, angle = brightness * contrast, 2 * math.pi * hue
    weights = np.stack([scale, scale * saturation * np.cos(angle), scale * saturation * np.sin(angle)])
    grey = brightness * (1 - contrast)
    return np.einsum("pb,pij->bij", weights, _PARTS), np.einsum("b,ij->bij", grey, _PARTS[0])
