"""Tables of actions beside recordings: ``.csv`` and ``.npy`` files, without the row index that pandas writes."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.core.reading import check_is_file
from ivideogpt.data.convert.source_episode import Omission, omission
from ivideogpt.data.convert.source_files import reading_file
from ivideogpt.data.numpy_files import read_npy

TABLES = (".csv", ".npy")
# Names of a column that counts the rows.
_INDEX_NAMES = ("", "unnamed: 0", "index", "frame", "frame_index", "row", "step")


@dataclass(frozen=True, kw_only=True)
class ActionTable:
    """The numbers of a table.

    Attributes:
        values: float64 ``[t n]``, n at least 1.
        names: of the columns, or ().
        omissions: columns that are no actions.
    """

    values: np.ndarray
    names: tuple[str, ...] = ()
    omissions: tuple[Omission, ...] = ()


def read_action_table(path: Path, frames: int | None = None) -> ActionTable:
    """Read a table.

    Args:
        path: a ``.csv`` file with commas, whose first line may name the columns, or a ``.npy`` file.
        frames: of the recording; it decides whether a first line 0,1,2 is one of names or of numbers.

    Raises:
        UserError: the file is damaged, empty, holds something else than numbers, or can be read in two ways.
    """
    if path.suffix.lower() == ".npy":
        values = read_npy(path)
        if values.ndim not in (1, 2) or not values.size:
            raise UserError(
                f"{path} does not hold an array [t a] with rows and columns, but one of shape {list(values.shape)}; "
                "save the actions of the episode as one"
            )
        return ActionTable(values=values.reshape(len(values), -1))
    names, rows = _names_and_rows(path, _csv_lines(path), frames)
    values = np.array([[float(cell) for cell in row] for _, row in rows])
    return _without_index(path, values, names)


def _csv_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Return the lines of a CSV file that are not empty, with their numbers; all have one width."""
    check_is_file(path, "table of actions")
    with reading_file(path, "CSV file"), path.open(newline="", encoding="utf-8-sig") as file:
        lines = [(number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(file), 1) if any(row)]
    for number, row in lines:
        if len(row) != len(lines[0][1]):
            raise UserError(f"{path} line {number} has {len(row)} columns; expected {len(lines[0][1])}")
    return lines


def _names_and_rows(
    path: Path, lines: list[tuple[int, list[str]]], frames: int | None
) -> tuple[tuple[str, ...], list[tuple[int, list[str]]]]:
    names: tuple[str, ...] = ()
    if lines and _is_header(path, [row for _, row in lines], frames):
        names = tuple(lines.pop(0)[1])
    if not lines:
        raise UserError(f"{path} has no lines of numbers; expected one a frame, or one less")
    for number, row in lines:
        for cell in row:
            if not _is_number(cell):
                raise UserError(f"{path} line {number} has {cell!r}; expected a number")
    return names, lines


def _is_header(path: Path, rows: list[list[str]], frames: int | None) -> bool:
    """Return whether the first line names the columns.

    Raises:
        UserError: it may be names as well as numbers.
    """
    first, later = rows[0], rows[1:]
    width = len(first)
    numeric = [_is_number(cell) for cell in first]
    if not any(numeric):
        return True
    if not all(numeric):  # pandas names columns 0, 1, 2 and leaves the name of its index empty
        if first[0].lower() in _INDEX_NAMES and first[1:] == [str(index) for index in range(width - 1)]:
            return True
        raise UserError(f"{path} line 1 holds names and numbers; expected the names of all columns, or numbers only")
    if width == 1 or first != [str(index) for index in range(width)]:
        return False
    if frames is not None and len(rows) not in (frames, frames + 1):
        return False
    if (frames is not None and len(rows) == frames + 1) or any("." in cell for row in later for cell in row):
        return True
    raise UserError(
        f"{path} line 1 is {','.join(first)}, which may be the numbers of the columns or an action; "
        "name the columns in the first line"
    )


def _without_index(path: Path, values: np.ndarray, names: tuple[str, ...]) -> ActionTable:
    """Remove a first column that counts the rows.

    Raises:
        UserError: a column without a name does not count the rows, or one that counts them has no header.
    """
    counts = np.arange(len(values))
    is_counter = len(values) > 1 and (np.array_equal(values[:, 0], counts) or np.array_equal(values[:, 0], counts + 1))
    is_index_name = bool(names) and names[0].lower() in _INDEX_NAMES
    if values.shape[1] > 1 and is_index_name and (is_counter or len(values) == 1):
        columns = omission("columns of tables", "they count the rows", [names[0] or f"first column of {path.name}"])
        return ActionTable(values=values[:, 1:], names=names[1:], omissions=columns)
    if "" in names:
        raise UserError(f"{path} has no name for column {names.index('') + 1}; name all columns in the first line")
    if not names and values.shape[1] > 1 and is_counter and len(values) > 2:
        raise UserError(
            f"{path} has a first column that counts the rows, as an index does; remove it, or name the columns in a "
            "first line"
        )
    return ActionTable(values=values, names=names)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # Python reads 1_0 as 10
