"""LeRobot datasets, versions 2.0, 2.1 and 3.0: parquet tables with videos or images, in a folder or on the Hub.

Row t of a table holds observation t, the action taken there, and the reward and the end that followed (``next.reward``,
``next.done``): the time convention of ``Episode``. The action of the last row leads to a frame that was not recorded.
Its reward and end are those of the episode, so the last recorded transition takes them over, unless the episode has
ended before. Nothing is lost: ``meta`` keeps the last action, the last reward, and the reward that was replaced.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.core.reading import check_is_file, path_inside
from ivideogpt.data.convert.frame_files import frames_at, image_frames
from ivideogpt.data.convert.lerobot_metadata import (
    INFO,
    EpisodeEntry,
    LeRobotDataset,
    check_windows,
    describe,
    licence,
    local_folder,
)
from ivideogpt.data.convert.source_episode import ActionField, Frames, Omission, SourceEpisode, omission
from ivideogpt.data.convert.source_files import name_list, natural_key, reading_file
from ivideogpt.data.convert.tables import parquet_columns, read_parquet
from ivideogpt.data.convert.time_steps import frame_rows, leading_rows, one_column
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, ShardTasks

#: A shard holds about this many pictures of all cameras together.
PICTURES_A_SHARD = 16_384
# Each field of an episode, and the columns that may hold it: one of these names, or several that begin with it.
_ACTIONS, _STATES = ("action", "actions"), ("observation.state", "state")
_REWARDS, _ENDS = ("next.reward", "reward"), ("next.done", "done")
_COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
#: Returns the rows of an episode in a parquet file: (file, columns, number of the episode) to a ``pyarrow.Table``.
RowReader = Callable[[Path, list[str], int], Any]
_NUMBERS = ("float16", "float32", "float64", "bool", "uint8", "uint16", "int8", "int16", "int32", "int64")


def tasks(
    source: str | Path,
    *,
    camera: str | None = None,
    cameras: Sequence[str] | None = None,
    revision: str | None = None,
    val_every: int | None = None,
) -> ShardTasks:
    """Return one task a shard, splits one after the other, episodes by their number.

    Args:
        source: the folder of the dataset, or its Hub id, which is downloaded.
        camera: the main camera, by its name or the part after its last point ("top" for "observation.images.top"); by
            default the first one that the dataset lists.
        cameras: the cameras to keep; by default all.
        revision: branch, tag or commit of the Hub id.
        val_every: every so many episodes, from the first on, one goes to the split "val"; None: as the dataset says.

    Raises:
        UserError: there is no such dataset, it is damaged, of an unknown version, or has no such camera; two episodes
            share frames of a video.
    """
    if val_every is not None and val_every < 2:
        raise UserError(f"val_every is {val_every}; expected at least 2")
    whole, dataset, entries, main = open_lerobot(source, camera=camera, cameras=cameras, revision=revision)
    kept = dataset.cameras
    omissions = [
        *omission("depth cameras", "only RGB pictures are stored", dataset.depth),
        *omission("cameras", "not chosen", (name for name in whole.cameras if name not in kept)),
        *omission("columns", "they hold no numbers", _unread_columns(whole)),
    ]
    if val_every is not None:
        entries = [replace(entry, split="train" if place % val_every else "val") for place, entry in enumerate(entries)]
    shards = []
    for split in dict.fromkeys(entry.split for entry in sorted(entries, key=lambda entry: entry.split != "train")):
        groups = _groups([entry for entry in entries if entry.split == split], len(kept))
        for index, group in enumerate(groups):
            read = functools.partial(read_entries, dataset=dataset, entries=tuple(group), camera=main)
            shards.append(ShardTask(name=f"{split}-{index:05d}", read=read))
    return ShardTasks(shards, omissions)


def open_lerobot(
    source: str | Path,
    *,
    camera: str | None = None,
    cameras: Sequence[str] | None = None,
    revision: str | None = None,
) -> tuple[LeRobotDataset, LeRobotDataset, list[EpisodeEntry], str]:
    """Return a dataset with all its cameras, with the chosen ones, its episodes, and the main camera; see ``tasks``."""
    wanted = None if cameras is None else (cameras,) if isinstance(cameras, str) else tuple(cameras)
    root = local_folder(source, wanted, revision)
    dataset, entries = describe(root)
    kept = dataset.cameras if wanted is None else tuple(full_name(name, dataset) for name in wanted)
    if not kept:
        raise UserError(f"{root} has no camera; expected a feature of dtype video or image in {INFO}")
    main = full_name(camera, dataset) if camera else kept[0]
    for name in (*kept, main):
        if name not in dataset.cameras or name not in kept:
            raise UserError(f"{root} has no camera {name!r}; it has {name_list(dataset.cameras)}")
    check_windows(entries, kept, dataset.fps)
    return dataset, replace(dataset, cameras=kept), entries, main


def facts(source: str | Path, name: str | None = None, revision: str | None = None) -> StoreFacts:
    """Return the name of a dataset, its URL, and the licence that its README names.

    Args:
        source: as for ``tasks``.
        name: of the dataset; by default that of its folder or repository.
        revision: as for ``tasks``.
    """
    folder, is_local = Path(source), Path(source).is_dir()
    url = "" if is_local else f"https://huggingface.co/datasets/{folder.as_posix()}"
    terms = licence(folder if is_local else local_folder(source, (), revision))
    return StoreFacts(name=name or folder.absolute().name, url=url, licence=terms)


def full_name(name: str, dataset: LeRobotDataset) -> str:
    """Return the name of the only camera that ends in ``.name``; else ``name`` as it is."""
    matches = [camera for camera in dataset.cameras if camera.endswith(f".{name}")]
    return matches[0] if len(matches) == 1 and name not in dataset.cameras else name


def read_entries(*, dataset: LeRobotDataset, entries: Sequence[EpisodeEntry], camera: str) -> Iterator[SourceEpisode]:
    """Yield the episodes ``entries``.

    Raises:
        UserError: a file is missing or damaged, or its parts do not fit together.
    """
    for entry in entries:
        with reading_file(f"episode {entry.index} of {dataset.root / entry.data}", "episode of a LeRobot dataset"):
            episode = _episode(dataset, entry, camera)
        yield episode


def _groups(entries: Sequence[EpisodeEntry], cameras: int) -> list[list[EpisodeEntry]]:
    groups: list[list[EpisodeEntry]] = []
    pictures = PICTURES_A_SHARD
    for entry in entries:
        if pictures >= PICTURES_A_SHARD:
            groups.append([])
            pictures = 0
        groups[-1].append(entry)
        pictures += entry.length * max(cameras, 1)
    return groups


def _episode(dataset: LeRobotDataset, entry: EpisodeEntry, camera: str) -> SourceEpisode:
    episode, table = episode_numbers(dataset, entry, camera)
    return replace(episode, cameras={key: episode_frames(dataset, entry, table, key) for key in dataset.cameras})


def episode_numbers(
    dataset: LeRobotDataset, entry: EpisodeEntry, camera: str, read_rows: RowReader | None = None
) -> tuple[SourceEpisode, dict[str, list[Any]]]:
    """Return an episode without frames, and the columns of its table.

    Args:
        dataset: of the episode.
        entry: its row in the list.
        camera: name of the main camera.
        read_rows: returns the rows of an episode in a file; None: from the file, each time.

    Raises:
        UserError: a file is missing or damaged, or its parts do not fit together.
    """
    name = f"episode {entry.index} of {dataset.root / entry.data}"
    table, files = _table(dataset, entry, read_rows or _rows)
    length = len(next(iter(table.values())))
    if length != entry.length:
        raise UserError(f"{name} has {length} rows; expected {entry.length}, the length in the list of episodes")
    actions, action_fields = _joined(dataset, table, _ACTIONS, leading_rows, name)
    state, state_fields = _joined(dataset, table, _STATES, frame_rows, name)
    rewards, terminated, meta, omissions = _rewards_and_ends(dataset, table, name)
    if actions is not None:
        omissions.append(Omission(items="last actions", reason="they lead to no recorded frame; kept in meta"))
        meta["last_action"] = _last_action(dataset, table)
    if files != [entry.data]:
        reason = "the list of episodes names another parquet file than the one with their rows, which was read"
        omissions += omission("wrong file names", reason, [f"episode {entry.index}"])
    used = {key for names in (_ACTIONS, _STATES, _REWARDS, _ENDS) for key in _columns(dataset, names)}
    further = [key for key in table if key not in {*used, *dataset.cameras, *_COUNTERS}]
    instructions = _instructions(dataset, entry, table)
    numbers = SourceEpisode(
        key=f"episode_{entry.index:06d}",
        split=entry.split,
        camera=camera,
        actions=actions,
        action_fields=action_fields,
        rewards=rewards,
        terminated=terminated,
        state=state,
        arrays={key: _array(table[key], f"{key} of {name}") for key in further},
        text="; ".join(instructions),
        fps=dataset.fps,
        meta=meta
        | {
            "source": files[0],
            "episode_index": entry.index,
            "robot": dataset.robot,
            "tasks": instructions,
            "left_out": [*dataset.depth, *_unread_columns(dataset)],
            "state_names": [field.name for field in state_fields],
            "ranges": {key: dataset.ranges[key] for key in sorted(used) if key in dataset.ranges},
        },
        omissions=tuple(omissions),
    )
    return numbers, table


def _rewards_and_ends(
    dataset: LeRobotDataset, table: dict[str, list[Any]], name: str
) -> tuple[np.ndarray | None, np.ndarray | None, dict[str, Any], list[Omission]]:
    """Return rewards ``[t]`` and ends ``[t]`` of transitions, or None; values for meta; what was moved."""
    reward_columns, _ = _joined(dataset, table, _REWARDS, frame_rows, name)
    end_columns, _ = _joined(dataset, table, _ENDS, frame_rows, name)
    rewards = None if reward_columns is None else one_column(reward_columns, f"reward of {name}").copy()
    ends = None if end_columns is None else one_column(end_columns, f"done of {name}").astype(bool)
    meta: dict[str, Any] = {}
    omissions: list[Omission] = []
    has_ended_before = ends is not None and ends[:-1].any()
    takes_over = not has_ended_before and len(next(iter(table.values()))) > 1
    if rewards is not None:
        meta["last_reward"] = float(rewards[-1])
        if takes_over and rewards[-1] != rewards[-2]:
            meta["replaced_reward"] = float(rewards[-2])
            rewards[-2] = rewards[-1]
            omissions.append(Omission(items="last rewards", reason="moved to the last recorded transition"))
        rewards[-1] = 0
    if ends is not None:
        if takes_over and ends[-1]:
            ends[-2] = True
            omissions.append(Omission(items="ends of episodes", reason="moved to the last recorded transition"))
        ends[-1] = False
    return rewards, ends, meta, omissions


def _last_action(dataset: LeRobotDataset, table: dict[str, list[Any]]) -> list[float] | None:
    rows = [np.asarray(table[key][-1], np.float64).ravel() for key in _columns(dataset, _ACTIONS)]
    last = np.concatenate(rows)
    return last.tolist() if np.isfinite(last).all() else None


def _table(
    dataset: LeRobotDataset, entry: EpisodeEntry, read_rows: RowReader
) -> tuple[dict[str, list[Any]], list[str]]:
    """Return the columns of one episode that are numbers or pictures, and the files that hold its rows."""
    features = dataset.features
    images = [key for key in dataset.cameras if features[key]["dtype"] == "image"]
    wanted = [key for key, feature in features.items() if key in images or feature.get("dtype") in _NUMBERS]
    wanted = list(dict.fromkeys([*wanted, "episode_index"]))
    path, files = dataset.root / entry.data, [entry.data]
    parts = [read_rows(path, wanted, entry.index)] if path.is_file() or not dataset.keeps_many_episodes_a_file else []
    if dataset.keeps_many_episodes_a_file and sum(map(len, parts)) < entry.length:
        # Datasets of early 3.0 writers name the file before the right one.
        paths = sorted((dataset.root / "data").rglob("*.parquet"), key=lambda path: natural_key(path.as_posix()))
        versions = tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file())
        files = [path.relative_to(dataset.root).as_posix() for path in _paths_by_episode(versions).get(entry.index, ())]
        parts = [read_rows(dataset.root / file, wanted, entry.index) for file in files]
        if not files:
            check_is_file(path, "parquet file")
    if not sum(map(len, parts)):
        raise UserError(f"{path} has no rows of episode {entry.index}; download the dataset again")
    columns = {key: [cell for part in parts for cell in part[key].to_pylist()] for key in wanted}
    order = columns.get("frame_index", [])
    if any(later <= earlier for earlier, later in zip(order, order[1:], strict=False)):
        raise UserError(f"{path} has the rows of episode {entry.index} out of order (frame_index); write it again")
    return columns, files


def _rows(path: Path, columns: list[str], episode: int) -> Any:
    """Return the rows of an episode in a parquet file as a ``pyarrow.Table``."""
    available = parquet_columns(path)
    if missing := [key for key in columns if key not in available]:
        raise UserError(f"{path} has no column {missing[0]!r}; it has {name_list(available)}")
    return read_parquet(path, columns=columns, filters=[("episode_index", "==", episode)])


@functools.lru_cache(maxsize=1)
def _paths_by_episode(files: tuple[tuple[Path, int, int], ...]) -> dict[int, list[Path]]:
    """Return the parquet files that hold rows of each episode; ``files`` are paths with their size and time."""
    paths: dict[int, list[Path]] = {}
    for path, _, _ in files:
        if "episode_index" in parquet_columns(path):
            for episode in read_parquet(path, columns=["episode_index"])["episode_index"].unique().to_pylist():
                paths.setdefault(episode, []).append(path)
    return paths


def episode_frames(
    dataset: LeRobotDataset,
    entry: EpisodeEntry,
    table: dict[str, list[Any]],
    key: str,
    rows: Sequence[int] | None = None,
) -> Frames:
    """Return frames of one camera of an episode.

    Args:
        dataset: of the episode.
        entry: its row in the list.
        table: its columns.
        key: of the camera.
        rows: in ascending order, each once; None: all.

    Raises:
        UserError: a file is missing or damaged, or lacks a frame.
    """
    rows = range(entry.length) if rows is None else rows
    if key in table:
        cells = [table[key][row] for row in rows]
        return image_frames(_images(dataset.root, cells, f"{key} of episode {entry.index}"), key)
    window = entry.videos[key]
    path = dataset.root / window.path
    check_is_file(path, "video")
    seconds = _seconds(dataset, entry, window.start, window.end, table)
    return frames_at(path, [seconds[row] for row in rows], dataset.fps)


def _seconds(
    dataset: LeRobotDataset, entry: EpisodeEntry, start: float, end: float | None, table: dict[str, list[Any]]
) -> list[float]:
    """Return the second of each row in the video.

    Raises:
        UserError: two rows belong to one frame, or a row lies outside of the episode's window of the video.
    """
    rows = table.get("timestamp") or [row / dataset.fps for row in range(entry.length)]
    name = f"episode {entry.index} of {dataset.root / entry.data}"
    seconds = start + np.asarray(rows, np.float64).ravel()
    if len(seconds) != entry.length or not np.isfinite(seconds).all():
        raise UserError(f"{name} has timestamps that are no number of seconds in each row; write the column again")
    frames = np.rint(seconds * dataset.fps)
    if (np.diff(frames) <= 0).any():
        raise UserError(
            f"{name} has two rows for one frame at {dataset.fps:g} frames a second (timestamp); "
            "correct the column or fps"
        )
    half_frame = 0.5 / dataset.fps + 1e-4  # timestamps are float32
    latest = np.inf if end is None else end - 1 / dataset.fps
    outside = (seconds < start - half_frame) | (seconds > latest + half_frame)
    if outside.any():
        row = int(outside.argmax())
        until = "" if end is None else f" to {end:.3f} s"
        raise UserError(
            f"{name} has row {row} at {seconds[row]:.3f} s of the video, outside of the episode's frames from "
            f"{start:.3f} s{until}; timestamps must begin at 0 in each episode and follow the clock of the video"
        )
    return seconds.tolist()


def _images(root: Path, cells: Sequence[Any], name: str) -> Iterator[tuple[str, bytes]]:
    for row, cell in enumerate(cells):
        label = f"row {row} of {name}"
        if not isinstance(cell, dict) or not (cell.get("bytes") or cell.get("path")):
            raise UserError(f"{label} in {root} holds no image; expected its bytes or its path")
        if cell.get("bytes"):
            yield label, cell["bytes"]
            continue
        path = path_inside(root, str(cell["path"]))
        if not path.is_file():
            raise UserError(f"{path}, {label}, is not there; download the dataset again")
        with reading_file(path, "image"):
            content = path.read_bytes()
        yield str(path), content


def _unread_columns(dataset: LeRobotDataset) -> list[str]:
    read = (*_NUMBERS, "video", "image")
    return [key for key, feature in dataset.features.items() if feature.get("dtype") not in read]


def _columns(dataset: LeRobotDataset, names: Sequence[str]) -> list[str]:
    """Return the column of the first available name, or all columns that begin with that name and a dot."""
    numeric = [key for key, feature in dataset.features.items() if feature.get("dtype") in _NUMBERS]
    for name in names:
        columns = [key for key in numeric if key == name] or [key for key in numeric if key.startswith(f"{name}.")]
        if columns:
            return columns
    return []


def _joined(
    dataset: LeRobotDataset, table: dict[str, list[Any]], names: Sequence[str], rows: Any, episode: str
) -> tuple[np.ndarray | None, tuple[ActionField, ...]]:
    """Return the columns of one field side by side, and the meaning of their numbers."""
    keys = _columns(dataset, names)
    if not keys:
        return None, ()
    parts = [rows(table[key], len(table[key]), f"{key} of {episode}") for key in keys]
    fields = [field for key, part in zip(keys, parts, strict=True) for field in _fields(dataset, key, part.shape[1])]
    return np.concatenate(parts, axis=1), tuple(fields)


def _fields(dataset: LeRobotDataset, key: str, size: int) -> list[ActionField]:
    names = dataset.features[key].get("names")
    if isinstance(names, dict) and len(names) == 1:  # {"motors": [...]}
        names = next(iter(names.values()))
    if isinstance(names, list) and len(names) == size and all(isinstance(name, str) for name in names):
        return [ActionField(name=f"{key}/{name}", size=1) for name in names]
    return [ActionField(name=key, size=size)]


def _instructions(dataset: LeRobotDataset, entry: EpisodeEntry, table: dict[str, list[Any]]) -> list[str]:
    task_numbers = [value[0] if isinstance(value, list) else value for value in table.get("task_index", [])]
    texts = [dataset.tasks.get(number, "") for number in dict.fromkeys(task_numbers)]
    return [text for text in texts if text] or list(entry.tasks)


def _array(values: Sequence[Any], name: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UserError(f"{name} has rows of different lengths; expected numbers of one shape") from error
    if array.dtype.kind not in "iufb":
        raise UserError(f"{name} has type {array.dtype}; expected numbers in every row")
    return array.astype(np.float32) if array.dtype.kind == "f" else array
