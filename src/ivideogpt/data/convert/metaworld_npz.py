"""Official demonstrations of Meta-World: replay files of three stacked frames, a folder for each task.

Row t of their arrays leads into frame t and row 0 is a dummy; here, as in ``Episode``, row t leads from frame t to
t + 1. The recorded actions exceed the limit of the environment, which clips them; the clipped actions are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.source_episode import ActionField, SourceEpisode, omission
from ivideogpt.data.convert.source_files import existing_folder, in_groups, name_list, relative_name, visible_files
from ivideogpt.data.convert.time_steps import arriving_rows, numbers, one_column
from ivideogpt.data.media import read_episode
from ivideogpt.data.numpy_files import NumpyArchive
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, ShardTasks

FACTS = StoreFacts(
    name="metaworld",
    url="https://github.com/thuml/iVideoGPT/tree/main/mbrl/demonstrations",
)
EPISODES_A_SHARD = 64
STACKED_CHANNELS = 9
SPLITS = ("train", "val", "test")


def tasks(source: Path, *, split: str = "train") -> ShardTasks:
    """Return one task a shard, files by name within their folders.

    Args:
        source: ``mbrl/demonstrations`` of thuml/iVideoGPT, or one of the folders in it.
        split: of all episodes: "train", "val" or "test".

    Raises:
        UserError: there is no such folder, it holds no ``.npz`` file, or there is no such split.
    """
    if split not in SPLITS:
        raise UserError(f"split is {split!r}; expected {', '.join(SPLITS)}")
    folder = existing_folder(source, "demonstrations, one folder a task")
    available = visible_files(folder)
    files = sorted(path for path in available if path.suffix.lower() == ".npz")
    if not files:
        raise UserError(f"{folder} holds no .npz files; it holds {name_list(sorted(p.name for p in folder.iterdir()))}")
    shards = [
        ShardTask(
            name=f"{split}-{index:05d}", read=partial(read_npz_files, folder=folder, paths=tuple(group), split=split)
        )
        for index, group in enumerate(in_groups(files, EPISODES_A_SHARD))
    ]
    others = (relative_name(folder, path) for path in available if path.suffix.lower() != ".npz")
    return ShardTasks(shards, omission("files", "they are no replay files", others))


def read_npz_files(*, folder: Path, paths: Sequence[Path], split: str = "train") -> Iterator[SourceEpisode]:
    """Yield the episodes of ``paths``, one a file, all of one split.

    Raises:
        UserError: a file is damaged or no replay file.
    """
    for path in paths:
        episode = read_episode(path, dataset_name="metaworld")
        _check_stacked(path)
        if episode.actions is None or episode.rewards is None:
            missing = "action" if episode.actions is None else "reward"
            raise UserError(f"{path} has no array {missing!r}; expected observation, action, reward and discount")
        yield SourceEpisode(
            key=relative_name(folder, path.with_suffix("")),
            split=split,
            camera="observation",
            cameras={"observation": episode.frames},
            actions=episode.actions,
            action_fields=(ActionField(name="action", size=episode.actions.shape[1]),),
            rewards=episode.rewards,
            terminated=_terminated(path, len(episode)),
            meta={"source": relative_name(folder, path), "task": path.parent.name},
            omissions=omission("arrays of .npz files", "they are no part of an episode", _unread_arrays(path)),
        )


def _check_stacked(path: Path) -> None:
    """Raise UserError where the frames are not stacked: then the rows would follow another convention."""
    with NumpyArchive(path) as archive:
        shape, _ = archive.header("observation")
    if len(shape) != 4 or shape[1] != STACKED_CHANNELS:
        raise UserError(f"array 'observation' of {path} has shape {list(shape)}; expected stacked frames [t 9 h w]")


def _terminated(path: Path, length: int) -> np.ndarray | None:
    """Return True where the discount is 0: the world ends there; None without discounts."""
    with NumpyArchive(path) as archive:
        if "discount" not in archive.names:
            return None
        name = f"array 'discount' of {path}"
        discount = numbers(archive.read("discount"), name)
    return one_column(arriving_rows(discount == 0, length, name), name).astype(bool)


def _unread_arrays(path: Path) -> list[str]:
    with NumpyArchive(path) as archive:
        return [name for name in archive.names if name not in ("observation", "action", "reward", "discount")]
