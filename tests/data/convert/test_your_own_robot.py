"""The page "your own robot": its lines run, from a folder of recordings to a model that imagines."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from ivideogpt import WorldModel
from ivideogpt.cli import main
from ivideogpt.core.errors import UserError
from ivideogpt.data.convert import lerobot, video
from ivideogpt.data.render import write_mp4
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import convert_to_store
from ivideogpt.data.tokens import TokenStore

pytest.importorskip("pyarrow")
PAGE = Path(__file__).parents[3] / "docs" / "your-own-robot.md"
LENGTH = 33


@pytest.fixture
def recordings(tmp_path):
    """Two mp4 files with tables, 128 px, in the folders train and val."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        frames = np.zeros((LENGTH, 128, 128, 3), np.uint8) + np.arange(LENGTH, dtype=np.uint8)[:, None, None, None] * 7
        write_mp4(tmp_path / "recordings" / split / "take1.mp4", frames, fps=30, shortest_side=128)
        lines = [f"{x:.4f},{y:.4f},0.5" for x, y in random.normal(size=(LENGTH, 2))]
        table = tmp_path / "recordings" / split / "take1.csv"
        table.write_text("shoulder,elbow,gripper\n" + "\n".join(lines) + "\n")
    return tmp_path


def test_the_commands_of_the_page_train_a_model_on_a_store(recordings, monkeypatch):
    monkeypatch.chdir(recordings)
    convert_to_store(video.tasks("recordings"), "stores/mine", facts=StoreFacts(name="mine"), workers=0)
    page = PAGE.read_text(encoding="utf-8")
    block = re.findall(r"^```sh\n(.*?)^```$", page[page.index("## 3. Train") :], flags=re.DOTALL | re.MULTILINE)[0]
    block = block.replace("stride=3", "stride=2").replace("--stride 3", "--stride 2")  # episodes are short here
    commands = [shlex.split(line) for line in block.splitlines()]
    assert [words[:2] for words in commands[:3]] == [
        ["ivideogpt", "train-tokenizer"],
        ["ivideogpt", "tokenize"],
        ["ivideogpt", "train-transformer"],
    ]
    small = {
        "train-tokenizer": ["--steps", "1"],
        "tokenize": ["--workers", "0"],
        "train-transformer": ["--steps", "1", "forecasts.0.steps=1", "forecasts.1.steps=1"],
        "predict": ["--horizon", "2"],
    }
    for words in commands:
        assert main(words[1:] + small[words[1]]) == 0
    model = WorldModel.from_pretrained("runs/mine/model")
    assert model.config.frame_stride == 2 and model.action_dim == 3
    assert model.config.action_space.names == ()  # the gripper never moves: there is no range to show
    assert model.config.action_std[2] == 1.0
    tables = [f"recordings/{split}/take1.csv" for split in ("train", "val")]
    recorded, other = (np.loadtxt(table, delimiter=",", skiprows=1, dtype=np.float32)[:-1] for table in tables)
    assert np.allclose(model.config.action_mean, np.concatenate([recorded, other]).mean(axis=0), atol=1e-4)
    tokens = TokenStore("runs/mine/tokens")
    assert len(tokens) == 2 and tokens.length.tolist() == [17, 16]  # every other frame of one episode, twice
    assert np.array_equal(tokens.clip(1, 0, 16).actions[0, :-1], recorded[1:31:2])


def test_a_store_keeps_what_the_readers_give(recordings, monkeypatch):
    from ivideogpt.data import EpisodeStore

    monkeypatch.chdir(recordings)
    convert_to_store(video.tasks("recordings"), "stores/mine", facts=StoreFacts(name="mine"), workers=0)
    store = EpisodeStore("stores/mine")
    store.verify()
    assert store.keys == ["train/take1", "val/take1"] and store.splits == ["train", "val"]
    assert store.facts.actions.names == ("shoulder", "elbow", "gripper") and store.rates.tolist() == [30, 30]
    (given,) = video.tasks("recordings")[1].read()
    assert np.abs(store[1].frames.astype(int) - given.cameras["image"]).mean() < 1
    assert np.array_equal(store[1].actions, given.actions)


def test_a_bad_recording_stops_the_conversion_with_its_name(recordings, monkeypatch):
    monkeypatch.chdir(recordings)
    Path("recordings/val/take1.csv").write_text("1,2,3\n")
    with pytest.raises(UserError, match=r"val/take1.csv has shape \[1, 3\] for 33 frames"):
        convert_to_store(video.tasks("recordings"), "stores/mine", facts=StoreFacts(name="mine"), workers=0)


def test_the_options_of_the_page_exist():
    text = PAGE.read_text(encoding="utf-8")
    for option in ("val_every", "camera", "cameras"):
        assert f"--{option.replace('_', '-')}" in text and option in lerobot.tasks.__kwdefaults__
    assert "val_every" in video.tasks.__kwdefaults__
