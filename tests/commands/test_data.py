"""``ivideogpt data`` prints and draws what a store holds, and fails loudly on one that is damaged."""

import importlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ivideogpt.cli import main
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, convert_to_store


@pytest.fixture
def make(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "data"))
    return importlib.import_module("store_episodes")


@pytest.fixture
def store(make, tmp_path):
    cameras = {"image": make.pictures(9, 64, 64, 0), "wrist": make.jpegs(make.pictures(9, 120, 160, 1))}
    shards = [
        [make.episode(i, length=3 + i) for i in range(10)],
        [make.episode(20, length=9, cameras=cameras, split="test")],
    ]
    facts = StoreFacts(name="toy", url="https://example.org/toy", licence="CC-BY 4.0")
    tasks = [ShardTask(f"s-{i}", partial(iter, shard)) for i, shard in enumerate(shards)]
    convert_to_store(tasks, tmp_path / "toy", facts=facts, workers=0)
    return tmp_path / "toy"


def last_line(text):
    return json.loads(text.splitlines()[-1])


def test_a_store_is_described(store, capsys, tmp_path):
    assert main(["data", str(store), "--sheet", str(tmp_path / "new" / "sheet.png"), "--verify"]) == 0
    printed = capsys.readouterr().out
    for said in (
        "toy: 11 episodes, 84 frames (0.00 hours)",
        "lengths: 3 to 12 frames",
        "splits: test 1, train 10",
        "camera image: 16 x 24, 64 x 64 (height x width)",
        "camera wrist: 120 x 160",
        "licence: CC-BY 4.0",
        "source: https://example.org/toy",
        "actions: 3 numbers, 73 of them",
        "action/world_vector[1]",
        "verified: every byte of all episodes",
    ):
        assert said in printed
    summary = last_line(printed)
    assert summary["episodes"] == 11 and summary["frames"] == 84 and summary["verified"] is True
    assert summary["splits"] == {"test": 1, "train": 10} and summary["action_dim"] == 3
    files = [store / "index.parquet", *(store / "shards").iterdir()]
    assert summary["bytes"] == sum(path.stat().st_size for path in files)
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.height == 82 + 8 * 162 + 154  # eight episodes, one of them with a second camera
        assert len(np.unique(np.asarray(sheet))) > 20


def test_one_episode_is_described(store, capsys, tmp_path):
    words = ["data", str(store), "--episode", "train_eps_00000020", "--sheet", str(tmp_path / "sheet.png"), "--verify"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    for said in (
        "split test, in s-1.safetensors",
        "camera wrist: 120 x 160, jpeg",
        "text: push 20",
        "action/open",
        "state",
    ):
        assert said in printed
    assert last_line(printed)["episode"] == "train_eps_00000020"
    assert (tmp_path / "sheet.png").is_file()


def test_a_bad_episode_is_named_and_the_exit_code_is_2(store, capsys):
    path = store / "shards" / "s-0.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["data", str(store)]) == 0  # one wrong pixel is not seen
    assert main(["data", str(store), "--verify"]) == 2
    said = capsys.readouterr().err
    assert "train_eps_00000009" in said and "s-0.safetensors" in said and said.count("\n") == 1
    path.write_bytes(content[:-1])
    assert main(["data", str(store)]) == 2
    assert "cut off" in capsys.readouterr().err


def test_what_cannot_be_done_is_one_sentence(store, capsys, tmp_path):
    for words, said in (
        ([str(tmp_path / "none")], "has no index.parquet"),
        ([str(store), "--episode", "x"], "has no episode 'x'"),
        ([str(store), "--sheet", str(tmp_path / "sheet.gif")], "expected a file that ends in .png"),
        ([str(store), "--sheet", str(store / "index.parquet" / "sheet.png")], "is a file; choose a folder"),
    ):
        assert main(["data", *words]) == 2
        assert said in capsys.readouterr().err


def test_a_store_without_actions_and_rates_is_described(make, tmp_path, capsys):
    source = make.episode(0, actions=None, action_fields=(), rewards=None, state=None, fps=None, text="")
    convert_to_store([ShardTask("s", partial(iter, [source]))], tmp_path, facts=StoreFacts(name="bare"), workers=0)
    assert main(["data", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "actions: none" in printed and "licence: not stated" in printed
    assert last_line(printed)["hours"] is None and last_line(printed)["action_dim"] is None
    assert main(["data", str(tmp_path), "--episode", "train_eps_00000000"]) == 0
