"""Converts a dataset into an episode store: one task a shard, in a process pool, and goes on where it was stopped.

    tasks = [ShardTask("train-00000", partial(read_shard, path)) for path in paths]
    convert_to_store(tasks, "stores/bridge", facts=StoreFacts(name="bridge"), workers=8)

A cluster scheduler does the same in pieces: ``begin_store`` once, ``run_task`` anywhere for each task, ``finish_store``
once. Every piece may be repeated: a finished shard is skipped, an unfinished one is not there.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ivideogpt.core.config import from_dict, load_json, save_json, to_dict
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import write_atomic
from ivideogpt.data.convert.source_episode import Omission, SourceEpisode, merged_omissions
from ivideogpt.data.process_pool import processors, run_all
from ivideogpt.data.store import format as form
from ivideogpt.data.store.metadata import IndexFacts, PartFacts, StoreFacts, merged
from ivideogpt.data.store.shard import write_shard

_LOCK, _FACTS = ".lock", "facts.json"
_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\..+")  # what core.files writes beside a file


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
        """Raises UserError where the name cannot be that of a file."""
        if not re.fullmatch(r"\w[\w.-]{0,199}", self.name, flags=re.ASCII):
            raise UserError(f"a shard is named {self.name!r}; expected letters, digits, '.', '_' and '-'")


class ShardTasks(list[ShardTask]):
    """The tasks of a conversion, and what of the source none of them reads."""

    def __init__(self, tasks: Iterable[ShardTask] = (), omissions: Iterable[Omission] = ()) -> None:
        """Take the tasks in order, and omissions of whole files and fields."""
        super().__init__(tasks)
        self.omissions = merged_omissions(omissions)


@dataclass(frozen=True, kw_only=True)
class ConversionSummary:
    """Counts of a finished conversion.

    Attributes:
        episodes, frames: in the store.
        omissions: what of the source is not in the store, or not where the source has it.
    """

    episodes: int
    frames: int
    omissions: tuple[Omission, ...] = ()

    def __str__(self) -> str:
        """Return the counts as one sentence."""
        left_out = "; ".join(map(str, self.omissions)) or "nothing"
        return f"stored {self.episodes:,} episodes with {self.frames:,} frames; left out or moved: {left_out}"


def convert_to_store(
    tasks: Sequence[ShardTask], folder: str | Path, *, facts: StoreFacts, workers: int | None = None
) -> ConversionSummary:
    """Converts a dataset into the store ``folder``; the same call again goes on where a stopped one was.

    Args:
        tasks: one a shard, in the official order of the episodes. Where the episodes have a ``number`` in their meta,
            the order of the store is that of split and number instead. Of ``ShardTasks`` the omissions are kept too.
        folder: a new or empty folder, or that of an earlier conversion of this dataset.
        facts: what the index says of the dataset.
        workers: processes; 0: this one; None: one for each processor.

    Returns:
        The counts of episodes, frames and omissions; the omissions are also in the notes of the index ("left_out").

    Raises:
        UserError: the folder cannot be written, holds something else or is being converted into; the source cannot
            be read; an episode is not as it should be.
    """
    if workers is not None and workers < 0:
        raise UserError(f"workers is {workers}; expected 0 for this process, or a number of processes")
    folder = _local(folder)
    names = [task.name for task in tasks]
    _check_target(folder, facts)
    with _locked(folder):
        begin_store(folder, facts, names)
        _remove_leftovers(folder)
        waiting = [task for task in tasks if not _is_finished(folder, task.name)]
        processes = processors() if workers is None else workers
        with tqdm(total=len(tasks), initial=len(tasks) - len(waiting), unit="shard", disable=None) as bar:
            bar.set_description(f"converting {facts.name}")
            for _ in run_all(functools.partial(run_task, folder=folder), waiting, processes):
                bar.update()
        return finish_store(folder, names, facts, tasks.omissions if isinstance(tasks, ShardTasks) else ())


def begin_store(folder: str | Path, facts: StoreFacts, names: Sequence[str]) -> None:
    """Makes the folder of a store, or finds that it is one of the same dataset.

    Args:
        folder: of the store.
        facts: what the index will say of the dataset.
        names: of all its shards, in order.

    Raises:
        UserError: the folder cannot be written or holds something else; two shards have one name.
    """
    folder = _local(folder)
    if len(set(names)) < len(names):
        raise UserError(f"two shards are named {Counter(names).most_common(1)[0][0]!r}; expected different names")
    _check_target(folder, facts)
    parts = [path for path in (folder / form.PARTS).glob("*.parquet") if not _TEMPORARY.fullmatch(path.name)]
    others = sorted({path.stem for path in parts} - set(names))
    if others:
        raise UserError(f"{folder} holds the shard {others[0]!r}, which this conversion does not make; choose another")
    for name in (form.SHARDS, form.PARTS):
        with _one_sentence(folder):
            (folder / name).mkdir(parents=True, exist_ok=True)
    save_json(folder / form.PARTS / _FACTS, to_dict(facts))


def run_task(task: ShardTask, folder: str | Path) -> None:
    """Converts one shard, if it is not finished.

    Raises:
        UserError: see ``convert_to_store``.
    """
    folder = _local(folder)
    if _is_finished(folder, task.name):
        return
    written = write_shard(folder / form.SHARDS / f"{task.name}.safetensors", task.read())
    arrow = form.pyarrow()
    table = arrow.Table.from_pylist(written.rows, schema=form.index_schema())
    part = PartFacts(task=task.name, actions=written.actions, omissions=written.omissions)
    _write_table(_part(folder, task.name), table, to_dict(part))


def finish_store(
    folder: str | Path, names: Sequence[str], facts: StoreFacts, omissions: Iterable[Omission] = ()
) -> ConversionSummary:
    """Writes the index of a store whose shards are all there.

    Args:
        folder: of the store.
        names: of its shards, in order.
        facts: what the index says of the dataset.
        omissions: what of the source no shard reads.

    Raises:
        UserError: a shard is missing, or the shards do not fit together.
    """
    folder, arrow = _local(folder), form.pyarrow()
    if missing := [name for name in names if not _is_finished(folder, name)]:
        raise UserError(f"{len(missing)} of {len(names)} shards of {folder} are missing, such as {missing[0]!r}")
    tables = [form.read_table(_part(folder, name).read_bytes()) for name in names]
    table = arrow.concat_tables([form.index_schema().empty_table(), *(t.replace_schema_metadata() for t in tables)])
    if not len(table):
        raise UserError(f"the source of {facts.name} has no episodes; check the path")
    parts = [from_dict(PartFacts, json.loads(part.schema.metadata[form.FACTS_KEY])) for part in tables]
    omissions = merged_omissions([*omissions, *(entry for part in parts for entry in part.omissions)])
    facts = replace(facts, notes=facts.notes | {"left_out": [to_dict(entry) for entry in omissions]})
    table = _ordered(table, folder)
    keys = Counter(zip(table["split"].to_pylist(), table["key"].to_pylist(), strict=True))
    if len(keys) < len(table):
        split, key = keys.most_common(1)[0][0]
        raise UserError(f"episode {key!r} of split {split!r} comes twice in {folder}; keys must differ")
    sizes: dict[str, set[tuple[int, int]]] = {}
    for camera in table["cameras"].combine_chunks().flatten().to_pylist():
        sizes.setdefault(camera["name"], set()).add((camera["height"], camera["width"]))
    said = IndexFacts(
        format=form.FORMAT,
        dataset=facts,
        episodes=len(table),
        frames=sum(table["length"].to_pylist()),
        cameras={name: tuple(sorted(found)) for name, found in sorted(sizes.items())},
        actions=merged([part.actions for part in parts if part.actions is not None]),
    )
    _write_table(folder / form.INDEX, table, to_dict(said))
    return ConversionSummary(episodes=said.episodes, frames=said.frames, omissions=omissions)


def _ordered(table: Any, folder: Path) -> Any:
    """By split and official number where the episodes have one, else as they are."""
    nulls = table["number"].null_count
    if nulls == len(table):
        return table
    if nulls:
        raise UserError(f"{nulls} of {len(table)} episodes of {folder} have no number; expected all or none of them to")
    places = table["number"].to_pylist()
    splits = table["split"].to_pylist()
    return table.take(sorted(range(len(table)), key=lambda row: (splits[row], places[row])))


def _write_table(path: Path, table: Any, facts: dict[str, Any]) -> None:
    metadata = {form.FACTS_KEY: json.dumps(facts, ensure_ascii=False).encode()}
    table = table.replace_schema_metadata(metadata)
    write = form.pyarrow().parquet.write_table
    write_atomic(path, lambda temporary: write(table, temporary, compression="zstd"))


def _local(folder: str | Path) -> Path:
    if "://" in str(folder):
        raise UserError(f"the store is to be written to {folder}; write it to a folder here, then copy it there")
    return Path(folder)


def _part(folder: Path, name: str) -> Path:
    return folder / form.PARTS / f"{name}.parquet"


def _is_finished(folder: Path, name: str) -> bool:
    """Whether shard and part are there, the shard as long as it says."""
    shard = folder / form.SHARDS / f"{name}.safetensors"
    if not _part(folder, name).is_file() or not shard.is_file():
        return False
    try:
        with shard.open("rb") as file:

            def read(start: int, stop: int) -> bytes:
                file.seek(start)
                return file.read(stop - start)

            form.read_header(read, shard.stat().st_size, str(shard))
    except UserError:
        return False
    return True


def _check_target(folder: Path, facts: StoreFacts) -> None:
    """Raises UserError where ``folder`` holds anything but a store of this dataset."""
    with _one_sentence(folder):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise UserError(f"{folder} is a file; expected a folder for the store")
        names = {entry.name for entry in folder.iterdir() if not _TEMPORARY.fullmatch(entry.name)}
    if strangers := sorted(names - {form.INDEX, form.SHARDS, form.PARTS}):
        raise UserError(f"{folder} holds {strangers[0]!r} and is no episode store; choose a new or an empty folder")
    if (folder / form.PARTS / _FACTS).is_file():
        found = from_dict(StoreFacts, load_json(folder / form.PARTS / _FACTS))
    elif (folder / form.INDEX).is_file():
        schema = form.pyarrow().parquet.read_schema(folder / form.INDEX)
        said = json.loads((schema.metadata or {}).get(form.FACTS_KEY, b"{}")).get("dataset", {})
        found = StoreFacts(name=said.get("name", ""), options=said.get("options", {}))
    else:
        return
    if found.name != facts.name:
        raise UserError(f"{folder} holds the store of {found.name!r}, not of {facts.name!r}; choose another folder")
    if found.options != facts.options:
        raise UserError(
            f"{folder} was converted with {_listed(found.options)}, not with {_listed(facts.options)}; give the same, "
            "or choose another folder"
        )


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(options.items())) or "no options"


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed conversions left: temporary files, which nobody else writes while the lock is held."""
    with _one_sentence(folder):
        for place in (folder, folder / form.SHARDS, folder / form.PARTS):
            for path in place.iterdir():
                if _TEMPORARY.fullmatch(path.name):
                    path.unlink()


@contextlib.contextmanager
def _one_sentence(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}; choose another place") from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder against other conversions; the system lets go of it when a process dies.

    Raises:
        UserError: another process holds it.
    """
    path = folder / form.PARTS / _LOCK
    with _one_sentence(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        if not _take(file.fileno()):
            raise UserError(f"another conversion is writing into {folder}; wait for it or choose another folder")
        yield


def _take(descriptor: int) -> bool:
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    return True
