"""Open X-Embodiment: datasets of episodes (RLDS) as TensorFlow Datasets writes them, read without TensorFlow.

Step t of RLDS holds observation t, the action taken there and its reward, so the rows of actions and rewards stay where
they are. ``is_terminal`` describes observation t, so it belongs to the transition from frame t - 1. The
action and the reward of the last step lead to no frame; they are kept in the episode's ``meta``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.core.reading import check_unpacked_size, reading
from ivideogpt.data.catalog import DATASETS, DatasetInfo, dataset_info
from ivideogpt.data.convert.jpeg import decode_jpeg, is_jpeg, jpeg_size
from ivideogpt.data.convert.rlds import dataset as rlds
from ivideogpt.data.convert.rlds.fields import Field, decode_images, decode_numbers, decode_text
from ivideogpt.data.convert.rlds.layout import Layout, camera_names, choose_layout
from ivideogpt.data.convert.rlds.tf_example import Values
from ivideogpt.data.convert.rlds.tfrecord import Record, read_records
from ivideogpt.data.convert.source_episode import ActionField, Frames, JpegFrames, Omission, SourceEpisode, omission
from ivideogpt.data.image_files import read_image

if TYPE_CHECKING:
    from ivideogpt.data.store.metadata import StoreFacts
    from ivideogpt.data.store.writer import ShardTasks

#: Small files are read together, up to about this many bytes.
TASK_BYTES = 256_000_000
_TESTED_ELSEWHERE = "oxe_robonet_testset_filenames.txt"


@dataclass(frozen=True, kw_only=True)
class RldsDataset:
    """A dataset, as a process needs it to read any of its shards.

    Attributes:
        info: the row of the catalogue, or one made for a dataset that the catalogue lacks.
        version: of the dataset in TensorFlow Datasets.
        layout: the fields that are read.
        lengths: number of episodes in each split of TensorFlow Datasets.
        kept_out: official names that are neither for training nor for validation.
        keeps_splits: keep the splits of TensorFlow Datasets, instead of those of the official loader.
        val_every: with ``keeps_splits``, every so many episodes one goes to the split "val"; None: none.
    """

    info: DatasetInfo
    version: str
    layout: Layout
    lengths: Mapping[str, int]
    kept_out: frozenset[str] = dataclass_field(default=frozenset(), repr=False)
    keeps_splits: bool = False
    val_every: int | None = None


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One file, and the official number of each of its records."""

    shard: rlds.Shard
    numbers: tuple[int, ...] = dataclass_field(repr=False)


def tasks(source: Path, *, name: str, cameras: tuple[str, ...] | None = None, partial: bool = False) -> ShardTasks:
    """Return one task a shard, or a group of small shards.

    Args:
        source: the folder above NAME/VERSION, or NAME, or NAME/VERSION.
        name: of the dataset in the catalogue, for example "bridge" or "uiuc_d3field1"; or of another dataset in
            ``source``, which then keeps its own splits.
        cameras: the cameras to store, the model's first; default: those of the catalogue, or all of another dataset.
        partial: leave out files that are not there; numbers and splits stay the official ones. Each file is a task, so
            that files which come later can be added to the store.

    Raises:
        UserError: no such dataset or folder, a file is missing, or a camera is.
    """
    dataset, folder = open_dataset(name, source, cameras=cameras)
    return shard_tasks(dataset, folder, partial=partial)


def facts(source: Path, *, name: str, cameras: tuple[str, ...] | None = None, partial: bool = False) -> StoreFacts:
    """Return the store's facts of the dataset; arguments and errors as for ``tasks``."""
    return dataset_facts(open_dataset(name, source, cameras=cameras)[0], partial=partial)


def dataset_facts(dataset: RldsDataset, *, partial: bool = False) -> StoreFacts:
    """Return the store's facts of an opened dataset."""
    from ivideogpt.data.store.metadata import StoreFacts

    layout, info = dataset.layout, dataset.info
    notes = {
        "version": dataset.version,
        "partial": partial,
        "cameras": list(layout.cameras),
        "state_fields": [[field.path, field.size] for field in layout.state],
        "text_field": layout.text.path if layout.text else "",
        "fields_left_out": list(layout.left_out),
    }
    return StoreFacts(name=info.name, url=info.url, licence=info.licence, base_stride=info.base_stride, notes=notes)


def oxe_tasks(
    name: str,
    source: Path,
    *,
    cameras: tuple[str, ...] | None = None,
    partial: bool = False,
    task_bytes: int = TASK_BYTES,
) -> list[tuple[str, Callable[[], Iterator[SourceEpisode | Omission]]]]:
    """Return the name of each task and the function, without arguments, that reads its episodes in any process.

    Args:
        name: of the dataset; see ``tasks``.
        source: see ``tasks``.
        cameras: see ``tasks``.
        partial: see ``tasks``.
        task_bytes: files are read together up to about this size.

    Raises:
        UserError: see ``tasks``.
    """
    dataset, folder = open_dataset(name, source, cameras=cameras)
    return [(task.name, task.read) for task in shard_tasks(dataset, folder, partial=partial, task_bytes=task_bytes)]


def shard_tasks(
    dataset: RldsDataset, folder: rlds.RldsFolder, *, partial: bool = False, task_bytes: int = TASK_BYTES
) -> ShardTasks:
    """Return the tasks of an opened dataset; see ``tasks`` and ``oxe_tasks``."""
    from ivideogpt.data.store.writer import ShardTask, ShardTasks

    plans, missing = [], []
    for shards in folder.splits.values():
        numbers = rlds.official_numbers([shard.length for shard in shards], in_order=folder.in_order)
        for shard, own in zip(shards, numbers, strict=True):
            if own and not shard.path.is_file():
                missing.append(shard.path)
            elif own:
                plans.append(ShardPlan(shard=shard, numbers=tuple(own)))
    if missing and not (partial and plans):
        advice = "download them, or ask for a partial conversion (--partial)" if plans else "download the dataset again"
        raise UserError(
            f"{len(missing)} of {len(missing) + len(plans)} files are missing, such as {missing[0]}; {advice}"
        )
    omissions = [
        *omission("files", "they are not in the folder", (path.name for path in missing)),
        *omission(
            "fields",
            "they are pictures that are not chosen, or no pictures and numbers that are read",
            dataset.layout.left_out,
        ),
    ]
    shards = [
        ShardTask(_task_name(group), functools.partial(read_shards, plans=tuple(group), dataset=dataset))
        for group in _groups(plans, 0 if partial else task_bytes)
    ]
    return ShardTasks(shards, omissions)


def open_dataset(
    name: str, source: Path, *, cameras: tuple[str, ...] | None = None
) -> tuple[RldsDataset, rlds.RldsFolder]:
    """Find a dataset and choose its fields; arguments and errors as for ``tasks``."""
    if name not in DATASETS and (path := _folder_of(name, Path(source))) is not None:
        return open_own_dataset(path, cameras=cameras)
    info = dataset_info(name)
    if not info.source:
        raise UserError(
            f"{name!r} is not in Open X-Embodiment; convert it with its own kind (ivideogpt convert --help)"
        )
    folder = rlds.open_rlds_folder(rlds.find_folder(Path(source), info.source, info.version))
    if folder.name != info.source and folder.name in {row.source for row in DATASETS.values()}:
        raise UserError(f"{folder.path} holds {folder.name!r}; expected {info.source!r}")
    kept_out = tested_elsewhere() if info.source == "robo_net" else frozenset()
    layout = choose_layout(folder, info, cameras)
    dataset = RldsDataset(info=info, version=folder.version, layout=layout, lengths=folder.lengths, kept_out=kept_out)
    return dataset, folder


def open_own_dataset(
    path: Path, *, cameras: tuple[str, ...] | None = None, val_every: int | None = None
) -> tuple[RldsDataset, rlds.RldsFolder]:
    """Open a dataset that is not in the catalogue; it keeps its splits and, by default, all its cameras.

    Args:
        path: folder of one version.
        cameras: the cameras to store, the model's first; default: all, in alphabetical order, "image" first.
        val_every: see ``RldsDataset``.

    Raises:
        UserError: the folder is damaged, has no camera, or not the chosen ones.
    """
    folder = rlds.open_rlds_folder(path)
    available = sorted(camera_names(folder), key=lambda camera: (camera != "image", camera))
    if not available:
        raise UserError(f"{path / 'features.json'} has no camera; expected pictures of 3 channels in steps/observation")
    info = replace(
        DatasetInfo(name=folder.name), converter_camera_key=available[0], further_cameras=tuple(available[1:])
    )
    dataset = RldsDataset(
        info=info,
        version=folder.version,
        layout=choose_layout(folder, info, cameras),
        lengths=folder.lengths,
        keeps_splits=True,
        val_every=val_every,
    )
    return dataset, folder


def _folder_of(name: str, source: Path) -> Path | None:
    """Return the folder of one version of the dataset ``name``, or None."""
    for place in (source / name, source):
        if place.is_dir() and name in (place.name, place.parent.name, place.absolute().name):
            return rlds.find_any_folder(place)
    return None


def tested_elsewhere() -> frozenset[str]:
    """Return the official names of the episodes of ``robo_net`` that are in RoboNet's own test set."""
    text = (resources.files("ivideogpt") / "assets" / "data" / _TESTED_ELSEWHERE).read_text(encoding="utf-8")
    return frozenset(line.split()[1].removesuffix(".npz") for line in text.splitlines() if line.strip())


def read_shards(plans: Iterable[ShardPlan], dataset: RldsDataset) -> Iterator[SourceEpisode | Omission]:
    """Yield the episodes of some files in the order of the files; an omission for an episode without steps.

    Raises:
        UserError: a file is damaged, holds another number of records, or a record does not fit to the description.
    """
    for plan in plans:
        shard, count = plan.shard, 0
        for record in read_records(shard.path):
            if count < shard.length:
                with reading(record.place, "download the file again"):
                    episode = read_oxe_episode(record, shard, plan.numbers[count], count, dataset)
                yield episode
            count += 1
        if count != shard.length:
            raise UserError(
                f"{shard.path} holds {count} records; dataset_info.json says {shard.length}; download both again"
            )


def read_oxe_episode(
    record: Record, shard: rlds.Shard, number: int, place: int, dataset: RldsDataset
) -> SourceEpisode | Omission:
    """Read one episode; an omission where it has no steps.

    Args:
        record: its record.
        shard: its file.
        number: its official number in its split.
        place: its place in the file.
        dataset: see ``RldsDataset``.

    Raises:
        UserError: the record does not fit to the description; the message names file and byte.
    """
    layout, values = dataset.layout, record.values(dataset.layout.keys)
    key = rlds.official_key(shard.split, number)
    camera = next(iter(layout.cameras))
    steps = len(decode_images(layout.cameras[camera], values, record))
    if not steps:
        return Omission(items="episodes", reason="they have no steps", names=(key,))
    split, rank = rlds.official_split(shard.split, number, dataset.lengths, dataset.kept_out)
    if dataset.keeps_splits:
        split = {"validation": "val", "valid": "val"}.get(shard.split, shard.split)
        split = split if dataset.val_every is None else "train" if rank % dataset.val_every else "val"
    meta: dict[str, Any] = {"number": rank, "file": shard.path.name, "record": place}
    rows = _joined(layout.actions, values, record, steps)
    rewards = None if layout.reward is None else _joined([layout.reward], values, record, steps)
    terminal = None if layout.terminal is None else _joined([layout.terminal], values, record, steps)
    omissions = []
    for name, last in (("last_action", rows), ("last_reward", rewards)):
        if last is not None and np.isfinite(last[-1]).all():
            meta[name] = last[-1].tolist() if name == "last_action" else last[-1, 0].item()
            items, reason = name.replace("_", " ") + "s", "they lead to no recorded frame; kept in meta"
            omissions.append(Omission(items=items, reason=reason))
    if described := _metadata(layout.metadata, values, record):
        meta["episode_metadata"] = described
    return SourceEpisode(
        key=key,
        split=split,
        camera=camera,
        cameras={name: _frames(picture, values, record) for name, picture in layout.cameras.items()},
        actions=None if rows is None else _without_last(rows),
        action_fields=tuple(
            ActionField(name=action.path.removeprefix("steps/"), size=action.size or 0) for action in layout.actions
        ),
        rewards=None if rewards is None else _without_last(rewards[:, 0]),
        terminated=None if terminal is None else np.append(terminal[1:, 0] != 0, False),
        state=_joined(layout.state, values, record, steps),
        text="" if layout.text is None else _text(layout.text, values, record, steps),
        meta=meta,
        omissions=tuple(omissions),
    )


def _groups(plans: Iterable[ShardPlan], task_bytes: int) -> list[list[ShardPlan]]:
    """Return groups of neighbouring files of one split, up to ``task_bytes``; a larger file stands alone."""
    groups: list[list[ShardPlan]] = []
    size = 0
    for plan in plans:
        own = plan.shard.path.stat().st_size
        if not groups or groups[-1][0].shard.split != plan.shard.split or size + own > task_bytes:
            groups.append([])
            size = 0
        groups[-1].append(plan)
        size += own
    return groups


def _task_name(group: list[ShardPlan]) -> str:
    first, last = group[0].shard, group[-1].shard
    name = "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "_" for letter in first.split
    )
    return f"{name}-{first.number:05d}" + (f"-{last.number:05d}" if len(group) > 1 else "")


def _joined(fields: Iterable[Field], values: Mapping[str, Values], record: Record, steps: int) -> np.ndarray | None:
    """Return the numbers of several fields side by side, float32 ``[t n]``; None where there are no fields."""
    columns = [
        decode_numbers(field, values, record, steps).reshape(steps, -1).astype(np.float32, copy=False)
        for field in fields
    ]
    return np.concatenate(columns, axis=1) if columns else None


def _without_last(rows: np.ndarray) -> np.ndarray:
    """Return a copy whose last row is padding."""
    rows = rows.copy()
    rows[-1] = 0
    return rows


def _frames(field: Field, values: Mapping[str, Values], record: Record) -> Frames:
    """Return the pictures of a camera: JPEG files unchanged, others decoded."""
    files = [bytes(file) for file in decode_images(field, values, record)]
    where = f"a picture in {field.path!r} of {record.place}"
    with reading(where, "download the file again", fault="cannot be decoded"):
        if all(map(is_jpeg, files)):
            height, width = jpeg_size(files[0]) if files else (0, 0)
            for file in files:
                height_of_file, width_of_file = jpeg_size(file)
                check_unpacked_size(where, unpacked=3 * height_of_file * width_of_file, stored=len(file))
            return JpegFrames(files=files, height=height, width=width, fast=True)
        pictures = [decode_jpeg(file, fast=True) if is_jpeg(file) else read_image(file, where) for file in files]
    if sizes := {picture.shape for picture in pictures} - {pictures[0].shape}:
        raise UserError(f"{record.place} has pictures of {pictures[0].shape} and {sizes.pop()} in {field.path!r}")
    return np.stack(pictures)


def _text(field: Field, values: Mapping[str, Values], record: Record, steps: int) -> str:
    """Return the instruction at the first step; some datasets hold it as the numbers of its bytes."""
    if field.kind == "text":
        return next(iter(decode_text(field, values, record)), "")
    codes = decode_numbers(field, values, record, steps if field.in_steps else 1)[0].ravel()
    return bytes(codes[(codes > 0) & (codes < 256)].astype(np.uint8)).decode("utf-8", "replace")


def _metadata(fields: Iterable[Field], values: Mapping[str, Values], record: Record) -> dict[str, Any]:
    """Return the metadata of an episode as plain JSON values; numbers that are not finite are left out."""
    metadata: dict[str, Any] = {}
    for field in fields:
        name = field.path.removeprefix("episode_metadata/")
        if field.path not in values:
            continue
        if field.kind == "text":
            texts = decode_text(field, values, record)
            metadata[name] = texts if field.lists or len(texts) != 1 else texts[0]
        else:
            numbers = decode_numbers(field, values, record, 1)[0]
            if np.isfinite(numbers).all():
                metadata[name] = numbers.tolist()
    return metadata
