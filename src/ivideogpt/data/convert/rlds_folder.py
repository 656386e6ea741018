"""A dataset of episodes (RLDS) of any name, in a folder that TensorFlow Datasets has written.

Time steps, actions and state are those of ``oxe``; the dataset keeps its own splits and cameras.
"""

from __future__ import annotations

from pathlib import Path

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.oxe import dataset_facts, open_own_dataset, shard_tasks
from ivideogpt.data.convert.rlds.dataset import find_any_folder
from ivideogpt.data.convert.source_files import existing_folder
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTasks


def tasks(
    source: Path, *, cameras: tuple[str, ...] | None = None, partial: bool = False, val_every: int | None = None
) -> ShardTasks:
    """Return one task a shard, or a group of small shards.

    Args:
        source: the folder with ``features.json``, or one or two folders above it.
        cameras: the cameras to store, the model's first; default: all.
        partial: leave out missing files.
        val_every: every so many episodes, from the first on, one goes to the split "val"; None: the splits stay.

    Raises:
        UserError: there is no such folder, or not one dataset in it; a file is missing, or a camera.
    """
    if val_every is not None and val_every < 2:
        raise UserError(f"val_every is {val_every}; expected at least 2")
    path = find_any_folder(existing_folder(source, "a dataset of TensorFlow Datasets"))
    dataset, folder = open_own_dataset(path, cameras=cameras, val_every=val_every)
    return shard_tasks(dataset, folder, partial=partial)


def facts(source: Path, *, cameras: tuple[str, ...] | None = None, partial: bool = False) -> StoreFacts:
    """Return the store's facts of the dataset; arguments and errors as for ``tasks``."""
    path = find_any_folder(existing_folder(source, "a dataset of TensorFlow Datasets"))
    return dataset_facts(open_own_dataset(path, cameras=cameras)[0], partial=partial)
