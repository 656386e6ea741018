"""Metadata of a LeRobot dataset, versions 2.0, 2.1 and 3.0, in one form.

Versions 2 keep a parquet file and a video an episode, and lists in JSON lines. Version 3 keeps many episodes in a file,
and lists in parquet files that hold the window of each episode in its video.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ivideogpt.core.errors import UserError
from ivideogpt.core.reading import path_inside
from ivideogpt.data.convert.source_files import filled_template, natural_key, reading_file
from ivideogpt.data.convert.tables import (
    parquet_columns,
    read_json,
    read_json_lines,
    read_parquet,
    value_of,
    whole_number,
)
from ivideogpt.data.convert.time_steps import plain_json

VERSIONS = ("v2.0", "v2.1", "v3.0")
INFO = "meta/info.json"
_CAMERAS = ("video", "image")
_PATTERNS = ["README.md", "meta/**", "data/**", "images/**"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class VideoWindow:
    """The part of a video that holds one camera's frames of an episode.

    Attributes:
        path: of the video, relative to the dataset.
        start: second at which the episode begins.
        end: second at which the next episode begins; None: the video ends with the episode.
    """

    path: str
    start: float = 0.0
    end: float | None = None


@dataclass(frozen=True, kw_only=True)
class EpisodeEntry:
    """One episode in the list of a dataset.

    Attributes:
        index: its number.
        length: frames.
        data: parquet file, relative to the dataset.
        videos: windows by camera.
        tasks: instructions.
        split: "train" where no other split names it.
    """

    index: int
    length: int
    data: str
    videos: Mapping[str, VideoWindow] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    split: str = "train"


@dataclass(frozen=True, kw_only=True)
class LeRobotDataset:
    """A dataset.

    Attributes:
        root: its folder.
        version: of the format.
        fps: frames a second.
        features: the columns: name -> dtype, shape, names.
        cameras: names of the features that are RGB pictures.
        depth: names of the features that are depth pictures, which are not read.
        ranges: lowest and highest values of a feature, where the dataset has them.
        robot: its name, or "".
        tasks: instruction by number.
    """

    root: Path
    version: str
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    cameras: tuple[str, ...]
    depth: tuple[str, ...]
    ranges: Mapping[str, Mapping[str, Any]]
    robot: str
    tasks: Mapping[int, str]

    @property
    def keeps_many_episodes_a_file(self) -> bool:
        """Return True for versions 3."""
        return self.version.startswith("v3")


def local_folder(source: str | Path, cameras: Sequence[str] | None, revision: str | None) -> Path:
    """Return the dataset's folder; a Hub id is downloaded first, without the videos of other ``cameras``.

    Raises:
        UserError: no such folder, or the download failed.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    name = folder.as_posix()
    if not _HUB_ID.fullmatch(name):
        raise UserError(f"there is no folder {folder}; give one with a LeRobot dataset, or a Hub id (owner/name)")
    from huggingface_hub import snapshot_download  # only a Hub id needs it, and it is slow to import

    videos = ["videos/**"] if cameras is None else [f"videos/*{camera}/**" for camera in cameras]
    try:
        return Path(
            snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=[*_PATTERNS, *videos])
        )
    except Exception as error:  # a network, proxy, authorisation or cache error of whichever client the Hub uses
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"dataset {name!r} is no folder here and did not come from the Hugging Face Hub"
            f"{f' at revision {revision!r}' if revision else ''} ({reason}); check the name and the network"
        ) from error


def describe(root: Path) -> tuple[LeRobotDataset, list[EpisodeEntry]]:
    """Return the dataset in the folder ``root``, and its episodes in order.

    Raises:
        UserError: a file is missing or damaged, or of an unknown version.
    """
    path = root / INFO
    info = read_json(path)
    with reading_file(path, "LeRobot description"):
        version = str(value_of(info, "codebase_version", path))
        if version not in VERSIONS:
            raise UserError(f"{path} says codebase_version {version!r}; expected {', '.join(VERSIONS)}")
        fps, features = value_of(info, "fps", path), value_of(info, "features", path)
        if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 10_000:
            raise UserError(f"{path} says fps {fps!r}; expected a number above 0")
        if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
            raise UserError(f"{path} says features {features!r}; expected an entry for each column")
        pictures = [name for name, feature in features.items() if feature.get("dtype") in _CAMERAS]
        depth = [name for name in pictures if _is_depth(features[name])]
        splits = _splits(info, path)
    dataset = LeRobotDataset(
        root=root,
        version=version,
        fps=float(fps),
        features=features,
        cameras=tuple(name for name in pictures if name not in depth),
        depth=tuple(depth),
        ranges=_ranges(root),
        robot=str(info.get("robot_type") or ""),
        tasks=_tasks_v3(root) if version.startswith("v3") else _tasks_v2(root),
    )
    videos = [name for name in dataset.cameras if features[name]["dtype"] == "video"]
    list_episodes = _episodes_v3 if dataset.keeps_many_episodes_a_file else _episodes_v2
    entries = sorted(list_episodes(root, info, videos, splits), key=lambda entry: entry.index)
    _check_list(root, info, entries)
    return dataset, entries


def licence(root: Path) -> str:
    """Return the licence that the head of the dataset's README names, or ""."""
    path = root / "README.md"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    head = text[4:].split("\n---")[0] if text.startswith("---\n") else ""
    line = re.search(r"^license: *(\S+)", head, flags=re.MULTILINE)
    return line[1] if line else ""


def check_windows(entries: Iterable[EpisodeEntry], cameras: Sequence[str], fps: float) -> None:
    """Check that no two episodes share frames of a video.

    Raises:
        UserError: the windows of two episodes overlap by more than half a frame.
    """
    windows = [(entry.videos[camera], entry.index) for entry in entries for camera in cameras if camera in entry.videos]
    windows.sort(key=lambda window: (window[0].path, window[0].start))
    for (window, index), (follower, follower_index) in zip(windows, windows[1:], strict=False):
        if window.path == follower.path and (window.end or 0.0) - follower.start > 0.5 / fps:
            raise UserError(
                f"episodes {index} and {follower_index} share frames of {window.path}: the first ends at "
                f"{window.end:.3f} s and the second begins at {follower.start:.3f} s; correct from_timestamp and "
                "to_timestamp in the list of episodes"
            )


def _check_list(root: Path, info: Mapping[str, Any], entries: Sequence[EpisodeEntry]) -> None:
    if not entries:
        raise UserError(f"{root} lists no episodes; check that the whole dataset is there")
    index, count = Counter(entry.index for entry in entries).most_common(1)[0]
    if count > 1:
        raise UserError(f"{root} lists episode {index} {count} times; expected each episode once")
    total = info.get("total_episodes")
    if isinstance(total, int) and total != len(entries):
        raise UserError(f"{root / INFO} says total_episodes {total}, but {len(entries)} are listed; download it again")


def _episodes_v2(
    root: Path, info: dict[str, Any], videos: Sequence[str], splits: Mapping[range, str]
) -> list[EpisodeEntry]:
    path, lists = root / INFO, root / "meta" / "episodes.jsonl"
    size = whole_number(info, "chunks_size", path) if info.get("chunks_size") else 1000
    entries = []
    for row in read_json_lines(lists):
        with reading_file(lists, "list of episodes"):
            index = whole_number(row, "episode_index", lists)
            names = {"episode_chunk": index // size, "episode_index": index}
            entries.append(
                EpisodeEntry(
                    index=index,
                    length=whole_number(row, "length", lists),
                    data=_path(root, info, "data_path", names),
                    videos={
                        key: VideoWindow(path=_path(root, info, "video_path", {**names, "video_key": key}))
                        for key in videos
                    },
                    tasks=_task_texts(row, lists),
                    split=_split(index, splits),
                )
            )
    return entries


def _episodes_v3(
    root: Path, info: dict[str, Any], videos: Sequence[str], splits: Mapping[range, str]
) -> list[EpisodeEntry]:
    entries = []
    for file in sorted((root / "meta" / "episodes").rglob("*.parquet"), key=lambda file: natural_key(file.as_posix())):
        columns = [name for name in parquet_columns(file) if not name.startswith("stats/")]
        rows = read_parquet(file, columns=columns)
        with reading_file(file, "list of episodes"):
            entries += [_entry_v3(root, info, videos, splits, row, file) for row in rows.to_pylist()]
    return entries


def _entry_v3(
    root: Path,
    info: dict[str, Any],
    videos: Sequence[str],
    splits: Mapping[range, str],
    row: dict[str, Any],
    file: Path,
) -> EpisodeEntry:
    index = whole_number(row, "episode_index", file)
    windows = {}
    for key in videos:
        names = {name: whole_number(row, f"videos/{key}/{name}", file) for name in ("chunk_index", "file_index")}
        start, end = (_seconds(row, f"videos/{key}/{name}_timestamp", file) for name in ("from", "to"))
        if end <= start:
            raise UserError(
                f"{file} says that episode {index} is in the video of {key!r} from {start:g} s to {end:g} s; "
                "expected an end after the start"
            )
        path = _path(root, info, "video_path", {**names, "video_key": key})
        windows[key] = VideoWindow(path=path, start=start, end=end)
    names = {name: whole_number(row, f"data/{name}", file) for name in ("chunk_index", "file_index")}
    return EpisodeEntry(
        index=index,
        length=whole_number(row, "length", file),
        data=_path(root, info, "data_path", names),
        videos=windows,
        tasks=_task_texts(row, file),
        split=_split(index, splits),
    )


def _seconds(row: Mapping[str, Any], key: str, file: Path) -> float:
    value = value_of(row, key, file)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UserError(f"{file} says {key} is {value!r}; expected seconds")
    return float(value)


def _task_texts(row: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    tasks = row.get("tasks") or ()
    if isinstance(tasks, str):
        return (tasks,)
    if not isinstance(tasks, list | tuple) or not all(isinstance(task, str) for task in tasks):
        raise UserError(f"{file} says tasks {tasks!r}; expected a list of texts")
    return tuple(tasks)


def _tasks_v2(root: Path) -> dict[int, str]:
    path = root / "meta" / "tasks.jsonl"
    rows = read_json_lines(path) if path.is_file() else []
    return {whole_number(row, "task_index", path): str(value_of(row, "task", path)) for row in rows}


def _tasks_v3(root: Path) -> dict[int, str]:
    path = root / "meta" / "tasks.parquet"
    if not path.is_file():
        return {}
    rows = read_parquet(path).to_pylist()
    # The instruction is the index of a pandas table, whose name varies.
    return {
        whole_number(row, "task_index", path): next((text for text in row.values() if isinstance(text, str)), "")
        for row in rows
    }


def _ranges(root: Path) -> dict[str, dict[str, Any]]:
    path = root / "meta" / "stats.json"
    if not path.is_file():
        return {}
    return {
        name: {key: plain_json(values[key]) for key in ("min", "max") if key in values}
        for name, values in read_json(path).items()
        if isinstance(values, dict)
    }


def _splits(info: dict[str, Any], path: Path) -> dict[range, str]:
    spans = info.get("splits") or {}
    if not isinstance(spans, dict):
        raise UserError(
            f"{path} says splits {spans!r}; expected numbers of episodes by name, such as {{'train': '0:50'}}"
        )
    splits = {}
    for name, span in spans.items():
        numbers = re.fullmatch(r"(\d+):(\d+)", str(span))
        if not numbers:
            raise UserError(f"{path} says split {name!r} is {span!r}; expected numbers of episodes, such as '0:50'")
        splits[range(int(numbers[1]), int(numbers[2]))] = {"validation": "val", "valid": "val"}.get(name, name)
    return splits


def _split(index: int, splits: Mapping[range, str]) -> str:
    return next((name for span, name in splits.items() if index in span), "train")


def _is_depth(feature: Mapping[str, Any]) -> bool:
    details = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(details.get("is_depth_map") or details.get("video.is_depth_map"))


def _path(root: Path, info: Mapping[str, Any], key: str, names: Mapping[str, Any]) -> str:
    """Return the path that a template of the description gives, relative to the dataset."""
    path = root / INFO
    filled = filled_template(value_of(info, key, path), names, f"{key} in {path}")
    path_inside(root, filled)
    return filled
