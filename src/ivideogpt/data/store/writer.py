"""Writes an episode store: one task for each shard, in a pool of processes, resumable after any interruption.

    tasks = [ShardTask("train-00000", partial(read_shard, path)) for path in paths]
    convert_to_store(tasks, "stores/bridge", facts=StoreFacts(name="bridge"), workers=8)

On a cluster, call ``begin_store`` once, ``run_task`` for each task on any machine, and ``finish_store`` once. Every
call may be repeated: a finished shard is skipped, and an unfinished one leaves no file.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ivideogpt.core.config import from_dict, load_json, save_json, to_dict
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import is_temporary, remove_leftovers, write_atomic, writing
from ivideogpt.core.folder_lock import try_lock
from ivideogpt.core.reading import local_path, reading
from ivideogpt.data.convert.source_episode import Omission, SourceEpisode, merged_omissions
from ivideogpt.data.process_pool import TaskPool, as_pool
from ivideogpt.data.store import format as store_format
from ivideogpt.data.store.byte_ranges import open_folder
from ivideogpt.data.store.index import StoreIndex
from ivideogpt.data.store.metadata import IndexFacts, PartFacts, StoreFacts, merged
from ivideogpt.data.store.shard import write_shard

_LOCK, _FACTS = ".lock", "facts.json"


@dataclass(frozen=True)
class ShardTask:
    """One shard to convert, independent of all others.

    Attributes:
        name: of the shard, unique in its store: letters, digits, ``.``, ``_`` and ``-``.
        read: yields its episodes in their official order, and an ``Omission`` for each that cannot be stored. It is
            sent to another process: a function of a module, or a ``functools.partial`` of one.
    """

    name: str
    read: Callable[[], Iterator[SourceEpisode | Omission]]

    def __post_init__(self) -> None:
        """Raise UserError if the name cannot be that of a file."""
        if not re.fullmatch(r"\w[\w.-]{0,199}", self.name, flags=re.ASCII):
            raise UserError(f"a shard is named {self.name!r}; expected letters, digits, '.', '_' and '-'")


class ShardTasks(list[ShardTask]):
    """The tasks of a conversion, and what of the source none of them reads."""

    def __init__(
        self, tasks: Iterable[ShardTask] = (), omissions: Iterable[Omission] = (), *, sources: str = ""
    ) -> None:
        """Take the tasks in order, omissions of whole files and fields, and the kinds of files that are read."""
        super().__init__(tasks)
        self.omissions = merged_omissions(omissions)
        self.sources = sources


@dataclass(frozen=True, kw_only=True)
class ConversionSummary:
    """Counts of a finished conversion.

    Attributes:
        episodes, frames: in the store.
        omissions: what of the source is not in the store, or not where the source has it.
        sources: counts of the files that were read, by kind, or "".
    """

    episodes: int
    frames: int
    omissions: tuple[Omission, ...] = ()
    sources: str = ""

    def __str__(self) -> str:
        """Return the counts as one sentence."""
        left_out = "; ".join(map(str, self.omissions)) or "nothing"
        sources = f" from {self.sources}" if self.sources else ""
        return f"stored {self.episodes:,} episodes with {self.frames:,} frames{sources}; left out or moved: {left_out}"


def convert_to_store(
    tasks: Sequence[ShardTask], folder: str | Path, *, facts: StoreFacts, workers: int | TaskPool | None = None
) -> ConversionSummary:
    """Convert a dataset into the store ``folder``; the same call resumes a conversion that was stopped.

    Args:
        tasks: one for each shard, in the official order of the episodes. If the episodes have a ``number`` in their
            meta, the order of the store is that of split and number instead. Omissions of ``ShardTasks`` are kept.
        folder: a new or empty folder, or that of an earlier conversion of this dataset.
        facts: description of the dataset for the index.
        workers: processes; 0: this one; None: one for each processor. Or a pool.

    Returns:
        The counts of episodes, frames and omissions; the omissions are also in the notes of the index ("left_out").

    Raises:
        UserError: the folder cannot be written, holds other files, or another conversion writes into it; the source
            cannot be read; an episode breaks the rules of ``SourceEpisode``.
    """
    pool, folder = as_pool(workers), _local(folder)
    names = [task.name for task in tasks]
    _check_target(folder, facts)
    with _locked(folder):
        begin_store(folder, facts, names)
        remove_leftovers(folder, folder / store_format.SHARDS, folder / store_format.PARTS)
        waiting = [task for task in tasks if not _is_finished(folder, task.name)]
        with tqdm(total=len(tasks), initial=len(tasks) - len(waiting), unit="shard", disable=None) as bar:
            bar.set_description(f"converting {facts.name}")
            for _ in pool.run(functools.partial(run_task, folder=folder), waiting):
                bar.update()
        if not isinstance(tasks, ShardTasks):
            return finish_store(folder, names, facts)
        return replace(finish_store(folder, names, facts, tasks.omissions), sources=tasks.sources)


def begin_store(folder: str | Path, facts: StoreFacts, names: Sequence[str]) -> None:
    """Create the folder of a store, or check that it is one of the same dataset.

    Args:
        folder: of the store.
        facts: description of the dataset.
        names: of all its shards, in order.

    Raises:
        UserError: the folder cannot be written or holds other files; two shards have one name.
    """
    folder = _local(folder)
    if len(set(names)) < len(names):
        raise UserError(f"two shards are named {Counter(names).most_common(1)[0][0]!r}; expected different names")
    _check_target(folder, facts)
    parts = [path for path in (folder / store_format.PARTS).glob("*.parquet") if not is_temporary(path.name)]
    unknown = sorted({path.stem for path in parts} - set(names))
    if unknown:
        raise UserError(f"{folder} holds the shard {unknown[0]!r}, which this conversion does not make; choose another")
    for name in (store_format.SHARDS, store_format.PARTS):
        with writing(folder):
            (folder / name).mkdir(parents=True, exist_ok=True)
    save_json(folder / store_format.PARTS / _FACTS, to_dict(facts))


def run_task(task: ShardTask, folder: str | Path) -> None:
    """Convert one shard, if it is not finished.

    Raises:
        UserError: see ``convert_to_store``.
    """
    folder = _local(folder)
    if _is_finished(folder, task.name):
        return
    written = write_shard(folder / store_format.SHARDS / f"{task.name}.safetensors", task.read())
    arrow = store_format.pyarrow()
    table = arrow.Table.from_pylist(written.rows, schema=store_format.index_schema())
    part = PartFacts(task=task.name, actions=written.actions, omissions=written.omissions)
    _write_table(_part(folder, task.name), table, to_dict(part))


def finish_store(
    folder: str | Path, names: Sequence[str], facts: StoreFacts, omissions: Iterable[Omission] = ()
) -> ConversionSummary:
    """Write the index of a store whose shards are all finished.

    Args:
        folder: of the store.
        names: of its shards, in order.
        facts: description of the dataset.
        omissions: parts of the source that no shard reads.

    Raises:
        UserError: a shard is missing, or the shards differ in their actions or repeat an episode.
    """
    folder, arrow = _local(folder), store_format.pyarrow()
    if missing := [name for name in names if not _is_finished(folder, name)]:
        raise UserError(f"{len(missing)} of {len(names)} shards of {folder} are missing, such as {missing[0]!r}")
    tables, parts = zip(*(_load_part(_part(folder, name)) for name in names), strict=True) if names else ((), ())
    table = arrow.concat_tables(
        [store_format.index_schema().empty_table(), *(t.replace_schema_metadata() for t in tables)]
    )
    if not len(table):
        raise UserError(f"the source of {facts.name} has no episodes; check the path")
    omissions = merged_omissions([*omissions, *(entry for part in parts for entry in part.omissions)])
    if omissions:
        facts = replace(facts, notes=facts.notes | {"left_out": [to_dict(entry) for entry in omissions]})
    table = _ordered(table, folder)
    keys = Counter(zip(table["split"].to_pylist(), table["key"].to_pylist(), strict=True))
    if len(keys) < len(table):
        split, key = keys.most_common(1)[0][0]
        raise UserError(f"episode {key!r} of split {split!r} comes twice in {folder}; keys must differ")
    sizes: dict[str, set[tuple[int, int]]] = {}
    for camera in table["cameras"].combine_chunks().flatten().to_pylist():
        sizes.setdefault(camera["name"], set()).add((camera["height"], camera["width"]))
    index_facts = IndexFacts(
        format=store_format.FORMAT,
        dataset=facts,
        episodes=len(table),
        frames=sum(table["length"].to_pylist()),
        cameras={name: tuple(sorted(camera_sizes)) for name, camera_sizes in sorted(sizes.items())},
        actions=merged([part.actions for part in parts if part.actions is not None]),
    )
    _write_table(folder / store_format.INDEX, table, to_dict(index_facts))
    return ConversionSummary(episodes=index_facts.episodes, frames=index_facts.frames, omissions=omissions)


def _load_part(path: Path) -> tuple[Any, PartFacts]:
    """Return the rows of a finished shard for the index, and their description."""
    with reading(path, "delete it and convert again"):
        table = store_format.read_table(path.read_bytes())
        return table, from_dict(PartFacts, json.loads(table.schema.metadata[store_format.FACTS_KEY]), where=str(path))


def _ordered(table: Any, folder: Path) -> Any:
    """Return the rows sorted by split and official number if the episodes have one, else unchanged."""
    nulls = table["number"].null_count
    if nulls == len(table):
        return table
    if nulls:
        raise UserError(f"{nulls} of {len(table)} episodes of {folder} have no number; expected all or none of them to")
    numbers, splits = table["number"].to_pylist(), table["split"].to_pylist()
    return table.take(sorted(range(len(table)), key=lambda row: (splits[row], numbers[row])))


def _write_table(path: Path, table: Any, facts: dict[str, Any]) -> None:
    metadata = {store_format.FACTS_KEY: json.dumps(facts, ensure_ascii=False).encode()}
    table = table.replace_schema_metadata(metadata)
    write = store_format.pyarrow().parquet.write_table
    write_atomic(path, lambda temporary: write(table, temporary, compression="zstd"))


def _local(folder: str | Path) -> Path:
    if "://" in str(folder):
        raise UserError(f"a store cannot be written to {folder}; write it to a local folder, then copy it")
    return local_path(folder)


def _part(folder: Path, name: str) -> Path:
    return folder / store_format.PARTS / f"{name}.parquet"


def _is_finished(folder: Path, name: str) -> bool:
    """Return whether shard and part exist and the shard has the length that its header declares."""
    shard = folder / store_format.SHARDS / f"{name}.safetensors"
    if not _part(folder, name).is_file() or not shard.is_file():
        return False
    try:
        with shard.open("rb") as file:

            def read(start: int, stop: int) -> bytes:
                file.seek(start)
                return file.read(stop - start)

            store_format.read_header(read, shard.stat().st_size, str(shard))
    except UserError:
        return False
    return True


def _check_target(folder: Path, facts: StoreFacts) -> None:
    """Raise UserError if ``folder`` holds anything but a store of this dataset."""
    with writing(folder):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise UserError(f"{folder} is a file; expected a folder for the store")
        names = {entry.name for entry in folder.iterdir() if not is_temporary(entry.name)}
    if unknown := sorted(names - {store_format.INDEX, store_format.SHARDS, store_format.PARTS}):
        raise UserError(f"{folder} holds {unknown[0]!r} and is no episode store; choose a new or an empty folder")
    if (folder / store_format.PARTS / _FACTS).is_file():
        path = folder / store_format.PARTS / _FACTS
        earlier = from_dict(StoreFacts, load_json(path), where=str(path))
    elif (folder / store_format.INDEX).is_file():
        store_format.pyarrow()
        earlier = StoreIndex(open_folder(folder)).facts.dataset
    else:
        return
    if earlier.name != facts.name:
        raise UserError(f"{folder} holds the store of {earlier.name!r}, not of {facts.name!r}; choose another folder")
    if earlier.options != facts.options:
        raise UserError(
            f"{folder} was converted with {_in_words(earlier.options)}, not with {_in_words(facts.options)}; give the "
            "same options, or choose another folder"
        )


def _in_words(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(options.items())) or "no options"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder; the system releases it when the process dies.

    Raises:
        UserError: another process holds it.
    """
    path = folder / store_format.PARTS / _LOCK
    with writing(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        if not try_lock(file.fileno()):
            raise UserError(f"another conversion is writing into {folder}; wait for it or choose another folder")
        yield
