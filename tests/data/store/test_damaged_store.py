"""A damaged or hostile store is one sentence that names the file, and never leads out of its folder."""

import importlib
import json
import os
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.data import EpisodeStore
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, convert_to_store


@pytest.fixture
def make(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return importlib.import_module("store_episodes")


@pytest.fixture
def store(make, tmp_path):
    episodes = [make.episode(i, height=100 * i + 16) for i in range(2)]
    tasks = [ShardTask("all", partial(iter, episodes))]
    convert_to_store(tasks, tmp_path / "store", facts=StoreFacts(name="toy"), workers=0)
    return tmp_path / "store"


def read_everything(folder):
    store = EpisodeStore(folder)
    store.verify()
    for index in range(len(store)):
        store.info(index)
        store[index]


def rewrite(folder, change):
    """Write the index again, its rows changed by ``change(list of dicts)``."""
    path = folder / "index.parquet"
    table = parquet.read_table(path)
    rows = table.to_pylist()
    change(rows)
    changed = pyarrow.Table.from_pylist(rows, schema=table.schema)
    parquet.write_table(changed, path)


def test_an_index_without_a_column_names_it(store):
    table = parquet.read_table(store / "index.parquet")
    for column in table.column_names:
        parquet.write_table(table.drop_columns([column]), store / "index.parquet")
        with pytest.raises(UserError, match=f"index.parquet has no column '{column}'"):
            read_everything(store)


WRONG = {
    "no frames": lambda rows: rows[0].update(length=0),
    "a negative row": lambda rows: rows[0].update(first=-1),
    "a huge row": lambda rows: rows[0].update(first=2**62),
    "more frames than the shard": lambda rows: rows[0].update(length=7) or rows[1].update(length=5),
    "another group": lambda rows: rows[0].update(group=9),
    "a negative group": lambda rows: rows[0].update(group=-1),
    "no key": lambda rows: rows[0].update(key=None),
    "no camera": lambda rows: rows[0].update(cameras=[]),
    "no list of cameras": lambda rows: rows[0].update(cameras=None),
    "a camera without a size": lambda rows: rows[0]["cameras"][0].update(height=None),
    "a huge camera": lambda rows: rows[1]["cameras"][0].update(height=2**31 - 1, width=2**31 - 1),
    "a camera of another size": lambda rows: rows[1]["cameras"][0].update(height=60_000, width=60_000),
    "another encoding": lambda rows: rows[0]["cameras"][0].update(encoding="png"),
    "another main camera": lambda rows: rows[0].update(camera="wrist"),
    "a shard outside": lambda rows: rows[0].update(shard="../../../etc/passwd"),
    "an absolute shard": lambda rows: rows[0].update(shard="/etc/passwd"),
    "a shard that is missing": lambda rows: rows[0].update(shard="other.safetensors"),
    "meta that is no JSON": lambda rows: rows[0].update(meta="{"),
    "meta that is no object": lambda rows: rows[0].update(meta="3"),
    "deep meta": lambda rows: rows[0].update(meta="[" * 100_000),
    "a wrong checksum": lambda rows: rows[0].update(crc32=1),
    "an episode less": lambda rows: rows.pop(),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_index_with_impossible_values_is_one_sentence(store, name):
    rewrite(store, WRONG[name])
    with pytest.raises(UserError):
        read_everything(store)


def test_an_index_of_other_types_is_one_sentence(store):
    table = parquet.read_table(store / "index.parquet")
    for place, name in enumerate(table.column_names):
        wrong = pyarrow.array([{"x": 1}, {"x": 2}])
        changed = table.set_column(place, name, wrong)
        parquet.write_table(changed, store / "index.parquet")
        with pytest.raises(UserError, match="index.parquet"):
            read_everything(store)


HEADERS = {
    "a list": lambda head: [],
    "an entry that is a number": lambda head: head | {"0.actions": 3},
    "a negative shape": lambda head: head | {"0.x": {"dtype": "U8", "shape": [-1], "data_offsets": [0, -1]}},
    "a shape of text": lambda head: head | {"0.x": {"dtype": "U8", "shape": "12", "data_offsets": [0, 2]}},
    "no axes": lambda head: head | {"0.x": {"dtype": "U8", "shape": [], "data_offsets": [0, 1]}},
    "a huge shape": lambda head: head | {"0.x": {"dtype": "U8", "shape": [10**30], "data_offsets": [0, 10**30]}},
    "actions of bytes": lambda head: head | {"0.actions": {"dtype": "U8", "shape": [6], "data_offsets": [0, 6]}},
    "no metadata": lambda head: {key: value for key, value in head.items() if key != "__metadata__"},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_damaged_header_names_its_shard(store, name):
    path = store / "shards" / "all.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    text = json.dumps(HEADERS[name](json.loads(content[8 : 8 + length]))).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(UserError, match=r"all\.safetensors"):
        read_everything(store)


@pytest.mark.skipif(os.name != "posix", reason="FIFOs are POSIX")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["index.parquet", "shards/all.safetensors"])
def test_a_fifo_in_a_store_is_refused_and_never_opened(store, name):
    (store / name).unlink()
    os.mkfifo(store / name)
    with pytest.raises(UserError, match=name):
        read_everything(store)


def test_a_name_that_is_not_utf8_is_refused_before_anything_is_stored(make, tmp_path):
    for change in (
        {"key": "b\udcff"},
        {"split": "\udcff"},
        {"text": "\udcff"},
        {"meta": {"source": "b\udcff.npz"}},
        {"arrays": {"\udcff": np.zeros(6)}},
    ):
        tasks = [ShardTask("all", partial(iter, [make.episode(0, **change)]))]
        with pytest.raises(UserError, match="which is no valid UTF-8; rename the file"):
            convert_to_store(tasks, tmp_path / "store", facts=StoreFacts(name="toy"), workers=0)
    assert not (tmp_path / "store" / "index.parquet").exists()


def test_a_store_at_a_name_that_no_folder_can_have_is_one_sentence(tmp_path):
    for name in ("x" * 5000, f"{tmp_path}/a\0b", "~nobody-of-this-name/x"):
        with pytest.raises(UserError, match="cannot be used as a path"):
            EpisodeStore(name)
        with pytest.raises(UserError, match="cannot be used as a path"):
            convert_to_store([], name, facts=StoreFacts(name="toy"), workers=0)
