"""Reading runs, putting seeds together, and what is said of them."""

import json
import math

import numpy as np
import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.mbrl.results import first_reached, grouped, iqm, over_seeds, over_tasks
from ivideogpt.mbrl.run_reader import read_run


@pytest.fixture
def write(tmp_path):
    """Writes a run and gives its folder; ``returns`` holds the episodes of each evaluation, 100 frames apart."""

    def make(name, returns, *, task="reacher", method="mbpo", preset="debug", seed=0, settings=None, tail=""):
        folder = tmp_path / name
        folder.mkdir()
        about = {"preset": preset, "task": task, "seed": seed, "method": method}
        nested = {"seed": seed, "task": task, "agent": {"batch_size": 8}, "world_model": {"rows": 4}, "frames": 10}
        (folder / "settings.json").write_text(json.dumps({**about, "settings": {**nested, **(settings or {})}}))
        lines = [
            {
                "step": 50 * i,
                "env_frames": 100 * i,
                "returns": found,
                "successes": [value > 5 for value in found],
                "lengths": [10] * len(found),
                "seconds": 7.0 * i,
                "imagined_transitions": 30 * i,
                "agent_updates": i,
            }
            for i, found in enumerate(returns)
        ]
        (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
        return folder

    return make


def groups_of(*folders):
    return grouped([read_run(folder) for folder in folders])


def test_a_run_is_read_as_it_was_written_and_a_torn_last_line_is_none(write) -> None:
    run = read_run(write("a", [[0.0, 2], [4, 10]], seed=3, tail='{"step": 100, "env_fr'))
    assert (run.task, run.method, run.preset, run.seed) == ("reacher", "mbpo", "debug", 3)
    assert [evaluation.env_frames for evaluation in run.evaluations] == [0, 100]
    assert (run.evaluations[1].mean_return, run.evaluations[1].success) == (7.0, 0.5)
    assert run.at(100).seconds == 7.0 and run.at(100).imagined_transitions == 30


def test_evaluations_that_a_resumed_run_repeated_count_once(write) -> None:
    folder = write("a", [[0.0], [1.0], [2.0]])
    lines = (folder / "evaluations.jsonl").read_text().splitlines()
    again = [lines[1].replace("[1.0]", "[9.0]")]
    (folder / "evaluations.jsonl").write_text("\n".join([*lines, *again]) + "\n")
    run = read_run(folder)
    assert [(evaluation.env_frames, evaluation.mean_return) for evaluation in run.evaluations] == [(0, 0.0), (100, 9.0)]


def test_a_folder_that_is_no_run_is_named(tmp_path, write) -> None:
    with pytest.raises(UserError, match="is no run of reinforcement learning.*settings.json is not there"):
        read_run(tmp_path)
    (tmp_path / "settings.json").write_text('{"preset": "demo"}')
    with pytest.raises(UserError, match="is no run of reinforcement learning.*no 'task'"):
        read_run(tmp_path)
    (tmp_path / "settings.json").write_text('{"preset": "", "task": "", "seed": 0, "method": "", "settings": []}')
    with pytest.raises(UserError, match="is no run of reinforcement learning.*no 'settings'"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="has no evaluation yet"):
        read_run(write("young", []))
    young = write("younger", [])
    (young / "evaluations.jsonl").unlink()
    with pytest.raises(UserError, match="has no evaluation yet"):
        read_run(young)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{broken", "line 1 of .* is no JSON"),
        ("[1]", r"line 1 of .* is \[1\]"),
        ('{"env_frames": 0}', "line 1 of .* has no 'returns'"),
        ('{"returns": [1.0, 2.0], "successes": [true]}', "2 returns and 1 successes"),
        ('{"returns": [], "successes": []}', "0 returns and 0 successes"),
        ('{"returns": [NaN], "successes": [true]}', "not finite"),
        ('{"returns": ["1"], "successes": [true]}', "returns.* is '1'"),
    ],
)
def test_a_damaged_line_is_named(write, line: str, sentence: str) -> None:
    folder = write("a", [[1.0]])
    rest = json.loads((folder / "evaluations.jsonl").read_text())
    if line.startswith('{"returns"'):
        line = json.dumps(rest | json.loads(line))
    (folder / "evaluations.jsonl").write_text(f"{line}\n{json.dumps(rest | {'env_frames': 100})}\n")
    with pytest.raises(UserError, match=sentence):
        read_run(folder)


def test_runs_are_a_group_where_only_seed_and_length_differ(write) -> None:
    first, second = write("a", [[1.0]], seed=1), write("b", [[3.0]], seed=0, settings={"frames": 20})
    other = write("c", [[3.0]], seed=2, settings={"agent": {"batch_size": 16}})
    together, alone = groups_of(first, second, other)
    assert [run.seed for run in together.runs] == [0, 1] and [run.seed for run in alone.runs] == [2]
    assert (together.label, alone.label) == ("mbpo, agent.batch_size 8", "mbpo, agent.batch_size 16")


def test_the_method_alone_names_what_nothing_else_tells_apart(write) -> None:
    folders = [write("a", [[1.0]]), write("b", [[1.0]], method="model-free", settings={"world_model": {"rows": 9}})]
    folders.append(write("c", [[1.0]], method="model-free", seed=1))
    assert [(group.label, len(group.runs)) for group in groups_of(*folders)] == [("mbpo", 1), ("model-free", 2)]


def test_tasks_and_presets_are_named_where_there_are_several(write) -> None:
    folders = [write("a", [[1.0]]), write("b", [[1.0]], preset="other"), write("c", [[1.0]], task="pusht")]
    assert [group.label for group in groups_of(*folders)] == [
        "reacher, mbpo, debug",
        "reacher, mbpo, other",
        "pusht, mbpo",
    ]


def test_no_two_groups_of_a_task_have_the_same_name(write) -> None:
    agents = ({"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 2}, {"a": 2, "b": 2, "c": 1}, {"a": 2, "b": 2, "c": 2})
    folders = [write(str(number), [[1.0]], settings={"agent": agent}) for number, agent in enumerate(agents)]
    assert [group.label for group in groups_of(*folders)] == [
        "mbpo, agent.a 1, agent.b 1, 1 more",
        "mbpo, agent.a 1, agent.b 1, 1 more (2)",
        "mbpo, agent.a 2, agent.b 2, 1 more",
        "mbpo, agent.a 2, agent.b 2, 1 more (2)",
    ]


def test_the_same_seed_twice_is_no_second_seed(write) -> None:
    with pytest.raises(UserError, match="the same seed, 0; give one of them"):
        groups_of(write("a", [[1.0]]), write("b", [[1.0]]))
    with pytest.raises(UserError, match="no run to sum up"):
        grouped([])


def test_only_evaluations_that_all_seeds_have_are_summed_up(write) -> None:
    (group,) = groups_of(write("a", [[0.0], [2.0], [8.0]]), write("b", [[2.0], [4.0]], seed=1))
    assert group.frames == [0, 100] and group.left_out == 1
    assert [point.returns.value for point in group.points] == [1.0, 3.0]
    assert (group.points[1].returns.low, group.points[1].returns.high) == (2.0, 4.0)
    assert (group.seconds, group.imagined_transitions) == (7.0, 30)
    assert group.best.env_frames == 100


def test_seeds_that_were_never_evaluated_at_the_same_frames_are_refused(write) -> None:
    folders = [write("a", [[0.0]]), write("b", [[1.0]], seed=1)]
    line = (folders[1] / "evaluations.jsonl").read_text()
    (folders[1] / "evaluations.jsonl").write_text(line.replace('"env_frames": 0', '"env_frames": 5'))
    with pytest.raises(UserError, match="never evaluated after the same number of frames"):
        groups_of(*folders)


def test_seeds_count_alike_however_many_episodes_they_played(write) -> None:
    (group,) = groups_of(write("a", [[10.0] * 9]), write("b", [[0.0]], seed=1))
    assert group.points[0].returns.value == 5.0 and group.points[0].success.value == 0.5


def test_one_seed_gives_its_mean_and_an_interval_over_episodes(write) -> None:
    """Not the interquartile mean of episodes: of 6 successes in 20 that would be a tenth."""
    (group,) = groups_of(write("a", [[10.0] * 6 + [0.0] * 14]))
    point = group.points[0]
    assert point.returns.value == pytest.approx(3.0) and point.success.value == pytest.approx(0.3)
    assert 0.05 <= point.success.low < 0.2 and 0.4 < point.success.high <= 0.6
    (single,) = groups_of(write("b", [[10.0]]))
    assert math.isnan(single.points[0].returns.low) and single.points[0].returns.value == 10


def test_iqm_leaves_a_quarter_out_at_each_end() -> None:
    # Of nine, two at each end: 3, 4, 5, 6 and 10 remain.
    assert iqm(np.array([100.0, 3, -50, 4, 5, 6, 10, 1, 99])) == pytest.approx(28 / 5)
    assert iqm(np.array([[1.0, 2, 6], [0, 0, 3]])).tolist() == [3.0, 1.0]
    assert iqm(np.array([0.0, 2, 4, 1000])) == 3.0


def test_the_interval_over_seeds_holds_the_truth_in_nine_of_ten_cases_or_more() -> None:
    random, inside = np.random.default_rng(0), 0
    for _ in range(300):
        estimate = over_seeds([random.normal(3.0, 2.0, 24)])
        inside += estimate.low <= 3.0 <= estimate.high
    assert 0.88 <= inside / 300 <= 0.98


def test_tasks_are_strata_whose_differences_do_not_widen_the_interval() -> None:
    random = np.random.default_rng(0)
    easy, middle, hard = (centre + 0.02 * random.normal(size=10) for centre in (0.9, 0.5, 0.1))
    together = over_seeds([easy, middle, hard])
    mixed = over_seeds([np.concatenate([easy, middle, hard])])
    assert together.value == mixed.value == pytest.approx(0.5, abs=0.03)
    assert together.high - together.low < 0.2 * (mixed.high - mixed.low)
    assert math.isnan(over_seeds([easy, np.array([0.5])]).low)
    assert over_seeds([easy]) == over_seeds([easy]) != over_seeds([easy], seed=1)


def test_success_over_tasks_is_of_methods_that_several_tasks_have(write) -> None:
    folders = [write(f"{task}-{seed}", [[10.0]], task=task, seed=seed) for task in "ab" for seed in (0, 1)]
    folders.append(write("c", [[0.0]], task="a", method="model-free"))
    estimates = over_tasks(groups_of(*folders))
    assert list(estimates) == ["mbpo"] and estimates["mbpo"].value == estimates["mbpo"].low == 1.0


def test_first_reached_is_the_first_evaluation_at_or_above_and_none_where_it_never_was(write) -> None:
    a, b = write("a", [[0.0], [4, 6], [1], [9]]), write("b", [[0.0], [4.9]], seed=7)
    assert first_reached(groups_of(a, b)[0], 5.0) == {0: 100, 7: None}
