"""Output of commands: pictures, videos, a table, and one JSON line last."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ivideogpt.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def check_folder(folder: Path) -> None:
    """Check that results can be written into ``folder``, before the work that makes them.

    Raises:
        UserError: they cannot.
    """
    try:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"output is {_shortened(folder)}, which no folder can be called ({reason})") from error
    if not nearest.is_dir():
        raise UserError(f"output is {folder}, but {nearest} is a file; choose a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"output is {folder}, but {nearest} cannot be written; choose another folder")


def _shortened(path: Path) -> str:
    text = str(path)
    return repr(text if len(text) <= 100 else f"{text[:100]}...")


def write_pictures(
    folder: Path, stem: str, rows: Mapping[str, Tensor], context_frames: int, fps: float, gif: bool = True
) -> list[Path]:
    """Write ``stem.mp4``, ``stem.png`` (a strip) and ``stem.gif`` of rows of frames ``[t c h w]`` in [0, 1]."""
    from ivideogpt.data.render import side_by_side, to_uint8, write_gif, write_mp4, write_strip

    pictures = {label: to_uint8(frames) for label, frames in rows.items()}
    together = side_by_side(pictures, context_frames=context_frames)
    paths = [folder / f"{stem}.mp4", folder / f"{stem}.png"]
    write_mp4(paths[0], together, fps=fps)
    write_strip(paths[1], pictures, context_frames=context_frames)
    if gif:
        paths.append(folder / f"{stem}.gif")
        write_gif(paths[2], together, fps=fps)
    return paths


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str | float]]) -> None:
    """Print a table; numbers with two decimals, right-aligned."""

    def text(cell: str | float) -> str:
        if isinstance(cell, str):
            return cell
        return "-" if math.isnan(cell) else f"{cell:.2f}"

    cells = [list(headings), *([text(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    for row in cells:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *rest]).rstrip())


def print_json(values: Mapping[str, object]) -> None:
    """Print one line of JSON: floats with four decimals, NaN as null."""

    def plain(value: object) -> object:
        if isinstance(value, float):
            return round(value, 4) if math.isfinite(value) else None
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return str(value) if isinstance(value, Path) else value

    print(json.dumps({key: plain(value) for key, value in values.items()}))
