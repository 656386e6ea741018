"""The rows that stand beside frames, brought to the time convention of Episode, and small things importers share."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ivideogpt.core.errors import UserError

Item = TypeVar("Item")


def numbers(values: Any, name: str) -> np.ndarray:
    """Float32 ``[t n]`` from numbers ``[t]`` or ``[t n]``.

    Args:
        values: an array or nested lists.
        name: what an error calls them.

    Raises:
        UserError: they are no numbers, of another shape, or some are NaN or infinite.
    """
    array = _array(values, name)
    if array.dtype.kind not in "iufb" or array.ndim not in (1, 2):
        raise UserError(f"{name} has type {array.dtype} and shape {list(array.shape)}; expected numbers [t n]")
    return _finite(array.astype(np.float32).reshape(len(array), -1) if len(array) else array, name)


def leading_rows(values: Any, frames: int, name: str) -> np.ndarray:
    """Float32 ``[frames n]`` of which row t leads from frame t to t + 1; the last row is zero.

    Args:
        values: one row a frame (the last leads to a frame that was not recorded, and is dropped) or one less.
        frames: number of frames.
        name: what an error calls the values.

    Raises:
        UserError: as ``numbers``, or another number of rows.
    """
    array = _array(values, name)
    if array.ndim not in (1, 2) or len(array) not in (frames, frames - 1):
        shape = list(array.shape)
        raise UserError(f"{name} has shape {shape} for {frames} frames; expected a row for each frame, or one less")
    found = numbers(array[: frames - 1], name) if frames > 1 else np.zeros((0, array[0:1].size), np.float32)
    rows = np.zeros((frames, found.shape[1]), np.float32)
    rows[:-1] = found
    return rows


def led_into_rows(values: Any, frames: int, name: str) -> np.ndarray:
    """Float32 ``[frames n]`` as ``leading_rows``, of values whose row t leads into frame t and whose row 0 is a dummy.

    Raises:
        UserError: as ``leading_rows``.
    """
    array = _array(values, name)
    if array.ndim not in (1, 2) or len(array) != frames:
        raise UserError(f"{name} has shape {list(array.shape)} for {frames} frames; expected a row for each frame")
    return leading_rows(array[1:], frames, name)


def frame_rows(values: Any, frames: int, name: str) -> np.ndarray:
    """Float32 ``[frames n]``: one row for each frame, every one counts.

    Raises:
        UserError: as ``numbers``, or another number of rows.
    """
    array = _array(values, name)
    if array.ndim not in (1, 2) or len(array) != frames:
        raise UserError(f"{name} has shape {list(array.shape)} for {frames} frames; expected a row for each frame")
    return numbers(array, name)


def one_column(rows: np.ndarray, name: str) -> np.ndarray:
    """``[t]`` from ``[t 1]``.

    Raises:
        UserError: there are more columns.
    """
    if rows.shape[1] != 1:
        raise UserError(f"{name} has {rows.shape[1]} columns; expected one number a frame")
    return rows[:, 0]


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Sorts "2" before "10"; a number of 20 digits or more counts as text."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part)) if part.isdecimal() and len(part) < 20 else (1, part) for part in parts if part]


def in_groups(items: Sequence[Item], size: int) -> list[list[Item]]:
    """``items`` in groups of ``size``, the last may be smaller."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def listed(names: Iterable[object], most: int = 12) -> str:
    """Names for an error message."""
    names = [str(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "nothing"


def plain(value: Any) -> Any:
    """A value of numpy or HDF5 as plain JSON; what is not finite becomes None."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def existing_folder(source: str | Path, what: str) -> Path:
    """``source`` as a Path.

    Raises:
        UserError: it is no folder.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give the folder that holds {what}")
    return folder


def inside(folder: Path, path: Path) -> str:
    """``path`` relative to ``folder``, with forward slashes: how an episode names where it comes from."""
    return path.relative_to(folder).as_posix()


def _array(values: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise UserError(f"{name} has rows of different lengths; expected numbers [t n]") from error


def _finite(rows: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(rows).all():
        row = int(np.argwhere(~np.isfinite(rows))[0][0])
        raise UserError(f"{name} has NaN or infinity in row {row}; remove or repair the episode")
    return rows
