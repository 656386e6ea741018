"""``ivideogpt plan``: results as they come, a page and videos, going on after a kill, and what a user can get wrong."""

import json

import pytest

pytest.importorskip("gym_pusht", reason="PushT needs gym-pusht: pip install 'ivideogpt[pusht]'")

from ivideogpt.evaluation.intervals import share_estimate  # noqa: E402
from ivideogpt.planning.pusht_benchmark import PushTBenchmark  # noqa: E402

QUICK = ("--budget", "small", "--goals.max-steps", "6")


def test_agents_are_compared_and_shown(run, tmp_path) -> None:
    done = run("plan", "pusht", "--agents", "simulator,random", "--instances", 2, "--pictures", 1, *QUICK)
    assert done.code == 0, done.err
    assert done.json.keys() == {
        *("success", "interval", "instances", "seconds_per_decision", "block_success", "covered"),
        *("coverage", "agents", "report"),
    }
    assert done.json["instances"] == 2 and done.json["agents"].keys() == {"simulator", "random"}
    assert done.json["seconds_per_decision"] > 0
    assert "simulator 2/2: missed after 6 steps" in done.out and "Audit of the starts" in done.out
    folder = tmp_path / "outputs" / "plan"
    page = (folder / "report.html").read_text()
    assert page.count("<canvas") == 2 + 3 and "what the plan expected" in page and "Agent: simulator" in page
    assert sorted(path.name for path in (folder / "videos").iterdir()) == ["random-0000.mp4", "simulator-0000.mp4"]
    lines = (folder / "simulator.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [0, 1]


def test_a_killed_benchmark_goes_on_and_ends_with_the_same_results(run, tmp_path, monkeypatch) -> None:
    options = ("--agents", "simulator", "--instances", 3, "--pictures", 0, *QUICK)
    assert run("plan", *options, "--output", "whole").code == 0
    original, runs = PushTBenchmark.run, []

    def killed(control, instance, policy, seed, *, pictures):
        if len(runs) == 2:
            raise KeyboardInterrupt
        runs.append(instance.number)
        return original(control, instance, policy, seed, pictures=pictures)

    monkeypatch.setattr(PushTBenchmark, "run", killed)
    assert run("plan", *options, "--output", "parts").code == 130
    # A kill in the middle of a line: the instance is made again.
    lines = (tmp_path / "parts" / "simulator.jsonl").read_text()
    (tmp_path / "parts" / "simulator.jsonl").write_text(lines[:-20])
    runs.clear()
    runs.append(-1)
    assert run("plan", *options, "--output", "parts").code == 130  # one more
    monkeypatch.setattr(PushTBenchmark, "run", original)
    done = run("plan", *options, "--output", "parts")
    assert done.code == 0 and done.json["instances"] == 3

    def results(folder: str) -> list[dict]:
        text = (tmp_path / folder / "simulator.jsonl").read_text()
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text.splitlines()]

    # The physics engine numbers its shapes as they are made, and rounds in the order of these numbers.
    for part, whole in zip(results("parts"), results("whole"), strict=True):
        assert part == pytest.approx(whole, abs=1e-3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--agents", "modle"), "there is no agent 'modle'; did you mean 'model'"),
        (("--budget", "tiny"), "there is no budget 'tiny'"),
        (("--instances", "0"), "instances is 0; expected at least 1"),
        (("--goals.first-seed", "5"), "first_seed is 5; expected at least 10000"),
        (("--checkpoint", "metaworld-64"), "metaworld-64 has frames of 64 px and actions of 4 numbers; PushT needs"),
        (('objective={"pixel": 1}',), "there is no objective 'pixel'; did you mean 'pixels'"),
        (("--planner.optimizer.name", "cems"), "cem"),
        (("hammer",), "there is no preset 'hammer' for plan"),
    ],
)
def test_mistakes_are_one_sentence(run, words, sentence) -> None:
    done = run("plan", *words)
    assert done.code == 2 and sentence in done.err and done.err.count("\n") == 1


def test_a_search_that_cannot_begin_leaves_no_settings_behind(run, tmp_path) -> None:
    options = ("--instances", 1, "--goals.max-steps", 2, "--pictures", 0)
    done = run("plan", *options, "--agents", "simulator", "--planner.speed", "draft")
    assert done.code == 2 and "the simulator has no draft" in done.err
    assert not (tmp_path / "outputs" / "plan" / "settings.json").exists()
    assert run("plan", *options, "--agents", "random").code == 0
    assert (tmp_path / "outputs" / "plan" / "settings.json").is_file()


def test_another_search_needs_another_folder(run, tmp_path) -> None:
    options = ("--agents", "random", "--instances", 1, "--goals.max-steps", 2)
    assert run("plan", *options).code == 0
    done = run("plan", *options, "--budget", "large")
    assert done.code == 2 and "holds a benchmark with other settings (planner)" in done.err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert "holds something else" in run("plan", *options, "--output", "mine").err
    lines = tmp_path / "outputs" / "plan" / "random.jsonl"
    lines.write_text("{}\n" + lines.read_text())
    assert "random.jsonl is damaged in line 1" in run("plan", *options).err


def test_the_interval_of_a_share_is_that_of_wilson() -> None:
    estimate = share_estimate(8, 10)
    assert estimate.value == 0.8 and abs(estimate.low - 0.4902) < 1e-3 and abs(estimate.high - 0.9433) < 1e-3
    assert share_estimate(0, 5).low < 1e-9 and 0.4 < share_estimate(0, 5).high < 0.5
    assert share_estimate(0, 0).value != share_estimate(0, 0).value
