"""How an imagination shows itself in a notebook: HTML without a script, its pictures inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange

from ivideogpt.data.data_uri import animation_uri, png_uri, sprite_sheet
from ivideogpt.data.render import to_uint8

if TYPE_CHECKING:
    from ivideogpt.worldmodel.imagination import Imagination

# What is shown at most, so that a notebook stays small.
_ROWS, _MOVING_FRAMES, _STRIP_FRAMES = 4, 64, 8
_FPS, _GAP = 4, 2
# Frames are enlarged by whole numbers until they are at least this high.
_MOVING_HEIGHT, _STRIP_HEIGHT = 128, 64


def imagination_html(imagined: Imagination) -> str:
    """A fragment: up to 4 rows side by side as one animated picture, then a strip with a line of frames a row."""
    rows, horizon, _, height, _ = imagined.frames.shape
    videos = np.stack([to_uint8(row) for row in imagined.frames[:_ROWS]])
    moving, still = _spread(horizon, _MOVING_FRAMES), _spread(horizon, _STRIP_FRAMES)
    together = np.stack([sprite_sheet(videos[:, frame], len(videos), _GAP) for frame in moving])
    strip = sprite_sheet(rearrange(videos[:, still], "b t h w c -> (b t) h w c"), len(still), _GAP)
    text = [f"{rows} row{'s' * (rows > 1)}", f"{horizon} frame{'s' * (horizon > 1)}"]
    if rows > _ROWS:
        text.append(f"the first {_ROWS} rows are shown")
    if horizon > _MOVING_FRAMES:
        text.append(f"{_MOVING_FRAMES} of the frames move")
    numbers = ", ".join(f"+{frame + 1}" for frame in still)
    return (
        f"<div><div>Imagination: {', '.join(text)}</div>"
        + _picture(
            animation_uri(together, _FPS), together.shape[2], -(-_MOVING_HEIGHT // height), "imagined rows, moving"
        )
        + f"<div>{numbers}</div>"
        + _picture(png_uri(strip), strip.shape[1], -(-_STRIP_HEIGHT // height), f"imagined frames {numbers}")
        + "</div>"
    )


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` numbers from 0 to count - 1, evenly spread, both ends among them."""
    return [round(place) for place in np.linspace(0, count - 1, min(count, most))]


def _picture(uri: str, width: int, factor: int, text: str) -> str:
    style = "image-rendering: pixelated; max-width: 100%; display: block; margin: 4px 0"
    return f'<img src="{uri}" width="{width * factor}" alt="{text}" style="{style}">'
