"""What a LeRobot dataset says of itself, versions 2.0, 2.1 and 3.0, as one kind of description.

Versions 2 keep a parquet file and a video an episode, and lists in JSON lines; version 3 keeps many episodes in a file,
and lists in parquet files that say where each episode begins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.source_files import name_list, natural_key
from ivideogpt.data.convert.tables import parquet_columns, read_json, read_json_lines, read_parquet, value_of
from ivideogpt.data.convert.time_steps import plain_json

VERSIONS = ("v2.0", "v2.1", "v3.0")
INFO = "meta/info.json"
_CAMERAS = ("video", "image")
_PATTERNS = ["README.md", "meta/**", "data/**", "images/**"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one camera's frames of an episode lie.

    Attributes:
        path: of the video, relative to the dataset.
        start: second at which the episode begins in it.
    """

    path: str
    start: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EpisodeEntry:
    """One episode.

    Attributes:
        index: its number.
        length: frames.
        data: parquet file, relative to the dataset.
        videos: by camera.
        tasks: instructions.
        split: "train" where no other split names it.
    """

    index: int
    length: int
    data: str
    videos: Mapping[str, Place] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    split: str = "train"


@dataclass(frozen=True, kw_only=True)
class Description:
    """A dataset.

    Attributes:
        root: its folder.
        version: of the format.
        fps: frames a second.
        features: the columns: name -> dtype, shape, names.
        cameras: names of the features that are RGB pictures.
        left_out: names of the features that are pictures of another kind (depth).
        ranges: lowest and highest values of a feature, where the dataset says them.
        robot: its name, or "".
        tasks: instruction by number.
    """

    root: Path
    version: str
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    cameras: tuple[str, ...]
    left_out: tuple[str, ...]
    ranges: Mapping[str, Mapping[str, Any]]
    robot: str
    tasks: Mapping[int, str]


def local_folder(source: str | Path, cameras: Sequence[str] | None, revision: str | None) -> Path:
    """The dataset's folder; a Hub id is downloaded first, without the videos of other ``cameras``.

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


def describe(root: Path) -> tuple[Description, list[EpisodeEntry]]:
    """What the folder ``root`` holds: the dataset, and its episodes in order.

    Raises:
        UserError: a file is missing or damaged, or of an unknown version.
    """
    path = root / INFO
    info = read_json(path)
    version = str(value_of(info, "codebase_version", path))
    if version not in VERSIONS:
        raise UserError(f"{path} says codebase_version {version!r}; expected {', '.join(VERSIONS)}")
    fps, features = value_of(info, "fps", path), value_of(info, "features", path)
    if not isinstance(fps, int | float) or not 0 < fps < 10_000:
        raise UserError(f"{path} says fps {fps!r}; expected a number above 0")
    if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
        raise UserError(f"{path} says features {features!r}; expected an entry for each column")
    pictures = [name for name, feature in features.items() if feature.get("dtype") in _CAMERAS]
    depth = [name for name in pictures if _is_depth(features[name])]
    newest = version.startswith("v3")
    described = Description(
        root=root,
        version=version,
        fps=float(fps),
        features=features,
        cameras=tuple(name for name in pictures if name not in depth),
        left_out=tuple(depth),
        ranges=_ranges(root),
        robot=str(info.get("robot_type") or ""),
        tasks=_tasks_v3(root) if newest else _tasks_v2(root),
    )
    videos = [name for name in described.cameras if features[name]["dtype"] == "video"]
    splits = _splits(info, path)
    entries = (_episodes_v3 if newest else _episodes_v2)(root, info, videos, splits)
    if not entries:
        raise UserError(f"{root} lists no episodes; check that the whole dataset is there")
    return described, sorted(entries, key=lambda entry: entry.index)


def licence(root: Path) -> str:
    """What the head of the dataset's README says, or ""."""
    path = root / "README.md"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    head = text[4:].split("\n---")[0] if text.startswith("---\n") else ""
    found = re.search(r"^license: *(\S+)", head, flags=re.MULTILINE)
    return found[1] if found else ""


def _episodes_v2(
    root: Path, info: dict[str, Any], videos: Sequence[str], splits: Mapping[range, str]
) -> list[EpisodeEntry]:
    path, lists = root / INFO, root / "meta" / "episodes.jsonl"
    size = int(info.get("chunks_size") or 1000)
    entries = []
    for row in read_json_lines(lists):
        index, length = int(value_of(row, "episode_index", lists)), int(value_of(row, "length", lists))
        names = {"episode_chunk": index // size, "episode_index": index}
        entries.append(
            EpisodeEntry(
                index=index,
                length=length,
                data=_filled(info, "data_path", path, names),
                videos={
                    key: Place(path=_filled(info, "video_path", path, {**names, "video_key": key})) for key in videos
                },
                tasks=tuple(row.get("tasks") or ()),
                split=_split(index, splits),
            )
        )
    return entries


def _episodes_v3(
    root: Path, info: dict[str, Any], videos: Sequence[str], splits: Mapping[range, str]
) -> list[EpisodeEntry]:
    path, entries = root / INFO, []
    for file in sorted((root / "meta" / "episodes").rglob("*.parquet"), key=lambda file: natural_key(file.as_posix())):
        columns = [name for name in parquet_columns(file) if not name.startswith("stats/")]
        for row in read_parquet(file, columns=columns).to_pylist():
            places = {}
            for key in videos:
                names = {name: value_of(row, f"videos/{key}/{name}", file) for name in ("chunk_index", "file_index")}
                start = float(value_of(row, f"videos/{key}/from_timestamp", file))
                places[key] = Place(path=_filled(info, "video_path", path, {**names, "video_key": key}), start=start)
            names = {name: value_of(row, f"data/{name}", file) for name in ("chunk_index", "file_index")}
            index = int(value_of(row, "episode_index", file))
            entries.append(
                EpisodeEntry(
                    index=index,
                    length=int(value_of(row, "length", file)),
                    data=_filled(info, "data_path", path, names),
                    videos=places,
                    tasks=tuple(row.get("tasks") or ()),
                    split=_split(index, splits),
                )
            )
    return entries


def _tasks_v2(root: Path) -> dict[int, str]:
    path = root / "meta" / "tasks.jsonl"
    rows = read_json_lines(path) if path.is_file() else []
    return {int(value_of(row, "task_index", path)): str(value_of(row, "task", path)) for row in rows}


def _tasks_v3(root: Path) -> dict[int, str]:
    path = root / "meta" / "tasks.parquet"
    if not path.is_file():
        return {}
    rows = read_parquet(path).to_pylist()
    # The instruction is the index of the data frame that was saved; pandas names it as it likes.
    return {
        int(value_of(row, "task_index", path)): next((text for text in row.values() if isinstance(text, str)), "")
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
    splits = {}
    for name, span in (info.get("splits") or {}).items():
        found = re.fullmatch(r"(\d+):(\d+)", str(span))
        if not found:
            raise UserError(f"{path} says split {name!r} is {span!r}; expected numbers of episodes, such as '0:50'")
        splits[range(int(found[1]), int(found[2]))] = {"validation": "val", "valid": "val"}.get(name, name)
    return splits


def _split(index: int, splits: Mapping[range, str]) -> str:
    return next((name for span, name in splits.items() if index in span), "train")


def _is_depth(feature: Mapping[str, Any]) -> bool:
    about = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(about.get("is_depth_map") or about.get("video.is_depth_map"))


def _filled(info: Mapping[str, Any], key: str, path: Path, names: Mapping[str, Any]) -> str:
    template = value_of(info, key, path)
    try:
        filled = str(template).format(**names)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{path} says {key} {template!r}; it may use {name_list(names)}") from error
    if ".." in PurePosixPath(filled).parts or PurePosixPath(filled).is_absolute():
        raise UserError(f"{path} says {key} {template!r}, which leaves the folder of the dataset")
    return filled
