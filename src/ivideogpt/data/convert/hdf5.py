"""HDF5 files: opened and read by key, with errors that name the missing key and the available ones.

Nothing is read that lies outside of the file (external links, external storage, virtual arrays), and no array whose
declared size is far above what the file stores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.core.reading import check_is_file, check_unpacked_size
from ivideogpt.data.convert.source_files import name_list, reading_file

if TYPE_CHECKING:
    import h5py

SUFFIXES = (".hdf5", ".h5")


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading, for a ``with`` block; every error in the block names the file.

    Raises:
        MissingExtraError: h5py is not installed.
        UserError: the file, or a part that is read in the block, is damaged.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise MissingExtraError("h5py", "data") from error
    check_is_file(path, "HDF5 file")
    with reading_file(path, "HDF5 file"), h5py.File(path, "r") as file:
        yield file


def group(parent: h5py.Group, key: str) -> h5py.Group:
    """Return the group of that name.

    Raises:
        UserError: there is no such group; the message names the available ones.
    """
    import h5py

    item = _item(parent, key)
    if not isinstance(item, h5py.Group):
        raise UserError(f"{_where(parent, key)} is an array; expected a group")
    return item


def dataset(parent: h5py.Group, key: str) -> h5py.Dataset:
    """Return the dataset of that name without reading it.

    Raises:
        UserError: there is no such dataset; the message names the available ones.
    """
    import h5py

    item = _item(parent, key)
    if not isinstance(item, h5py.Dataset):
        raise UserError(f"{_where(parent, key)} is a group; expected an array")
    return item


def array(parent: h5py.Group, key: str) -> np.ndarray:
    """Return the whole array of that name.

    Raises:
        UserError: as ``dataset``; the array lies in other files, or declares far more bytes than the file stores.
    """
    stored, where = dataset(parent, key), _where(parent, key)
    if stored.external or stored.is_virtual:
        raise UserError(f"{where} lies in other files, which are not read; copy the array into this file")
    check_unpacked_size(where, unpacked=int(stored.nbytes), stored=int(stored.id.get_storage_size()))
    return np.asarray(stored[()])


def attribute(item: h5py.Group | h5py.Dataset, name: str) -> Any:
    """Return an attribute.

    Raises:
        UserError: there is none of that name; the message names the available ones.
    """
    if name not in item.attrs:
        raise UserError(f"{item.file.filename}: {item.name} has no attribute {name!r}; it has {name_list(item.attrs)}")
    return item.attrs[name]


def count_attribute(item: h5py.Group | h5py.Dataset, name: str) -> int:
    """Return an attribute that counts something.

    Raises:
        UserError: there is none of that name, or it is no whole number of at least 0.
    """
    value = np.asarray(attribute(item, name))
    if value.size != 1 or value.dtype.kind not in "iu" or int(value.ravel()[0]) < 0:
        raise UserError(
            f"{item.file.filename}: {item.name} has {value.tolist()!r} as its attribute {name!r}; expected a number"
        )
    return int(value.ravel()[0])


def is_frames(values: np.ndarray | h5py.Dataset) -> bool:
    """Return whether an array holds RGB frames, uint8 ``[t h w 3]``."""
    return len(values.shape) == 4 and values.shape[3] == 3 and values.dtype == np.uint8 and 0 not in values.shape


def _item(parent: h5py.Group, key: str) -> Any:
    import h5py

    item: Any = parent
    for step, part in enumerate(key.split("/")):
        if not hasattr(item, "keys") or part not in item:
            available = name_list(item) if hasattr(item, "keys") else "an array"
            reached = "/".join(key.split("/")[:step]) or "it"
            raise UserError(f"{_where(parent, key)} is missing; {reached} holds {available}")
        if isinstance(item.get(part, getlink=True), h5py.ExternalLink):
            raise UserError(f"{_where(parent, key)} lies in another file, which is not read; copy it into this file")
        item = item[part]
    return item


def _where(parent: h5py.Group, key: str) -> str:
    return f"{parent.file.filename}: {str(parent.name).rstrip('/')}/{key}"
