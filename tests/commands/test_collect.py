"""``ivideogpt collect``: from a simulator to a store, and what is refused."""

import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.envs.record import metaworld_episodes
from ivideogpt.envs.record.metaworld_episodes import MetaworldRecording
from ivideogpt.envs.registry import METAWORLD_TASKS

ROUGH = ["--size", "16", "--steps", "3", "--shadow-size", "0", "--samples", "0", "--workers", "0"]


@pytest.fixture
def asked(monkeypatch):
    """What would be recorded: tasks, seeds, folder, recording and workers; nothing is."""
    calls = []
    monkeypatch.setattr(metaworld_episodes, "collect_metaworld", lambda *words: calls.append(words))
    monkeypatch.setattr("ivideogpt.commands.collect._print_store", lambda *words: None)
    monkeypatch.setattr("ivideogpt.data.store.reader.EpisodeStore", lambda folder: None)
    return calls


def test_episodes_of_a_task_become_a_store(run):
    pytest.importorskip("metaworld", reason="Meta-World needs its package: pip install 'ivideogpt[metaworld]'")
    pytest.importorskip("pyarrow", reason="stores need pyarrow: pip install 'ivideogpt[data]'")
    try:
        import ivideogpt.envs.metaworld  # noqa: F401
    except UserError as error:
        pytest.skip(f"no pictures can be drawn here: {error}")
    words = ("collect", "plate-slide", "--seeds", "9999:10001", "--noise", 0.1, "--out", "store", *ROUGH)
    done = run(*words)
    assert (done.code, done.err.count("Error")) == (0, 0)
    said = done.json
    assert said["episodes"] == 2 and said["store"] == "store"
    assert said["tasks"]["plate-slide"] | {"return": 0} == {"episodes": 2, "success": 0, "return": 0, "frames": 8}
    assert said["tasks"]["plate-slide"]["return"] > 0
    heading, row, _ = done.out.splitlines()
    assert heading.split() == ["task", "episodes", "success", "return", "frames"]
    assert row.split()[:3] == ["plate-slide", "2", "0.00"]
    again = run(*words)
    assert again.json["tasks"] == said["tasks"]
    assert run("data", "store").json["splits"] == {"test": 1, "train": 1}


def test_all_is_the_six_official_tasks(run, asked):
    assert run("collect", "all", "--out", "store", "--random-share", 0.5).code == 0
    ((tasks, seeds, folder, recording, workers),) = asked
    assert tasks == METAWORLD_TASKS and seeds == range(60) and str(folder) == "store" and workers is None
    assert recording == MetaworldRecording(random_share=0.5)


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        ("--episodes 5", range(5)),
        ("--seeds 7:9", range(7, 9)),
        ("--seeds 0:60 --episodes 60", range(60)),
    ],
)
def test_episodes_and_seeds_say_the_same(run, asked, words, seeds):
    assert run("collect", "hammer", "--out", "store", *words.split()).code == 0
    assert asked[0][1] == seeds


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("hammer --seeds 5:2", "seeds is '5:2'; expected 0 <= first < stop"),
        ("hammer --episodes 0", "episodes is 0; expected at least 1"),
        ("hammer --seeds 0:4 --episodes 3", "seeds is '0:4', which is 4 episodes, and episodes is 3"),
        ("hammer --noise -1", "noise is -1.0; expected a standard deviation of at least 0"),
        ("hammer --random-share 2", "random_share is 2.0; expected a share between 0 and 1"),
        ("hammer --nois 1", "unknown option --nois; did you mean 'noise'?"),
        ("metaworld", "metaworld needs a task; give metaworld/plate-slide, or metaworld/all"),
        ("hamer", "there is no environment 'hamer' to record; did you mean 'hammer'?"),
        ("hammer --length 3", "unknown option --length"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(run, tmp_path, asked, words, sentence):
    done = run("collect", *words.split(), "--out", "store")
    assert done.code == 2 and done.out == "" and done.err.count("\n") == 1
    assert sentence in done.err
    assert not asked and not (tmp_path / "store").exists()


def test_an_unknown_task_is_one_sentence(run, tmp_path):
    pytest.importorskip("metaworld", reason="Meta-World needs its package: pip install 'ivideogpt[metaworld]'")
    done = run("collect", "plate-slid", "--out", "store")
    assert done.code == 2 and done.err.count("\n") == 1 and done.err.startswith("ivideogpt: ")
    assert not (tmp_path / "store").exists()


def test_pusht_is_the_default_and_squares_need_no_simulator(run):
    done = run("collect", "moving-square", "--episodes", 4, "--out", "squares")
    assert done.code == 0 and done.json["tasks"]["squares"]["episodes"] == 5  # one more is for validation
    pytest.importorskip("gym_pusht", reason="PushT needs its package: pip install 'ivideogpt[pusht]'")
    done = run("collect", "--seeds", "0:2", "--out", "pusht", "--length", 4, "--workers", 0)
    assert done.code == 0 and done.json["tasks"]["pusht"] | {"return": 0} == {
        "episodes": 2, "success": 0, "return": 0, "frames": 8
    }  # fmt: skip
