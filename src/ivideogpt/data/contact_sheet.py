"""Contact sheet: a PNG with some frames of many episodes, one row for each episode and camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ivideogpt.core.errors import UserError
from ivideogpt.core.files import write_atomic

_PAPER, _INK, _FAINT = (250, 250, 248), (38, 40, 44), (138, 140, 145)
_MARGIN, _GAP, _TILE, _WIDEST, _TEXT = 24, 6, 128, 256, 300


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """One row of the sheet.

    Attributes:
        lines: text on the left; the first line is dark.
        frames: uint8 ``[n h w 3]``.
        captions: text above each frame.
    """

    lines: Sequence[str]
    frames: np.ndarray
    captions: Sequence[str]


def write_contact_sheet(path: str | Path, rows: Sequence[SheetRow], *, title: str) -> None:
    """Write the rows to a PNG.

    Args:
        path: ends in ``.png``; its folder is created.
        rows: from top to bottom; their frames may differ in size and number.
        title: above the rows.

    Raises:
        UserError: the path is not that of a PNG, or cannot be written.
    """
    if Path(path).suffix.lower() != ".png" or Path(path).is_dir():
        raise UserError(f"the contact sheet is {path}; expected a file that ends in .png")
    pictures = [[_tile(frame) for frame in row.frames] for row in rows]
    width = _MARGIN + _TEXT + max((sum(p.width + _GAP for p in tiles) for tiles in pictures), default=0) + _MARGIN
    heights = [max(tile.height for tile in tiles) + 34 for tiles in pictures]
    canvas = Image.new("RGB", (width, 2 * _MARGIN + 34 + sum(heights)), _PAPER)
    draw, font, large = ImageDraw.Draw(canvas), ImageFont.load_default(14), ImageFont.load_default(20)
    draw.text((_MARGIN, _MARGIN - 6), _shortened(draw, title, large, width - 2 * _MARGIN), _INK, large)
    top = _MARGIN + 34
    for row, tiles, height in zip(rows, pictures, heights, strict=True):
        for number, line in enumerate(row.lines):
            text = _shortened(draw, line, font, _TEXT - 16)
            draw.text((_MARGIN, top + 20 + 20 * number), text, _FAINT if number else _INK, font)
        left = _MARGIN + _TEXT
        for tile, caption in zip(tiles, row.captions, strict=True):
            draw.text((left, top), _shortened(draw, caption, font, tile.width), _FAINT, font)
            canvas.paste(tile, (left, top + 20))
            left += tile.width + _GAP
        top += height
    write_atomic(path, lambda temporary: canvas.save(temporary, "PNG"))


def _tile(frame: np.ndarray) -> Image.Image:
    """Return a picture of the height of a tile: small frames enlarged by a whole number, large ones reduced."""
    height, width = frame.shape[:2]
    picture = Image.fromarray(frame)
    factor = _TILE // height
    if factor > 1:
        picture = picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    scale = min(_TILE / picture.height, _WIDEST / picture.width, 1.0)
    if scale < 1:
        size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return picture


def _shortened(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "...", font) > width:
        text = text[:-1]
    return text.rstrip() + "..."
