"""Pictures as data URIs inside an HTML page: the page needs no other file.

Pictures keep their size: the page enlarges them without smoothing.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image

_GREY = 128


def sprite_sheet(frames: np.ndarray, columns: int, gap: int = 0) -> np.ndarray:
    """Return frames in one picture, in reading order, on a grey background.

    Args:
        frames: uint8 ``[t h w 3]``.
        columns: frames side by side.
        gap: pixels between two frames.

    Returns:
        uint8 ``[height width 3]``.
    """
    lines = -(-len(frames) // columns)
    missing = lines * columns - len(frames)
    padded = np.pad(frames, ((0, missing), (0, gap), (0, gap), (0, 0)), constant_values=_GREY)
    sheet = rearrange(padded, "(y x) h w c -> (y h) (x w) c", x=columns)
    return sheet[: sheet.shape[0] - gap, : sheet.shape[1] - gap]


def png_uri(picture: np.ndarray) -> str:
    """Return a picture uint8 ``[h w 3]`` as the data URI of a PNG."""
    return _png_uri(picture, optimize=True)


def animation_uri(frames: np.ndarray, fps: float) -> str:
    """Return frames uint8 ``[t h w 3]`` as the data URI of an endless animated PNG, without loss."""
    later = [Image.fromarray(frame) for frame in frames[1:]]
    return _png_uri(frames[0], save_all=True, append_images=later, duration=1000 / fps, loop=0)


def _png_uri(picture: np.ndarray, **options: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
