"""Reads Open X-Embodiment: datasets of episodes (RLDS) as TensorFlow Datasets writes them, without TensorFlow.

Step t of RLDS holds observation t, the action taken there and what it was paid, so the rows of actions and rewards
stay where they are. ``is_terminal`` speaks of observation t, so it belongs to the transition from frame t - 1. The
action and the reward of the last step lead to no frame; they are kept in the episode's ``meta``.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.data.catalog import DATASETS, DatasetInfo, dataset_info
from ivideogpt.data.convert.jpeg import decode_jpeg, is_jpeg, jpeg_size
from ivideogpt.data.convert.rlds import dataset as rlds
from ivideogpt.data.convert.rlds.fields import Field, decode_images, decode_numbers, decode_text
from ivideogpt.data.convert.rlds.layout import Layout, choose_layout
from ivideogpt.data.convert.rlds.tf_example import Values
from ivideogpt.data.convert.rlds.tfrecord import Record, read_records
from ivideogpt.data.convert.source_episode import ActionField, Frames, JpegFrames, SourceEpisode

if TYPE_CHECKING:
    from ivideogpt.data.store.metadata import StoreFacts
    from ivideogpt.data.store.writer import ShardTask

#: Small files are read together, up to about this many bytes.
TASK_BYTES = 256_000_000
_TESTED_ELSEWHERE = "oxe_robonet_testset_filenames.txt"


@dataclass(frozen=True, kw_only=True)
class OxeDataset:
    """What a process needs to know to read any shard of a dataset.

    Attributes:
        info: the row of the catalogue.
        version: of the dataset in TensorFlow Datasets.
        layout: which fields become what.
        lengths: how many episodes each split in TensorFlow Datasets has.
        kept_out: official names that are neither for training nor for validation.
    """

    info: DatasetInfo
    version: str
    layout: Layout
    lengths: Mapping[str, int]
    kept_out: frozenset[str] = field(default=frozenset(), repr=False)


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One file, and the official number of each of its records."""

    shard: rlds.Shard
    numbers: tuple[int, ...] = field(repr=False)


def tasks(source: Path, *, name: str, cameras: tuple[str, ...] | None = None, partial: bool = False) -> list[ShardTask]:
    """One task a shard, or a group of small shards.

    Args:
        source: the folder above NAME/VERSION, or NAME, or NAME/VERSION.
        name: of the dataset in the catalogue, for example "bridge" or "uiuc_d3field1".
        cameras: which to store, the model's first; default: those of the catalogue.
        partial: leave out files that are not there; numbers and splits stay the official ones. Each file is a task, so
            that files which come later can be added to the store.

    Raises:
        UserError: no such dataset or folder, a file is missing, or a camera is.
    """
    from ivideogpt.data.store.writer import ShardTask

    return [ShardTask(name=task, read=read) for task, read in oxe_tasks(name, source, cameras=cameras, partial=partial)]


def facts(source: Path, *, name: str, cameras: tuple[str, ...] | None = None, partial: bool = False) -> StoreFacts:
    """What the store says of the dataset as a whole; arguments and errors as for ``tasks``."""
    from ivideogpt.data.store.metadata import StoreFacts

    dataset = open_dataset(name, source, cameras=cameras)[0]
    layout, info = dataset.layout, dataset.info
    notes = {
        "version": dataset.version,
        "partial": partial,
        "cameras": list(layout.cameras),
        "state_fields": [[found.path, found.size] for found in layout.state],
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
) -> list[tuple[str, Callable[[], Iterator[SourceEpisode]]]]:
    """The name of each task and the function, without arguments, that reads its episodes in any process.

    Args:
        name: of the dataset in the catalogue.
        source: see ``tasks``.
        cameras: see ``tasks``.
        partial: see ``tasks``.
        task_bytes: files are read together up to about this size.

    Raises:
        UserError: see ``tasks``.
    """
    dataset, folder = open_dataset(name, source, cameras=cameras)
    plans, missing = [], []
    for shards in folder.splits.values():
        numbers = rlds.official_numbers([shard.length for shard in shards], in_order=folder.in_order)
        for shard, own in zip(shards, numbers, strict=True):
            if own and not shard.path.is_file():
                missing.append(shard.path)
            elif own:
                plans.append(ShardPlan(shard=shard, numbers=tuple(own)))
    if missing and not (partial and plans):
        rest = "download them, or ask for a partial conversion (--partial)" if plans else "download the dataset again"
        raise UserError(
            f"{len(missing)} of {len(missing) + len(plans)} files are missing, such as {missing[0]}; {rest}"
        )
    return [
        (_task_name(group), functools.partial(read_shards, plans=tuple(group), dataset=dataset))
        for group in _groups(plans, 0 if partial else task_bytes)
    ]


def open_dataset(
    name: str, source: Path, *, cameras: tuple[str, ...] | None = None
) -> tuple[OxeDataset, rlds.RldsFolder]:
    """Finds a dataset and chooses its fields; arguments and errors as for ``tasks``."""
    info = dataset_info(name)
    if not info.source:
        raise UserError(
            f"{name!r} is not in Open X-Embodiment; convert it with its own kind (ivideogpt convert --help)"
        )
    folder = rlds.open_folder(rlds.find_folder(Path(source), info.source, info.version))
    if folder.name != info.source and folder.name in {row.source for row in DATASETS.values()}:
        raise UserError(f"{folder.path} holds {folder.name!r}; expected {info.source!r}")
    lengths = {split: sum(shard.length for shard in shards) for split, shards in folder.splits.items()}
    kept_out = tested_elsewhere() if info.source == "robo_net" else frozenset()
    layout = choose_layout(folder, info, cameras)
    return OxeDataset(info=info, version=folder.version, layout=layout, lengths=lengths, kept_out=kept_out), folder


def tested_elsewhere() -> frozenset[str]:
    """Official names of the episodes of ``robo_net`` that RoboNet's own test set has, too."""
    text = (resources.files("ivideogpt") / "assets" / "data" / _TESTED_ELSEWHERE).read_text(encoding="utf-8")
    return frozenset(line.split()[1].removesuffix(".npz") for line in text.splitlines() if line.strip())


def read_shards(plans: Iterable[ShardPlan], dataset: OxeDataset) -> Iterator[SourceEpisode]:
    """The episodes of some files, in the order in which they lie there.

    Raises:
        UserError: a file is damaged, holds another number of records, or a record is not as the folder's files say.
    """
    for plan in plans:
        shard, found = plan.shard, 0
        for record in read_records(shard.path):
            if found < shard.length:
                episode = read_episode(record, plan.shard, plan.numbers[found], found, dataset)
                if episode is not None:
                    yield episode
            found += 1
        if found != shard.length:
            raise UserError(
                f"{shard.path} holds {found} records; dataset_info.json says {shard.length}; download both again"
            )


def read_episode(
    record: Record, shard: rlds.Shard, number: int, place: int, dataset: OxeDataset
) -> SourceEpisode | None:
    """One episode; None, with a warning, for one without steps.

    Args:
        record: its record.
        shard: its file.
        number: its official number in its split.
        place: its place in the file.
        dataset: see ``OxeDataset``.

    Raises:
        UserError: the record is not as the folder's files say; the message names file and byte.
    """
    layout, values = dataset.layout, record.values(dataset.layout.keys)
    key = rlds.official_key(shard.split, number)
    camera = next(iter(layout.cameras))
    steps = len(decode_images(layout.cameras[camera], values, record))
    if not steps:
        warnings.warn(f"{key} of {dataset.info.name} has no steps and is left out ({record.place})", stacklevel=2)
        return None
    split, rank = rlds.official_split(shard.split, number, dataset.lengths, dataset.kept_out)
    meta: dict[str, Any] = {"number": rank, "file": shard.path.name, "record": place}
    rows = _joined(layout.actions, values, record, steps)
    rewards = None if layout.reward is None else _joined([layout.reward], values, record, steps)
    terminal = None if layout.terminal is None else _joined([layout.terminal], values, record, steps)
    if rows is not None and np.isfinite(rows[-1]).all():
        meta["last_action"] = rows[-1].tolist()
    if rewards is not None and np.isfinite(rewards[-1]).all():
        meta["last_reward"] = rewards[-1, 0].item()
    if described := _metadata(layout.metadata, values, record):
        meta["episode_metadata"] = described
    return SourceEpisode(
        key=key,
        split=split,
        camera=camera,
        cameras={name: _frames(found, values, record) for name, found in layout.cameras.items()},
        actions=None if rows is None else _without_last(rows),
        action_fields=tuple(
            ActionField(name=found.path.removeprefix("steps/"), size=found.size or 0) for found in layout.actions
        ),
        rewards=None if rewards is None else _without_last(rewards[:, 0]),
        terminated=None if terminal is None else np.append(terminal[1:, 0] != 0, False),
        state=_joined(layout.state, values, record, steps),
        text="" if layout.text is None else _text(layout.text, values, record, steps),
        meta=meta,
    )


def _groups(plans: Iterable[ShardPlan], task_bytes: int) -> list[list[ShardPlan]]:
    """Neighbouring files of one split together, up to ``task_bytes``; a larger file alone."""
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
    """The numbers of several fields side by side, float32 ``[t n]``; None where there are no fields."""
    columns = [
        decode_numbers(found, values, record, steps).reshape(steps, -1).astype(np.float32, copy=False)
        for found in fields
    ]
    return np.concatenate(columns, axis=1) if columns else None


def _without_last(rows: np.ndarray) -> np.ndarray:
    """A copy whose last row is padding."""
    rows = rows.copy()
    rows[-1] = 0
    return rows


def _frames(found: Field, values: Mapping[str, Values], record: Record) -> Frames:
    """The pictures of a camera: JPEG files as they are, others decoded."""
    files = decode_images(found, values, record)
    try:
        if all(map(is_jpeg, files)):
            height, width = jpeg_size(bytes(files[0])) if files else (0, 0)
            return JpegFrames(files=[bytes(file) for file in files], height=height, width=width, fast=True)
        pictures = [decode_jpeg(bytes(file), fast=True) if is_jpeg(file) else _decoded(file) for file in files]
    except MissingExtraError:
        raise
    except (UserError, OSError, ValueError, SyntaxError) as error:  # Pillow raises the latter three
        raise UserError(f"{record.place} has a picture in {found.path!r} that cannot be decoded ({error})") from error
    if sizes := {picture.shape for picture in pictures} - {pictures[0].shape}:
        raise UserError(f"{record.place} has pictures of {pictures[0].shape} and {sizes.pop()} in {found.path!r}")
    return np.stack(pictures)


def _decoded(file: memoryview) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(file)) as picture:
        return np.asarray(picture.convert("RGB"))


def _text(found: Field, values: Mapping[str, Values], record: Record, steps: int) -> str:
    """The instruction at the first step; some datasets hold it as the numbers of its bytes."""
    if found.kind == "text":
        return next(iter(decode_text(found, values, record)), "")
    codes = decode_numbers(found, values, record, steps if found.in_steps else 1)[0].ravel()
    return bytes(codes[(codes > 0) & (codes < 256)].astype(np.uint8)).decode("utf-8", "replace")


def _metadata(fields: Iterable[Field], values: Mapping[str, Values], record: Record) -> dict[str, Any]:
    """What is said of the episode as a whole, as plain JSON values; numbers that are not finite are left out."""
    described: dict[str, Any] = {}
    for found in fields:
        name = found.path.removeprefix("episode_metadata/")
        if found.path not in values:
            continue
        if found.kind == "text":
            texts = decode_text(found, values, record)
            described[name] = texts if found.lists or len(texts) != 1 else texts[0]
        else:
            numbers = decode_numbers(found, values, record, 1)[0]
            if np.isfinite(numbers).all():
                described[name] = numbers.tolist()
    return described
