"""A folder of TensorFlow Datasets: its fields, its splits and their shards, and the official number of each record.

The official converter numbers episodes as ``tfds`` gives them: it reads 16 files at a time, 16 records of each in turn.
That order follows from the lengths of the shards, which ``dataset_info.json`` holds. So any shard can be read alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivideogpt.core.errors import UserError
from ivideogpt.core.reading import path_inside
from ivideogpt.data.convert.rlds.fields import Field, parse_features
from ivideogpt.data.convert.source_files import filled_template, reading_file
from ivideogpt.data.convert.tables import read_json

# What tfds.ReadConfig has by default.
_FILES_AT_A_TIME, _RECORDS_AT_A_TIME = 16, 16
_DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_VALIDATION_EVERY = 100
_MOST_RECORDS = 10**9


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One TFRecord file.

    Attributes:
        path: the file.
        split: its split in TensorFlow Datasets.
        number: its place among the shards of the split.
        length: number of its records.
    """

    path: Path
    split: str
    number: int
    length: int


@dataclass(frozen=True, kw_only=True)
class RldsFolder:
    """The content of ``features.json`` and ``dataset_info.json``.

    Attributes:
        path: the folder of one version.
        name: of the dataset.
        version: of the dataset.
        fields: by path, for example "steps/observation/image".
        splits: the shards of each split, in order.
        in_order: the dataset was written without shuffling, and ``tfds`` reads one shard after the other.
    """

    path: Path
    name: str
    version: str
    fields: Mapping[str, Field]
    splits: Mapping[str, tuple[Shard, ...]]
    in_order: bool = False

    @property
    def lengths(self) -> dict[str, int]:
        """Return the number of episodes in each split."""
        return {split: sum(shard.length for shard in shards) for split, shards in self.splits.items()}


def find_folder(source: Path, name: str, version: str) -> Path:
    """Return the folder with the files of dataset ``name``.

    Args:
        source: the folder above NAME/VERSION, or NAME, or NAME/VERSION.
        name: of the dataset.
        version: the expected one; another one is taken where ``source`` is its own folder.

    Raises:
        UserError: there is none; the message names the places.
    """
    places = (source / name / version, source / version, source)
    for place in places:
        if (place / "features.json").is_file():
            return place
    others = [file.parent for above in (source / name, source) for file in sorted(above.glob("*/features.json"))]
    advice = f"name the folder {others[0]} itself to read that version" if others else "download the dataset first"
    raise UserError(f"there is no features.json in {places[0]}, {places[1]} or {source}; {advice}")


def find_any_folder(source: Path) -> Path:
    """Return the folder of the only dataset of TensorFlow Datasets in ``source`` or up to two folders below.

    Raises:
        UserError: there is none, or more than one.
    """
    if (source / "features.json").is_file():
        return source
    folders = [file.parent for pattern in ("*", "*/*") for file in sorted(source.glob(f"{pattern}/features.json"))]
    if len(folders) != 1:
        names = ", ".join(str(folder) for folder in folders[:4]) or "none"
        raise UserError(
            f"{source} holds {len(folders)} datasets with a features.json ({names}); give the folder of one version"
        )
    return folders[0]


def open_rlds_folder(path: Path) -> RldsFolder:
    """Read ``features.json`` and ``dataset_info.json`` of the folder of one version.

    Raises:
        UserError: a file cannot be read or is not as expected.
    """
    features, file = path / "features.json", path / "dataset_info.json"
    content, info = read_json(features), read_json(file)
    with reading_file(features, "description of a dataset"):
        fields = parse_features(content, str(features))
    with reading_file(file, "description of a dataset"):
        kind = info.get("fileFormat", "tfrecord")
        if kind != "tfrecord":
            raise UserError(f"{file} says fileFormat {kind!r}; only 'tfrecord' is read")
        name = str(info.get("name", path.parent.name))
        if not isinstance(info.get("splits"), list):
            raise UserError(f"{file} has no list 'splits'; it has {', '.join(map(repr, sorted(info)))}")
        splits = {str(split.get("name")): _shards(path, name, split, file) for split in info["splits"]}
        if len(splits) < len(info["splits"]):
            raise UserError(f"{file} has two splits of one name; expected different names")
    version = str(info.get("version", path.name))
    in_order = bool(info.get("disableShuffling", False))
    return RldsFolder(path=path, name=name, version=version, fields=fields, splits=splits, in_order=in_order)


def _shards(folder: Path, dataset: str, split: Mapping[str, Any], file: Path) -> tuple[Shard, ...]:
    name = str(split.get("name"))
    try:
        lengths = [int(length) for length in split.get("shardLengths", ())]
    except (TypeError, ValueError) as error:
        raise UserError(f"{file} has a length of a shard of split {name!r} that is no number ({error})") from error
    if any(not 0 <= length < _MOST_RECORDS for length in lengths) or sum(lengths) >= _MOST_RECORDS:
        raise UserError(f"{file} says that the shards of split {name!r} have {lengths[:4]} records; expected counts")
    template = split.get("filepathTemplate") or _DEFAULT_TEMPLATE
    digits = max(5, len(str(len(lengths))))
    shards = []
    for number, length in enumerate(lengths):
        index, count = f"{number:0{digits}d}", f"{len(lengths):0{digits}d}"
        words = {"SHARD_INDEX": index, "NUM_SHARDS": count, "SHARD_X_OF_Y": f"{index}-of-{count}"}
        words |= {"DATASET": dataset, "SPLIT": name, "FILEFORMAT": "tfrecord"}
        relative = filled_template(template, words, f"the filepathTemplate in {file}")
        shards.append(Shard(path=path_inside(folder, relative), split=name, number=number, length=length))
    return tuple(shards)


def official_numbers(lengths: Sequence[int], *, in_order: bool = False) -> list[list[int]]:
    """Return for each shard of a split the number of each of its records in the order of ``tfds``.

    Args:
        lengths: records of each shard.
        in_order: see ``RldsFolder``.

    Source: same order as ``tf.data``'s interleave of 16 files, 16 records each: a file that ends gives its place to the
    next file when its turn comes again. Files without records are left out first.
    """
    numbers: list[list[int]] = [[] for _ in lengths]
    waiting = [shard for shard, length in enumerate(lengths) if length][::-1]
    places: list[int | None] = [None] * (1 if in_order else _FILES_AT_A_TIME)
    turn = given = 0
    while waiting or any(place is not None for place in places):
        shard = places[turn]
        if shard is None and waiting:
            places[turn] = waiting.pop()
            continue
        if shard is not None:
            count = min(_RECORDS_AT_A_TIME, lengths[shard] - len(numbers[shard]))
            numbers[shard].extend(range(given, given + count))
            given += count
            if count < _RECORDS_AT_A_TIME:
                places[turn] = None
        turn = (turn + 1) % len(places)
    return numbers


def official_key(split: str, number: int) -> str:
    """Return the name that the official converter gives an episode."""
    return f"{split}_eps_{number:08d}"


def official_split(
    split: str, number: int, lengths: Mapping[str, int], kept_out: Collection[str] = ()
) -> tuple[str, int]:
    """Return the split of an episode in the official loader, and its place among all names of the dataset.

    All names of the dataset are sorted; every hundredth, from the first on, is for validation.

    Args:
        split: in TensorFlow Datasets.
        number: its official number there.
        lengths: number of episodes in each split of TensorFlow Datasets.
        kept_out: official names that are neither for training nor for validation.

    Returns:
        "train", "val", or "test" for one of ``kept_out``; and the place.
    """
    place = number + sum(count for other, count in lengths.items() if f"{other}_eps_" < f"{split}_eps_")
    if official_key(split, number) in kept_out:
        return "test", place
    return ("train" if place % _VALIDATION_EVERY else "val"), place
