"""Pictures that live inside an HTML page, as data URIs: nothing is fetched and nothing lies beside the page.

They go in at their own size: pages enlarge them without smoothing.
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
    """Frames in one picture, in reading order; between them and in spare places it is grey.

    Args:
        frames: uint8 ``[t h w 3]``.
        columns: frames side by side.
        gap: pixels between two frames.

    Returns:
        uint8 ``[height width 3]``.
    """
    lines = -(-len(frames) // columns)
    spare = lines * columns - len(frames)
    padded = np.pad(frames, ((0, spare), (0, gap), (0, gap), (0, 0)), constant_values=_GREY)
    sheet = rearrange(padded, "(y x) h w c -> (y h) (x w) c", x=columns)
    return sheet[: sheet.shape[0] - gap, : sheet.shape[1] - gap]


def png_uri(picture: np.ndarray) -> str:
    """A picture uint8 ``[h w 3]`` as the data URI of a PNG."""
    return _png_uri(picture, optimize=True)


def animation_uri(frames: np.ndarray, fps: float) -> str:
    """Frames uint8 ``[t h w 3]`` as the data URI of an animated PNG that loops for ever; no colour is lost."""
    others = [Image.fromarray(frame) for frame in frames[1:]]
    return _png_uri(frames[0], save_all=True, append_images=others, duration=1000 / fps, loop=0)


def _png_uri(picture: np.ndarray, **options: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
