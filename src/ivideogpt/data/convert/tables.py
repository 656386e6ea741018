"""Parquet and JSON files of datasets, with errors that name the file and what was expected in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.core.reading import check_is_file
from ivideogpt.data.convert.source_files import name_list, read_text, reading_file

_JSON_NAMES = {dict: "object", list: "list"}


def read_parquet(path: Path, **options: Any) -> Any:
    """Return a ``pyarrow.Table``.

    Args:
        path: the file.
        options: of ``pyarrow.parquet.read_table``.

    Raises:
        MissingExtraError: pyarrow is not installed.
        UserError: the file is missing or damaged.
    """
    return _parquet(path, "read_table", options)


def parquet_columns(path: Path) -> list[str]:
    """Return the names of the columns.

    Raises:
        MissingExtraError, UserError: as ``read_parquet``.
    """
    return list(_parquet(path, "read_schema", {}).names)


def _parquet(path: Path, function: str, options: dict[str, Any]) -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("pyarrow", "data") from error
    check_is_file(path, "parquet file")
    with reading_file(path, "parquet file"):
        return getattr(pyarrow.parquet, function)(path, **options)


def value_of(row: Mapping[str, Any], key: str, path: Path) -> Any:
    """Return the value of ``key`` in a row of the file ``path``.

    Raises:
        UserError: there is none; the message names the keys of the row.
    """
    if row.get(key) is None:
        raise UserError(f"{path} has no {key!r}; it has {name_list(row)}")
    return row[key]


def whole_number(row: Mapping[str, Any], key: str, path: Path) -> int:
    """Return the value of ``key`` as an int of at least 0.

    Raises:
        UserError: there is none, or it is no such number.
    """
    value = value_of(row, key, path)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{path} says {key} is {value!r}; expected a whole number of at least 0")
    return value


def read_json(path: Path, kind: type = dict) -> Any:
    """Return the content of a JSON file, a dict or another ``kind``.

    Raises:
        UserError: the file is missing, damaged or holds something else.
    """
    text = read_text(path, "JSON file")
    with reading_file(path, "JSON file"):
        content = json.loads(text)
    if not isinstance(content, kind):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a JSON {_JSON_NAMES[kind]}")
    return content


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file of one a line.

    Raises:
        UserError: the file is missing, damaged or holds something else.
    """
    text = read_text(path, "JSON lines file")
    with reading_file(path, "JSON lines file"):
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} has lines that are no objects; download it again")
    return rows
