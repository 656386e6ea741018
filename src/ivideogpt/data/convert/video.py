"""Folders of recordings: videos, GIFs, ``.npz`` files and folders of images, with a table of actions beside each.

data/train/take1.mp4    data/train/take1.csv       one line a frame, or one less; a first line may name the columns
data/train/take2/*.jpg  data/train/take2.npy       or actions.csv or actions.npy in the folder of images
data/val/take3.npz                                 holds its actions itself, or has a table beside it

Names are compared without regard to case. Files that are no part of a recording are reported as left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.action_tables import TABLES, read_action_table
from ivideogpt.data.convert.frame_files import image_frames, whole_video
from ivideogpt.data.convert.source_episode import ActionField, Frames, Omission, SourceEpisode, omission
from ivideogpt.data.convert.source_files import (
    existing_folder,
    in_groups,
    name_list,
    natural_key,
    read_content,
    relative_name,
    visible_files,
)
from ivideogpt.data.convert.time_steps import leading_rows
from ivideogpt.data.image_files import IMAGE_SUFFIXES as IMAGES
from ivideogpt.data.image_files import is_image_name, list_images
from ivideogpt.data.media import read_episode
from ivideogpt.data.numpy_files import NumpyArchive
from ivideogpt.data.store.writer import ShardTask, ShardTasks

VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
RECORDINGS = (*VIDEOS, ".gif", ".npz")
EPISODES_A_SHARD = 32
#: Split by the name of a first folder.
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_TABLE_IN_FOLDER = "actions"


@dataclass(frozen=True, kw_only=True)
class VideoRecording:
    """One episode.

    Attributes:
        path: a file, or a folder of images.
        actions: its table of actions, or None.
        key: its path below the source, without the suffix.
        split: as the first folder is named, or as ``val_every`` says.
    """

    path: Path
    actions: Path | None
    key: str
    split: str


def tasks(
    source: Path, *, camera_key: str | None = None, fps: float | None = None, val_every: int | None = None
) -> ShardTasks:
    """Return one task a shard, splits one after the other, recordings in natural order (2 before 10).

    Args:
        source: the folder; recordings may lie in folders below it. A first folder named train, val, valid,
            validation or test gives the split of its recordings.
        camera_key: array of the ``.npz`` files that holds the frames, where several look like frames.
        fps: frames a second, where the videos have it wrong.
        val_every: every so many recordings, from the first on, one goes to the split "val"; None: by the folders.

    Raises:
        UserError: there is no such folder, it holds no recording, or two recordings or tables have one name.
    """
    folder = existing_folder(source, "videos, GIFs, .npz files or folders of images").absolute()
    if fps is not None and not 0 < fps < math.inf:
        raise UserError(f"fps is {fps}; expected a number above 0")
    if val_every is not None and val_every < 2:
        raise UserError(f"val_every is {val_every}; expected at least 2")
    files = visible_files(folder)
    recordings = _recordings(folder, files, val_every)
    if not recordings:
        raise UserError(
            f"{folder} holds no recordings; expected {', '.join(RECORDINGS)} or folders of images, "
            f"found {name_list(sorted(path.name for path in folder.iterdir()))}"
        )
    shards = []
    for split in sorted({recording.split for recording in recordings}, key=list(SPLITS.values()).index):
        chosen = [recording for recording in recordings if recording.split == split]
        for index, group in enumerate(in_groups(chosen, EPISODES_A_SHARD)):
            read = partial(read_recordings, folder=folder, recordings=tuple(group), camera_key=camera_key, fps=fps)
            shards.append(ShardTask(name=f"{split}-{index:05d}", read=read))
    return ShardTasks(shards, _unread_files(folder, files, recordings), sources=_sources(files, recordings))


def read_recordings(
    *, folder: Path, recordings: Sequence[VideoRecording], camera_key: str | None = None, fps: float | None = None
) -> Iterator[SourceEpisode]:
    """Yield the episodes ``recordings``.

    Raises:
        UserError: a file is damaged, or its actions do not fit to its frames.
    """
    for recording in recordings:
        path, rate = recording.path, None
        rewards = terminated = state = actions = None
        fields: tuple[ActionField, ...] = ()
        omissions: tuple[Omission, ...] = ()
        frames: Frames
        if path.is_dir():
            files = ((str(file), read_content(file, "image")) for file in list_images(path))
            frames = image_frames(files, str(path))
        elif path.suffix.lower() in VIDEOS:
            frames, rate = whole_video(path)
        else:
            episode = read_episode(path, camera_key=camera_key if path.suffix.lower() == ".npz" else None)
            frames, rate = episode.frames, episode.meta.get("fps")
            rewards, terminated, state, actions = episode.rewards, episode.terminated, episode.state, episode.actions
            omissions = _unread_arrays(path, episode) if path.suffix.lower() == ".npz" else ()
        if recording.actions is not None:
            if actions is not None:
                raise UserError(f"{path} holds actions and {recording.actions} too; remove one of them")
            table = read_action_table(recording.actions, len(frames))
            actions = leading_rows(table.values, len(frames), str(recording.actions))
            fields = tuple(ActionField(name=name, size=1) for name in table.names)
            omissions += table.omissions
            if len(table.values) == len(frames):
                omissions += (Omission(items="last actions", reason="they lead to no recorded frame"),)
        if actions is not None and not fields:
            fields = (ActionField(name="actions", size=actions.shape[1]),)
        yield SourceEpisode(
            key=recording.key,
            split=recording.split,
            cameras={"image": frames},
            actions=actions,
            action_fields=fields,
            rewards=rewards,
            terminated=terminated,
            state=state,
            fps=fps or rate,
            meta={"source": relative_name(folder, path)},
            omissions=omissions,
        )


def _recordings(folder: Path, files: Sequence[Path], val_every: int | None) -> list[VideoRecording]:
    paths = [path for path in files if path.suffix.lower() in RECORDINGS]
    folders = {path.parent for path in paths}
    for image_folder in {path.parent for path in files if path.suffix.lower() in IMAGES}:
        if image_folder in folders:
            raise UserError(
                f"{image_folder} holds recordings and images side by side; put the images into a folder of their own"
            )
        paths.append(image_folder)
    paths.sort(key=lambda path: natural_key(relative_name(folder, path)))
    # The table of a source that is a folder of images itself lies beside it.
    tables = _tables_by_name([*files, *(path for path in folder.parent.glob(f"{folder.name}.*") if path.is_file())])
    recordings: dict[str, VideoRecording] = {}
    for index, path in enumerate(paths):
        bare = path if path.is_dir() else path.with_suffix("")
        key = relative_name(folder, bare) if bare != folder else folder.name
        split = SPLITS.get(Path(key).parts[0].lower(), "train") if len(Path(key).parts) > 1 else "train"
        if val_every is not None:
            split = "train" if index % val_every else "val"
        recording = VideoRecording(path=path, actions=_table_of(path, bare, tables), key=key, split=split)
        twin = recordings.setdefault(key, recording)
        if twin is not recording:
            raise UserError(f"{twin.path} and {path} differ in their endings only; rename one")
    return list(recordings.values())


def _tables_by_name(files: Sequence[Path]) -> dict[tuple[Path, str], list[Path]]:
    """Return the tables by folder and name, without suffix and in lower case."""
    tables: dict[tuple[Path, str], list[Path]] = {}
    for path in files:
        if path.suffix.lower() in TABLES:
            tables.setdefault((path.parent, path.stem.lower()), []).append(path)
    return tables


def _table_of(path: Path, bare: Path, tables: Mapping[tuple[Path, str], Sequence[Path]]) -> Path | None:
    candidates = list(tables.get((bare.parent, bare.name.lower()), ()))
    if path.is_dir():
        candidates += tables.get((path, _TABLE_IN_FOLDER), ())
    if len(candidates) > 1:
        names = sorted(table.name for table in candidates)
        raise UserError(f"{path} has two tables of actions, {names[0]} and {names[1]}; remove one")
    return candidates[0] if candidates else None


def _sources(files: Sequence[Path], recordings: Sequence[VideoRecording]) -> str:
    """Return the counts of recordings by kind."""
    suffixes: dict[Path, set[str]] = {}
    for path in files:
        if is_image_name(path):
            suffixes.setdefault(path.parent, set()).add(path.suffix.lower())
    kinds = Counter(
        f"folders of {', '.join(sorted(suffixes[recording.path]))} images"
        if recording.path.is_dir()
        else f"{recording.path.suffix.lower()} files"
        for recording in recordings
    )
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def _unread_files(folder: Path, files: Sequence[Path], recordings: Sequence[VideoRecording]) -> list[Omission]:
    read = {recording.path for recording in recordings} | {recording.actions for recording in recordings}
    image_folders = {recording.path for recording in recordings if recording.path.is_dir()}
    unread = [path for path in files if path not in read and not (path.parent in image_folders and is_image_name(path))]
    tables = [path for path in unread if path.suffix.lower() in TABLES]
    others = [path for path in unread if path.suffix.lower() not in TABLES]
    return [
        *omission("tables of actions", "no recording has their name", (relative_name(folder, path) for path in tables)),
        *omission("files", "they are no recordings", (relative_name(folder, path) for path in others)),
    ]


def _unread_arrays(path: Path, episode: Episode) -> tuple[Omission, ...]:
    """Return the arrays of a ``.npz`` file that ``read_episode`` does not use."""
    read = {episode.meta.get("camera")}
    for name, value in (("action", episode.actions), ("reward", episode.rewards)):
        read |= {name, f"{name}s"} if value is not None else set()
    read |= {"terminated"} if episode.terminated is not None else set()
    read |= {"state"} if episode.state is not None else set()
    with NumpyArchive(path) as archive:
        unread = [name for name in archive.names if name not in read]
    return omission("arrays of .npz files", "they are no part of an episode", unread)
