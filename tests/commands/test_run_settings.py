"""A run goes on with the data it began with, wherever that lies now."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ivideogpt.cli import main
from ivideogpt.commands.run_settings import data_facts, keep_settings, kept_recipe
from ivideogpt.configs.registry import find_preset
from ivideogpt.core.distributed import Ranks
from ivideogpt.core.errors import UserError
from ivideogpt.data.clips import ClipSpec
from ivideogpt.data.convert.source_episode import SourceEpisode
from ivideogpt.data.mixture_reader import OpenMixture
from ivideogpt.data.mixtures import Mixture, MixtureSource
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, convert_to_store
from ivideogpt.envs.record.moving_square import collect_squares


@pytest.fixture
def store(tmp_path):
    collect_squares(tmp_path / "store")
    return tmp_path / "store"


def facts(*stores, **source):
    sources = tuple(MixtureSource(path=str(path), **source) for path in stores)
    return data_facts(OpenMixture(Mixture(sources=sources), ClipSpec(context_frames=2, frames=4, size=16)))


def keep(folder, data):
    keep_settings(folder, find_preset("debug"), "tokenizer", data, Ranks())


def test_a_store_that_has_moved_is_the_same_data(tmp_path, store):
    run = tmp_path / "run"
    keep(run, facts(store))
    store.rename(tmp_path / "elsewhere")
    keep(run, facts(tmp_path / "elsewhere"))
    assert str(tmp_path / "elsewhere") in (run / "settings.json").read_text()


def test_other_data_is_refused_and_what_differs_is_named(tmp_path, store):
    run, more = tmp_path / "run", tmp_path / "more"
    collect_squares(more, episodes=20)
    keep(run, facts(store))
    kept = (run / "settings.json").read_text()
    with pytest.raises(UserError, match=f"on {store} with episodes 16, and {more} has 20; .* deleting 'data' from"):
        keep(run, facts(more))
    with pytest.raises(UserError, match="with weight 1.0, and .* has 2.0"):
        keep(run, facts(store, weight=2.0))
    with pytest.raises(UserError, match="on 1 stores, not 2"):
        keep(run, facts(store, more))
    assert (run / "settings.json").read_text() == kept


@pytest.mark.parametrize("changed", ["actions", "keys"])
def test_as_many_other_episodes_are_other_data(tmp_path, changed):
    def episodes(name):
        other = name == "b"
        for index in range(2):
            yield SourceEpisode(
                key=f"{'other' if other and changed == 'keys' else 'one'}-{index}",
                split="train",
                cameras={"image": np.zeros((6, 16, 16, 3), np.uint8)},
                actions=np.full((6, 1), 1.0 + (other and changed == "actions"), np.float32),
            )

    for name in "ab":
        tasks = [ShardTask("train-00000", lambda name=name: episodes(name))]
        convert_to_store(tasks, tmp_path / name, facts=StoreFacts(name="made-up"), workers=0)
    keep(tmp_path / "run", facts(tmp_path / "a"))
    with pytest.raises(UserError, match="with content '.*', and .* has '"):
        keep(tmp_path / "run", facts(tmp_path / "b"))


def test_a_run_of_before_data_was_kept_goes_on_and_so_does_one_that_is_to(tmp_path, store):
    run, more = tmp_path / "run", tmp_path / "more"
    collect_squares(more, episodes=20)
    keep(run, facts(store))
    settings = json.loads((run / "settings.json").read_text())
    del settings["data"]
    (run / "settings.json").write_text(json.dumps(settings))
    keep(run, facts(more))
    assert json.loads((run / "settings.json").read_text())["data"]["sources"][0]["episodes"] == 20
    with pytest.raises(UserError, match="with episodes 20"):
        keep(run, facts(store))


def test_another_tokenizer_is_refused(tmp_path, store):
    data = facts(store)
    keep(tmp_path / "run", replace(data, tokenizer="a" * 64))
    with pytest.raises(UserError, match="with the tokenizer aaaaaaaaaaaa, not bbbbbbbbbbbb; give the same"):
        keep(tmp_path / "run", replace(data, tokenizer="b" * 64))


def test_clips_that_were_cut_out_otherwise_are_other_data(tmp_path, store):
    def kept(folder, hop, count):
        """What is read of a token store: 6 frames every ``hop`` frames."""
        tokens = [None] * count
        facts = SimpleNamespace(whole=False, frames=6, hop=hop, goal_first=False)
        return type("Kept", (list,), {"folder": folder, "facts": facts})(tokens)

    clips = ClipSpec(context_frames=2, frames=4, size=16)
    opened = OpenMixture(Mixture(sources=(MixtureSource(path=str(store)),)), clips)
    first, moved, second = (data_facts(opened, tokens=kept(*x)) for x in (("a", 6, 32), ("b", 6, 32), ("a", 1, 112)))
    keep(tmp_path / "run", first)
    keep(tmp_path / "run", moved)
    with pytest.raises(UserError, match="on 32 clips of 6 frames, one every 6, not 112 clips of 6 frames, one every 1"):
        keep(tmp_path / "run", second)
    with pytest.raises(UserError, match="not any clip of its episodes"):
        keep(tmp_path / "run", data_facts(opened))
    keep(tmp_path / "old", replace(first, takes=None))
    keep(tmp_path / "old", second)


def test_a_damaged_entry_is_a_user_error(tmp_path, store):
    run = tmp_path / "run"
    keep(run, facts(store))
    settings = json.loads((run / "settings.json").read_text())
    (run / "settings.json").write_text(json.dumps(settings | {"data": ["store"]}))
    with pytest.raises(UserError, match="settings.json: data is"):
        keep(run, facts(store))


def test_a_command_refuses_other_data_in_one_sentence(tmp_path, store, capsys):
    words = ["train-tokenizer", "debug", "--run", str(tmp_path / "run"), "--tracker", "none", "--data"]
    assert main([*words, str(store), "--steps", "1"]) == 0
    shutil.move(store, tmp_path / "moved")
    assert main([*words, str(tmp_path / "moved"), "--steps", "2"]) == 0
    collect_squares(tmp_path / "other", episodes=4)
    capsys.readouterr()
    assert main([*words, str(tmp_path / "other"), "--steps", "3"]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "with episodes 16" in said and "settings.json" in said


def test_a_run_goes_on_from_its_folder_alone_and_refuses_other_settings(tmp_path, store, capsys, monkeypatch):
    words = ["train-tokenizer", "debug", "--data", str(store), "--tracker", "none", "--run", str(tmp_path / "run")]
    assert main([*words, "--steps", "1", "--tokenizer.batch-size", "3", "tokenizer.betas=[0.8,0.95]"]) == 0
    monkeypatch.chdir(tmp_path)  # wherever it is started
    assert main(["train-tokenizer", "--run", "run", "--tracker", "none", "--steps", "2"]) == 0
    kept = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (kept["preset"], kept["tokenizer.batch_size"], kept["tokenizer.betas"]) == ("debug", 3, [0.8, 0.95])
    assert main([*words, "tokenizer.batch_size=4"]) == 2
    assert "was begun with tokenizer.batch_size 3, not 4" in capsys.readouterr().err
    assert main(["train-tokenizer", "robot-64", "--run", "run"]) == 2
    assert "was begun with the preset debug, not robot-64" in capsys.readouterr().err
    assert main(["train-tokenizer", "--run", "new"]) == 2
    assert "a new run needs a preset; expected one of debug" in capsys.readouterr().err


def test_settings_of_an_older_version_are_read_under_their_new_names(tmp_path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    kept = {
        "preset": "debug",
        "model.action_frequencies": 3,
        "model.slots": True,
        "model.action_reconstruction": True,
        "model.forecast_width": 0,
        "model.forecast_blocks": 2,
        "model.rewards": True,
        "model.terminations": False,
    }
    (folder / "settings.json").write_text(json.dumps(kept))
    preset, heads = find_preset("debug").model.heads, kept_recipe(folder, None).model.heads
    assert heads == replace(
        preset, action_frequencies=3, action_reconstruction=True, forecast_grid=0, forecast_blocks=2
    )
    (folder / "settings.json").write_text(json.dumps(kept | {"model.forecast_width": 24, "model.slots": False}))
    heads = kept_recipe(folder, None).model.heads
    assert (heads.forecast_grid, heads.forecast_width, heads.slots) == (preset.forecast_grid, 24, 0)
