"""Parquet and JSON files of datasets, with errors that name the file and what was expected in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.data.convert.time_steps import listed

_JSON_NAMES = {dict: "object", list: "list"}


def read_parquet(path: Path, **options: Any) -> Any:
    """A ``pyarrow.Table``.

    Args:
        path: the file.
        options: of ``pyarrow.parquet.read_table``.

    Raises:
        MissingExtraError: pyarrow is not installed.
        UserError: the file is missing or damaged.
    """
    return _parquet(path, "read_table", options)


def parquet_columns(path: Path) -> list[str]:
    """The names of the columns.

    Raises:
        MissingExtraError, UserError: as ``read_parquet``.
    """
    return list(_parquet(path, "read_schema", {}).names)


def _parquet(path: Path, function: str, options: dict[str, Any]) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("pyarrow", "data") from error
    if not path.is_file():
        raise UserError(f"there is no file {path}, which the dataset names; download it again")
    try:
        return getattr(pyarrow.parquet, function)(path, **options)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is not a readable parquet file ({str(error).splitlines()[0]})") from error


def value_of(row: Mapping[str, Any], key: str, path: Path) -> Any:
    """The value of ``key`` in a row of the file ``path``.

    Raises:
        UserError: there is none; the message names those that are there.
    """
    if row.get(key) is None:
        raise UserError(f"{path} has no {key!r}; it has {listed(row)}")
    return row[key]


def read_json(path: Path, kind: type = dict) -> Any:
    """What a JSON file holds, a dict or another ``kind``.

    Raises:
        UserError: the file is missing, damaged or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check that the whole dataset is there") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); download it again") from error
    if not isinstance(content, kind):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a JSON {_JSON_NAMES[kind]}")
    return content


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of one a line.

    Raises:
        UserError: the file is missing, damaged or holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); download the dataset again") from error
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON lines file ({error}); download it again") from error
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} has lines that are no objects; download it again")
    return rows
