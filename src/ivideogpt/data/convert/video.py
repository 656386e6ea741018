"""Any folder of recordings: videos, GIFs, ``.npz`` files and folders of images, with a table of actions beside each.

data/train/take1.mp4    data/train/take1.csv       one line a frame, or one less; a first line may name the columns
data/train/take2/*.jpg  data/train/take2.npy       or actions.csv or actions.npy in the folder of images
data/val/take3.npz                                 holds its actions itself, or has a table beside it
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.frame_files import image_frames, whole_video
from ivideogpt.data.convert.source_episode import ActionField, Frames, SourceEpisode
from ivideogpt.data.convert.source_files import existing_folder, in_groups, name_list, natural_key, relative_name
from ivideogpt.data.convert.time_steps import leading_rows
from ivideogpt.data.image_files import IMAGE_SUFFIXES as IMAGES
from ivideogpt.data.image_files import list_images
from ivideogpt.data.media import read_episode
from ivideogpt.data.store.writer import ShardTask

VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
RECORDINGS = (*VIDEOS, ".gif", ".npz")
TABLES = (".csv", ".npy")
EPISODES_A_SHARD = 32
#: Names of a first folder that say the split, and ours.
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_INSIDE = "actions"


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One episode.

    Attributes:
        path: a file, or a folder of images.
        actions: its table of actions, or None.
        key: its path below the source, without the ending.
        split: of the first folder's name, or as ``val_every`` says.
    """

    path: Path
    actions: Path | None
    key: str
    split: str


def tasks(
    source: Path, *, camera_key: str | None = None, fps: float | None = None, val_every: int | None = None
) -> list[ShardTask]:
    """One task a shard, splits one after the other, recordings in natural order (2 before 10).

    Args:
        source: the folder; recordings may lie in folders below it. A first folder named train, val, valid,
            validation or test says the split of what is in it.
        camera_key: array of the ``.npz`` files that holds the frames, where several look like frames.
        fps: frames a second, where it is not what the videos say.
        val_every: every so many recordings, from the first on, one goes to the split "val"; None: the folders say it.

    Raises:
        UserError: there is no such folder, it holds no recording, or two recordings or tables have one name.
    """
    folder = existing_folder(source, "videos, GIFs, .npz files or folders of images").absolute()
    if fps is not None and not 0 < fps < math.inf:
        raise UserError(f"fps is {fps}; expected a number above 0")
    if val_every is not None and val_every < 2:
        raise UserError(f"val_every is {val_every}; expected at least 2")
    found = _recordings(folder, val_every)
    if not found:
        raise UserError(
            f"{folder} holds no recordings; expected {', '.join(RECORDINGS)} or folders of images, "
            f"found {name_list(sorted(path.name for path in folder.iterdir()))}"
        )
    shards = []
    for split in sorted({recording.split for recording in found}, key=list(SPLITS.values()).index):
        chosen = [recording for recording in found if recording.split == split]
        for index, group in enumerate(in_groups(chosen, EPISODES_A_SHARD)):
            read = partial(read_recordings, folder=folder, recordings=tuple(group), camera_key=camera_key, fps=fps)
            shards.append(ShardTask(name=f"{split}-{index:05d}", read=read))
    return shards


def read_recordings(
    *, folder: Path, recordings: Sequence[Recording], camera_key: str | None = None, fps: float | None = None
) -> Iterator[SourceEpisode]:
    """The episodes ``recordings``.

    Raises:
        UserError: a file is damaged, or its actions do not fit to its frames.
    """
    for recording in recordings:
        path, rate = recording.path, None
        rewards = terminated = state = actions = None
        fields: tuple[ActionField, ...] = ()
        frames: Frames
        if path.is_dir():
            files = ((str(file), file.read_bytes()) for file in list_images(path))
            frames = image_frames(files, str(path))
        elif path.suffix.lower() in VIDEOS:
            frames, rate = whole_video(path)
        else:
            episode = read_episode(path, camera_key=camera_key if path.suffix.lower() == ".npz" else None)
            frames, rate = episode.frames, episode.meta.get("fps")
            rewards, terminated, state, actions = episode.rewards, episode.terminated, episode.state, episode.actions
        if recording.actions is not None:
            if actions is not None:
                raise UserError(f"{path} holds actions and {recording.actions} too; remove one of them")
            values, names = read_table(recording.actions)
            actions = leading_rows(values, len(frames), str(recording.actions))
            fields = tuple(ActionField(name=name, size=1) for name in names)
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
        )


def read_table(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """The numbers ``[t n]`` of a ``.csv`` or ``.npy`` file, and the names of the columns where a first line has them.

    Raises:
        UserError: the file is damaged, empty, or holds something else than numbers.
    """
    if path.suffix == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} is not a readable .npy file ({error}); save it with numpy.save") from error
        if not isinstance(values, np.ndarray) or values.ndim not in (1, 2):
            raise UserError(f"{path} does not hold an array [t a]; save the actions of the episode as one")
        return values.reshape(len(values), -1), ()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [(number, row) for number, row in enumerate(csv.reader(file), 1) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a readable CSV file ({error}); save it as text, with commas") from error
    names: tuple[str, ...] = ()
    if lines and not any(_is_number(cell) for cell in lines[0][1]):
        names = tuple(cell.strip() for cell in lines.pop(0)[1])
    if not lines:
        raise UserError(f"{path} has no lines of numbers; expected one a frame, or one less")
    width = len(names) or len(lines[0][1])
    for number, row in lines:
        if len(row) != width:
            raise UserError(f"{path} line {number} has {len(row)} columns; expected {width}")
        for cell in row:
            if not _is_number(cell):
                raise UserError(f"{path} line {number} has {cell!r}; expected a number")
    return np.array([[float(cell) for cell in row] for _, row in lines]), names


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _recordings(folder: Path, val_every: int | None) -> list[Recording]:
    paths = [path for path in folder.rglob("*") if not any(part[0] == "." for part in path.relative_to(folder).parts)]
    files = [path for path in paths if path.is_file()]
    chosen = [path for path in files if path.suffix.lower() in RECORDINGS]
    homes = {path.parent for path in chosen}
    for home in {path.parent for path in files if path.suffix.lower() in IMAGES}:
        if home in homes:
            raise UserError(
                f"{home} holds recordings and images side by side; put the images into a folder of their own"
            )
        chosen.append(home)
    chosen.sort(key=lambda path: natural_key(relative_name(folder, path)))
    recordings: dict[str, Recording] = {}
    for index, path in enumerate(chosen):
        bare = path if path.is_dir() else path.with_suffix("")
        key = relative_name(folder, bare) if bare != folder else folder.name
        split = SPLITS.get(Path(key).parts[0].lower(), "train") if len(Path(key).parts) > 1 else "train"
        if val_every is not None:
            split = "train" if index % val_every else "val"
        recording = Recording(path=path, actions=_table_of(path, bare), key=key, split=split)
        twin = recordings.setdefault(key, recording)
        if twin is not recording:
            raise UserError(f"{twin.path} and {path} differ in their endings only; rename one")
    return list(recordings.values())


def _table_of(path: Path, bare: Path) -> Path | None:
    places = [bare.with_name(bare.name + suffix) for suffix in TABLES]
    if path.is_dir():
        places += [path / f"{_INSIDE}{suffix}" for suffix in TABLES]
    found = [place for place in places if place.is_file()]
    if len(found) > 1:
        raise UserError(f"{path} has two tables of actions, {found[0].name} and {found[1].name}; remove one")
    return found[0] if found else None
