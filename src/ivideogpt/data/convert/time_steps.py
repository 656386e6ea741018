"""Rows that stand beside the frames of an episode, brought to the time convention of Episode."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ivideogpt.core.errors import UserError


def numbers(values: Any, name: str) -> np.ndarray:
    """Return float32 ``[t n]`` from numbers ``[t]`` or ``[t n]``.

    Args:
        values: an array or nested lists.
        name: of the values, for errors.

    Raises:
        UserError: the values are no numbers, have another shape, or hold NaN or infinity.
    """
    array = _array(values, name)
    if array.dtype.kind not in "iufb" or array.ndim not in (1, 2):
        raise UserError(f"{name} has type {array.dtype} and shape {list(array.shape)}; expected numbers [t n]")
    with np.errstate(over="ignore"):  # what does not fit becomes infinity and is refused
        rows = array.astype(np.float32)
    return _finite(rows.reshape(len(rows), -1) if len(rows) else rows, name)


def leading_rows(values: Any, frames: int, name: str) -> np.ndarray:
    """Return float32 ``[frames n]`` of which row t leads from frame t to t + 1; the last row is zero.

    Args:
        values: one row a frame (the last one leads to a frame that was not recorded, and is dropped) or one less.
        frames: number of frames.
        name: of the values, for errors.

    Raises:
        UserError: as ``numbers``, or another number of rows.
    """
    array = _array(values, name)
    if array.ndim not in (1, 2) or len(array) not in (frames, frames - 1):
        shape = list(array.shape)
        raise UserError(f"{name} has shape {shape} for {frames} frames; expected a row for each frame, or one less")
    recorded = numbers(array[: frames - 1], name) if frames > 1 else np.zeros((0, array[0:1].size), np.float32)
    rows = np.zeros((frames, recorded.shape[1]), np.float32)
    rows[:-1] = recorded
    return rows


def arriving_rows(values: Any, frames: int, name: str) -> np.ndarray:
    """Return ``leading_rows`` of values whose row t leads into frame t and whose row 0 is a dummy.

    Raises:
        UserError: as ``leading_rows``.
    """
    array = _array(values, name)
    if array.ndim not in (1, 2) or len(array) != frames:
        raise UserError(f"{name} has shape {list(array.shape)} for {frames} frames; expected a row for each frame")
    return leading_rows(array[1:], frames, name)


def frame_rows(values: Any, frames: int, name: str) -> np.ndarray:
    """Return float32 ``[frames n]`` of values that describe the frames themselves.

    Raises:
        UserError: as ``numbers``, or another number of rows.
    """
    array = _array(values, name)
    if array.ndim not in (1, 2) or len(array) != frames:
        raise UserError(f"{name} has shape {list(array.shape)} for {frames} frames; expected a row for each frame")
    return numbers(array, name)


def one_column(rows: np.ndarray, name: str) -> np.ndarray:
    """Return ``[t]`` from ``[t 1]``.

    Raises:
        UserError: there are more columns.
    """
    if rows.shape[1] != 1:
        raise UserError(f"{name} has {rows.shape[1]} columns; expected one number a frame")
    return rows[:, 0]


def plain_json(value: Any) -> Any:
    """Return a value of numpy or HDF5 as plain JSON; a number that is not finite becomes None."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray | list | tuple):
        return [plain_json(entry) for entry in value]
    if isinstance(value, np.generic):
        return plain_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _array(values: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise UserError(f"{name} has rows of different lengths; expected numbers [t n]") from error


def _finite(rows: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(rows).all():
        row = int(np.argwhere(~np.isfinite(rows))[0][0])
        raise UserError(f"{name} has NaN or infinity in row {row}; remove or repair the episode")
    return rows
