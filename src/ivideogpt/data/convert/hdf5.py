"""HDF5 files: opened, and read by key, with errors that say which key was expected and which are there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.data.convert.source_files import name_list

if TYPE_CHECKING:
    import h5py

SUFFIXES = (".hdf5", ".h5")


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading.

    Raises:
        MissingExtraError: h5py is not installed.
        UserError: the file is damaged, or a part of it that is read inside the block.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise MissingExtraError("h5py", "data") from error
    if not path.is_file():
        raise UserError(f"there is no file {path}; check the path")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:  # HDF5 reports damage as either
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a readable HDF5 file ({reason}); copy it again") from error


def group(parent: h5py.Group, key: str) -> h5py.Group:
    """The group of that name.

    Raises:
        UserError: there is no such group; the message names those that are there.
    """
    import h5py

    found = _item(parent, key)
    if not isinstance(found, h5py.Group):
        raise UserError(f"{_where(parent, key)} is an array; expected a group")
    return found


def dataset(parent: h5py.Group, key: str) -> h5py.Dataset:
    """The dataset of that name, unread.

    Raises:
        UserError: there is no such dataset; the message names what is there.
    """
    import h5py

    found = _item(parent, key)
    if not isinstance(found, h5py.Dataset):
        raise UserError(f"{_where(parent, key)} is a group; expected an array")
    return found


def array(parent: h5py.Group, key: str) -> np.ndarray:
    """The whole array of that name.

    Raises:
        UserError: as ``dataset``.
    """
    return np.asarray(dataset(parent, key)[()])


def attribute(item: h5py.Group | h5py.Dataset, name: str) -> Any:
    """An attribute.

    Raises:
        UserError: there is none of that name; the message names those that are there.
    """
    if name not in item.attrs:
        raise UserError(f"{item.file.filename}: {item.name} has no attribute {name!r}; it has {name_list(item.attrs)}")
    return item.attrs[name]


def _item(parent: h5py.Group, key: str) -> Any:
    here: Any = parent
    for step, part in enumerate(key.split("/")):
        if not hasattr(here, "keys") or part not in here:
            there = name_list(here) if hasattr(here, "keys") else "an array"
            reached = "/".join(key.split("/")[:step]) or "it"
            raise UserError(f"{_where(parent, key)} is missing; {reached} holds {there}")
        here = here[part]
    return here


def _where(parent: h5py.Group, key: str) -> str:
    return f"{parent.file.filename}: {str(parent.name).rstrip('/')}/{key}"
