"""``ivideogpt demos``: from a task to a store, and what is refused."""

import pytest

from ivideogpt.commands import demos
from ivideogpt.core.errors import UserError
from ivideogpt.envs.registry import METAWORLD_TASKS

ROUGH = ["--size", "16", "--steps", "3", "--shadow-size", "0", "--samples", "0", "--workers", "0"]


@pytest.fixture
def asked(monkeypatch):
    """What would be recorded: tasks, seeds, folder, recording and workers; nothing is."""
    calls = []
    monkeypatch.setattr(demos, "collect_metaworld", lambda *words: calls.append(words))
    monkeypatch.setattr(demos, "_print_store", lambda folder, seconds: None)
    return calls


def test_episodes_of_a_task_become_a_store(run):
    pytest.importorskip("metaworld", reason="Meta-World needs its package: pip install 'ivideogpt[metaworld]'")
    pytest.importorskip("pyarrow", reason="stores need pyarrow: pip install 'ivideogpt[data]'")
    try:
        import ivideogpt.envs.metaworld  # noqa: F401
    except UserError as error:
        pytest.skip(f"no pictures can be drawn here: {error}")
    words = ("demos", "collect", "plate-slide", "--seeds", "9999:10001", "--noise", 0.1, "--out", "store", *ROUGH)
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
    assert run("demos", "collect", "all", "--out", "store", "--random-share", 0.5).code == 0
    ((tasks, seeds, folder, recording, workers),) = asked
    assert tasks == METAWORLD_TASKS and seeds == range(60) and str(folder) == "store" and workers is None
    assert recording == demos.Recording(random_share=0.5)


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        ("--episodes 5", range(5)),
        ("--seeds 7:9", range(7, 9)),
        ("--seeds 0:60 --episodes 60", range(60)),
    ],
)
def test_episodes_and_seeds_say_the_same(run, asked, words, seeds):
    assert run("demos", "collect", "hammer", "--out", "store", *words.split()).code == 0
    assert asked[0][1] == seeds


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("colect hammer", "demos cannot 'colect'; did you mean 'collect'?"),
        ("collect hammer --seeds 5:2", "seeds is '5:2'; expected 0 <= first < stop"),
        ("collect hammer --episodes 0", "episodes is 0; expected at least 1"),
        ("collect hammer --seeds 0:4 --episodes 3", "seeds is '0:4', which is 4 episodes, and episodes is 3"),
        ("collect hammer --noise -1", "noise is -1.0; expected a standard deviation of at least 0"),
        ("collect hammer --random-share 2", "random_share is 2.0; expected a share between 0 and 1"),
        ("collect hammer --nois 1", "unknown option --nois; did you mean 'noise'?"),
        ("collect", "missing TASK"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(run, tmp_path, asked, words, sentence):
    done = run("demos", *words.split(), "--out", "store")
    assert done.code == 2 and done.out == "" and done.err.count("\n") == 1
    assert sentence in done.err
    assert not asked and not (tmp_path / "store").exists()


def test_an_unknown_task_is_one_sentence(run, tmp_path):
    pytest.importorskip("metaworld", reason="Meta-World needs its package: pip install 'ivideogpt[metaworld]'")
    done = run("demos", "collect", "plate-slid", "--out", "store")
    assert done.code == 2 and done.err.count("\n") == 1 and done.err.startswith("ivideogpt: ")
    assert not (tmp_path / "store").exists()
