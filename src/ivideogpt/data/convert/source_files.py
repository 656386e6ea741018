"""Files and folders of a source: reading them, filling path templates, the order of names."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from ivideogpt.core.errors import UserError
from ivideogpt.core.reading import check_is_file, local_path, reading

Item = TypeVar("Item")

#: A text file of a dataset with more bytes than this is refused.
LARGEST_TEXT = 2**30
_FORMAT = re.compile(r"0?\d{0,2}d?")


def reading_file(path: object, kind: str) -> AbstractContextManager[None]:
    """Return a context that turns every exception of reading a file into a ``UserError`` that names the file.

    Args:
        path: the file, or a place in it.
        kind: of file, for example "HDF5 file".
    """
    return reading(str(path), "copy or download it again", fault=f"is not a readable {kind}")


def read_text(path: Path, kind: str) -> str:
    """Return the text of a regular file in UTF-8.

    Raises:
        UserError: there is no such regular file, it is too large, or it is no UTF-8.
    """
    check_is_file(path, kind)
    with reading_file(path, kind):
        if path.stat().st_size > LARGEST_TEXT:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes; expected at most {LARGEST_TEXT:,}")
        return path.read_text(encoding="utf-8")


def read_content(path: Path, kind: str) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        UserError: there is no such regular file, or it cannot be read.
    """
    check_is_file(path, kind)
    with reading_file(path, kind):
        return path.read_bytes()


def existing_folder(source: str | Path, content: str) -> Path:
    """Return ``source`` as a Path.

    Args:
        source: the folder.
        content: what it is expected to hold, for the error.

    Raises:
        UserError: it is no folder.
    """
    folder = local_path(source)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give the folder that holds {content}")
    return folder


def visible_files(folder: Path) -> list[Path]:
    """Return the regular files below ``folder`` in natural order; names that begin with a dot are hidden."""
    paths = (path for path in folder.rglob("*") if not any(part[0] == "." for part in path.relative_to(folder).parts))
    return sorted((path for path in paths if path.is_file()), key=lambda path: natural_key(relative_name(folder, path)))


def relative_name(folder: Path, path: Path) -> str:
    """Return ``path`` relative to ``folder`` with forward slashes: the name of an episode's source."""
    return path.relative_to(folder).as_posix()


def filled_template(template: object, values: Mapping[str, Any], where: object) -> str:
    """Return a path template with its fields filled in.

    Only plain fields with at most two digits of width are taken, so a template can neither ask for attributes of the
    values nor for a path of gigabytes.

    Args:
        template: for example "data/chunk-{chunk_index:03d}.parquet".
        values: of the fields.
        where: place in the dataset that holds the template, for the error.

    Raises:
        UserError: the template uses another field or format.
    """
    try:
        parts = list(string.Formatter().parse(str(template)))
        for _, field, width, conversion in parts:
            if field is not None and (field not in values or conversion or not _FORMAT.fullmatch(width or "")):
                raise ValueError(field)
        return str(template).format(**values)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{where} is {str(template)[:200]!r}; it may use {name_list(values)}") from error


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Return a sort key that puts "2" before "10"; a number of 20 digits or more counts as text."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part)) if part.isdecimal() and len(part) < 20 else (1, part) for part in parts if part]


def in_groups(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Return ``items`` in groups of ``size``; the last group may be smaller."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def name_list(names: Iterable[object], most: int = 12) -> str:
    """Return names for an error message, "nothing" where there are none."""
    names = [str(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "nothing"
