"""Something-Something V2: folders of numbered JPEG files with the official lists, or the WebM files with their labels.

Source: thuml/iVideoGPT sthsth_dataloader.py and thuml/ContextWM process_somethingv2.py: the same lists, frame names,
splits and choice of labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ivideogpt.core.errors import UserError
from ivideogpt.core.reading import path_inside
from ivideogpt.data.convert.frame_files import image_frames, whole_video
from ivideogpt.data.convert.source_episode import Omission, SourceEpisode, omission
from ivideogpt.data.convert.source_files import (
    existing_folder,
    in_groups,
    name_list,
    read_content,
    read_text,
    reading_file,
    relative_name,
)
from ivideogpt.data.convert.tables import read_json
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, ShardTasks

FACTS = StoreFacts(name="sthsth")  # the catalogue has the rest
EPISODES_A_SHARD = 512
#: Frames a second of the recordings, and of the frames that the official script takes from them.
FPS = 12.0
SPLITS = {"train": "train", "val": "validation"}


def _spans(text: str) -> frozenset[int]:
    pairs = (part.partition("-") for part in text.split())
    return frozenset(number for first, _, last in pairs for number in range(int(first), int(last or first) + 1))


#: Numbers of the 95 of 174 labels that the official training uses: a hand moves a thing in front of a still camera.
SELECTED_LABELS = _spans("1 5-6 13-21 27-31 33-40 42-43 45-58 85-120 122-123 139-141 143-148 156-160 164 173")


@dataclass(frozen=True, kw_only=True)
class Video:
    """One video.

    Attributes:
        name: its number, which is the name of its file or folder.
        frames: number of its JPEG files; 0: it is a WebM file.
        label: number of its class, or None without ``labels.json``.
        text: description of the action, or "".
    """

    name: str
    frames: int = 0
    label: int | None = None
    text: str = ""


def tasks(source: Path, *, labels: str = "selected") -> ShardTasks:
    """Return one task a shard, train before val, videos in the order of the lists.

    Args:
        source: a folder that holds, itself or one folder further in, the lists ``train_video_folder.txt`` and
            ``val_video_folder.txt`` with the folders of JPEG files that they name; or the WebM files with
            ``train.json``, ``validation.json`` and ``labels.json``.
        labels: "selected" for the labels that the official training uses, or "all".

    Raises:
        UserError: labels is something else, or a list or the videos are missing.
    """
    if labels not in ("selected", "all"):
        raise UserError(f"labels is {labels!r}; expected selected or all")
    folder = existing_folder(source, "Something-Something V2")
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    texts = _annotations(places)
    shards, omissions = [], list[Omission]()
    for split, official in SPLITS.items():
        listing = _first_file(places, [f"{split}_video_folder.txt"])
        videos, empty = _listed_videos(listing, texts.get(split, [])) if listing else (texts.get(split, []), [])
        omissions += omission("videos", "the list gives them no frames", empty)
        if labels == "selected":
            _check_labelled(videos, folder, official)
            others = [video.name for video in videos if video.label not in SELECTED_LABELS]
            omissions += omission("videos", "the official training does not use their labels", others)
            videos = [video for video in videos if video.label in SELECTED_LABELS]
        if not videos:
            continue
        home = _home(places, videos[0])
        for index, group in enumerate(in_groups(videos, EPISODES_A_SHARD)):
            read = partial(read_videos, folder=folder, home=home, videos=tuple(group), split=split)
            shards.append(ShardTask(name=f"{split}-{index:05d}", read=read))
    if not shards:
        raise UserError(
            f"{folder} holds no list of videos; expected train_video_folder.txt (frames) or train.json (WebM files) "
            f"in it or one folder further in, found {name_list(sorted(path.name for path in folder.iterdir()))}"
        )
    return ShardTasks(shards, omissions)


def read_videos(*, folder: Path, home: Path, videos: Sequence[Video], split: str) -> Iterator[SourceEpisode]:
    """Yield the episodes ``videos``, whose files lie in ``home``.

    Raises:
        UserError: a file is missing or damaged.
    """
    for video in videos:
        if video.frames:
            path = home / video.name
            frames, fps = image_frames(_numbered(path, video.frames), str(path)), FPS
        else:
            path = home / f"{video.name}.webm"
            frames, fps = whole_video(path)
        yield SourceEpisode(
            key=video.name,
            split=split,
            cameras={"image": frames},
            text=video.text,
            fps=fps or FPS,
            meta={"source": relative_name(folder, path), "label": video.label},
        )


def _numbered(path: Path, count: int) -> Iterator[tuple[str, bytes]]:
    for number in range(1, count + 1):
        file = path / f"{number:06d}.jpg"
        if not file.is_file():
            raise UserError(f"{file} is missing, but the list gives {count} frames; extract the video again")
        yield str(file), read_content(file, "image")


def _listed_videos(listing: Path, texts: Iterable[Video]) -> tuple[list[Video], list[str]]:
    """Return the videos of the lines "name frames label" of an official list, and the names of those without frames."""
    text_by_name = {video.name: video.text for video in texts}
    videos, empty = [], []
    for number, line in enumerate(read_text(listing, "list of videos").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 3 or not words[1].isdecimal() or not words[2].isdecimal():
            raise UserError(f"{listing} line {number} is {line!r}; expected 'name frames label', such as '78687 45 18'")
        path_inside(listing.parent, words[0])
        if not int(words[1]):
            empty.append(words[0])
        else:
            text = text_by_name.get(words[0], "")
            videos.append(Video(name=words[0], frames=int(words[1]), label=int(words[2]), text=text))
    return videos, empty


def _annotations(places: Sequence[Path]) -> dict[str, list[Video]]:
    """Return the videos that the JSON files of the download name, by split."""
    names = ["labels.json", "something-something-v2-labels.json"]
    numbers = _first_file(places, names)
    label_numbers = read_json(numbers) if numbers else {}
    videos = {}
    for split, official in SPLITS.items():
        path = _first_file(places, [f"{official}.json", f"something-something-v2-{official}.json"])
        if path is None:
            continue
        videos[split] = []
        for entry in read_json(path, list):
            if not isinstance(entry, dict) or not {"id", "label", "template"} <= entry.keys():
                keys = name_list(entry) if isinstance(entry, dict) else repr(entry)
                raise UserError(f"{path} has an entry with {keys}; expected id, label and template")
            with reading_file(path, "list of videos"):
                number = label_numbers.get(entry["template"].replace("[", "").replace("]", ""))
                label = None if number is None else int(number)
                path_inside(path.parent, str(entry["id"]))
                videos[split].append(Video(name=str(entry["id"]), label=label, text=str(entry["label"])))
    return videos


def _check_labelled(videos: Iterable[Video], folder: Path, official: str) -> None:
    unlabelled = [video.name for video in videos if video.label is None]
    if unlabelled:
        raise UserError(
            f"{folder} does not give the label of {len(unlabelled)} {official} videos, such as {unlabelled[0]}; put "
            "labels.json beside the other JSON files, or give labels=all"
        )


def _home(places: Sequence[Path], video: Video) -> Path:
    """Return the folder that holds the first of the videos."""
    name = video.name if video.frames else f"{video.name}.webm"
    for place in places:
        if (place / name).exists():
            return place
    raise UserError(f"{places[0]} does not hold {name}, the first video of the list, nor do the folders in it")


def _first_file(places: Sequence[Path], names: Sequence[str]) -> Path | None:
    return next((place / name for place in places for name in names if (place / name).is_file()), None)
