"""A benchmark in the style of VP2, in a toy world: goal files, the trial of 15 steps, its scores, and the bounds."""

from pathlib import Path

import h5py
import numpy as np
import pytest

pytest.importorskip("gymnasium")

from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.envs.goal_environment import GoalEnvironment  # noqa: E402
from ivideogpt.envs.registry import ENVIRONMENTS, ROBODESK_TASKS, EnvironmentSpec  # noqa: E402
from ivideogpt.planning.config import VP2Goals, VP2Planning  # noqa: E402
from ivideogpt.planning.objectives import make_objective  # noqa: E402
from ivideogpt.planning.optimizers import ActionNoise, OptimizerConfig  # noqa: E402
from ivideogpt.planning.planner import Planner, PlannerConfig  # noqa: E402
from ivideogpt.planning.vp2_benchmark import VP2Benchmark  # noqa: E402
from ivideogpt.planning.vp2_goals import GoalEpisode, goal_instance, read_goals, record_goals, write_goals  # noqa: E402

SIZE = 16


class ToyPusher(GoalEnvironment):
    """A hand on a line that pushes a block to the right; both are drawn as columns of a picture."""

    cameras = ("toy", "old_toy")
    solved_score = 0.05
    blank = False

    def __init__(self, *, steps: int = 15) -> None:
        super().__init__(1, seed=None, size=SIZE, steps=steps, render_mode=None)
        self.hand = self.block = 0.0

    def _place(self, seed: int) -> None:
        self.hand, self.block = 0.1, float(np.random.default_rng(seed).uniform(0.3, 0.5))

    def simulate(self, action: np.ndarray) -> float:
        self.hand = min(max(self.hand + 0.1 * float(np.clip(action[0], -1, 1)), 0.0), 0.9)
        self.block = max(self.block, self.hand)
        return 0.0 if self.goal_state is None else -self.score() - 0.1 * (self.block - self.hand)

    def picture(self) -> np.ndarray:
        frame = np.zeros((SIZE, SIZE, 3), np.uint8)
        if not self.blank:
            frame[:, int(self.block * SIZE), 0] = 255
            frame[:, int(self.hand * SIZE), 1] = 255
        return frame

    def save_state(self) -> np.ndarray:
        return np.array([self.hand, self.block])

    def restore_state(self, state: np.ndarray) -> None:
        if state.shape != (2,):
            raise UserError(f"a state has the shape {list(state.shape)}; the toy has 2 numbers")
        self.hand, self.block = map(float, state)

    def score(self) -> float:
        return float("nan") if self.goal_state is None else abs(self.block - float(self.goal_state[1]))

    def scripted_action(self) -> np.ndarray:
        return np.array([1.0])

    def is_goal(self, start: np.ndarray) -> bool:
        return self.block - start[1] > 0.2


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    spec = EnvironmentSpec(id="test/ToyPusher-v0", entry_point=f"{__name__}:ToyPusher", extra="rl")
    monkeypatch.setitem(ENVIRONMENTS, "toy", spec)
    monkeypatch.setattr("ivideogpt.planning.vp2_benchmark.make", lambda name, **options: ToyPusher(**options))


def benchmark(**goals) -> VP2Benchmark:
    return VP2Benchmark(VP2Planning(environment="toy", goals=VP2Goals(**goals)))


def planner(bench: VP2Benchmark, agent: str) -> Planner:
    settings = PlannerConfig(
        horizon=4,
        optimizer=OptimizerConfig(name="cem", candidates=24, iterations=2, elites=4),
        noise=ActionNoise(std=(0.7,)),
    )
    return Planner(bench.planning_model(agent), make_objective({"reward": 1.0}, None), settings)


def test_the_script_records_goals_that_are_apart_from_their_starts() -> None:
    (first, second) = benchmark(first_seed=3).instances(2)
    (again,) = benchmark(first_seed=4).instances(1)
    assert (first.number, second.number) == (0, 1) and np.array_equal(second.goal_state, again.goal_state)
    assert first.goal_state[1] - first.start[1] > 0.2 and first.goal.shape == (SIZE, SIZE, 3)


def test_a_goal_file_is_read_as_it_was_written_and_has_the_keys_of_vp2(tmp_path) -> None:
    episodes = [episode for episode, _ in zip(record_goals(ToyPusher(), 0, all_frames=True), range(11), strict=False)]
    episodes[1] = GoalEpisode(episodes[1].states, episodes[1].frames, start=2, scene="<mujoco/>")
    write_goals(tmp_path / "goals.hdf5", episodes, "toy")
    with h5py.File(tmp_path / "goals.hdf5") as file:
        demo = file["data/demo_2"]
        assert demo["obs/toy_image"].shape == (len(demo["states"]), SIZE, SIZE, 3)
        assert demo["start_index"][()] == 2 and demo.attrs["model_file"] == "<mujoco/>"
        assert len(file["data"]) == 11
    read = read_goals(str(tmp_path / "goals.hdf5"), ("other", "toy"))
    for number, (before, after) in enumerate(zip(episodes, read, strict=True)):  # demo_10 comes after demo_9
        was, now = goal_instance(number, before, SIZE), goal_instance(number, after, SIZE)
        assert np.array_equal(was.start, now.start) and np.array_equal(was.goal_state, now.goal_state)
        assert np.array_equal(was.goal, now.goal)
    from_file = benchmark(file=str(tmp_path / "goals.hdf5")).instances(2)
    assert np.array_equal(from_file[1].start, episodes[1].states[2])
    with pytest.raises(UserError, match="has 11 goals and instances is 12"):
        benchmark(file=str(tmp_path / "goals.hdf5")).instances(12)


def test_a_goal_file_of_vp2_without_a_start_begins_at_its_first_state(tmp_path) -> None:
    with h5py.File(tmp_path / "goals.hdf5", "w") as file:
        file["data/demo_1/states"] = np.array([[0.1, 0.3], [0.2, 0.5]])
        file["data/demo_1/obs/old_toy_image"] = np.full((2, 32, 32, 3), 7, np.uint8)
    (instance,) = benchmark(file=str(tmp_path / "goals.hdf5")).instances(1)
    assert instance.start.tolist() == [0.1, 0.3] and instance.goal_state.tolist() == [0.2, 0.5]
    assert instance.goal.shape == (SIZE, SIZE, 3) and (instance.goal == 7).all()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"other": np.zeros(1)}, "data"),
        ({"data/x": np.zeros(1)}, "has no data/demo_1"),
        ({"data/demo_1/states": np.zeros((2, 2))}, "obs/toy_image"),
        (
            {"data/demo_1/states": np.zeros((2, 2)), "data/demo_1/obs/toy_image": np.zeros((2, 4, 4, 3))},
            "expected uint8",
        ),
        (
            {
                "data/demo_1/states": np.zeros((2, 2)),
                "data/demo_1/obs/toy_image": np.zeros((2, 4, 4, 3), np.uint8),
                "data/demo_1/start_index": 5,
            },
            "start_index 5",
        ),
        (
            {"data/demo_1/states": np.zeros((2, 3)), "data/demo_1/obs/toy_image": np.zeros((2, 4, 4, 3), np.uint8)},
            "a state has the shape",
        ),
    ],
)
def test_other_files_are_refused_in_one_sentence(tmp_path, content, sentence) -> None:
    with h5py.File(tmp_path / "goals.hdf5", "w") as file:
        for key, value in content.items():
            file[key] = value
    with pytest.raises(UserError, match=sentence) as raised:
        benchmark(file=str(tmp_path / "goals.hdf5")).instances(1)
    assert "\n" not in str(raised.value)


class Constant:
    """An agent that always does the same, and remembers what it saw."""

    def __init__(self, action: float) -> None:
        self.action, self.seen = action, []

    def reset(self, seeds, instructions=None) -> None:
        self.seeds = seeds

    def act(self, observation):
        self.seen.append(observation["frames"][0])
        return np.array([[self.action]], np.float32)


def test_a_trial_is_that_of_vp2() -> None:
    bench = benchmark()
    (instance,) = bench.instances(1)
    agent = Constant(0.0)
    result, recording = bench.run(instance, agent, seed=5)
    assert result.steps == 15 and len(result.scores) == 16 and not result.success and agent.seeds == [5]
    # 14 decisions: the first of the 15 steps has no action; the frame of the start is seen twice.
    assert len(agent.seen) == 14 and len(agent.seen[0]) == 3 and np.array_equal(agent.seen[0][0], agent.seen[0][1])
    assert recording.frames.shape == recording.planned.shape == (15, SIZE, SIZE, 3)
    result, _ = bench.run(instance, Constant(0.5))
    assert result.success and min(result.scores) < 0.05


def test_blank_pictures_are_tried_again_and_then_reported(monkeypatch) -> None:
    bench = benchmark(max_steps=3)
    (instance,) = bench.instances(1)
    agent = Constant(0.0)
    monkeypatch.setattr(ToyPusher, "blank", True)
    with pytest.raises(UserError, match="draws black or white pictures"):
        bench.run(instance, agent)
    assert len(agent.seen) == 3 * 2


def test_planning_in_the_simulator_reaches_goals_that_a_world_without_movement_does_not() -> None:
    bench = benchmark()
    instances = bench.instances(3)
    results = {
        name: [bench.run(instance, planner(bench, name))[0] for instance in instances]
        for name in ("simulator", "repeat-last-frame")
    }
    assert all(result.success and 5 <= result.decisions <= 14 for result in results["simulator"])
    assert not any(result.success for result in results["repeat-last-frame"])
    figures = {figure.name: figure.estimate(results["simulator"]).value for figure in bench.figures}
    assert figures["within_10_cm"] == 1 and figures["distance"] < 5


def test_every_task_of_vp2_has_its_search() -> None:
    from ivideogpt.configs.registry import find_preset

    for task in ROBODESK_TASKS:
        settings = find_preset(f"robodesk/{task}", "planning")
        optimizer = settings.planner.optimizer
        assert settings.environment == f"robodesk/{task}" and settings.objective == {"pixels": 0.5, "classifier": 10.0}
        assert optimizer.name == "mppi" and optimizer.sharpness == 0.05 and settings.planner.horizon == 10
        assert optimizer.candidates == (800 if task in ("open_slide", "open_drawer") else 200)
    settings = find_preset("robosuite/push", "planning")
    assert settings.objective == {"pixels": 1.0} and settings.planner.noise.std == (0.5, 0.5, 0.5, 0.0)


def classifier_of(task: str, folder: Path) -> None:
    """Write an untrained classifier of a task."""
    from ivideogpt.models.success_classifier import ClassifierConfig, ClassifierFacts, SuccessClassifier

    network = ClassifierConfig(resolution=SIZE, width=8, hidden=4)
    SuccessClassifier(network, ClassifierFacts(task=task)).save_pretrained(folder)


def test_a_success_classifier_of_the_task_is_an_objective(tmp_path, capsys, monkeypatch) -> None:
    from ivideogpt.cli import main

    monkeypatch.chdir(tmp_path)
    classifier_of("robosuite/push", tmp_path / "push")
    options = ["--instances", "1", "--budget", "small", "--planner.noise.std", "0.7", "--goals.max-steps", "3"]
    options += ["--agents", "simulator", 'objective={"pixels": 0.5, "classifier": 10}', "--classifier", "push"]
    assert main(["plan", "robosuite/push", *options]) == 0
    assert "success classifier of robosuite/push" in capsys.readouterr().out


def test_the_command_writes_a_goal_file_that_the_benchmark_reads(tmp_path, capsys, monkeypatch) -> None:
    from ivideogpt.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["plan", "goals", "robosuite/push", "--instances", "2", "--out", "goals.hdf5"]) == 0
    assert '"goals": 2' in capsys.readouterr().out
    options = ["--goals.file", "goals.hdf5", "--instances", "2", "--budget", "small", "--planner.noise.std", "0.7"]
    options += ["--agents", "simulator,random", "--planner.horizon", "3", 'objective={"reward": 1}', "--pictures", "1"]
    assert main(["plan", "robosuite/push", *options]) == 0
    printed = capsys.readouterr().out
    assert "simulator 2/2" in printed and "distance, cm" in printed and '"within_10_cm"' in printed
    page = (tmp_path / "outputs" / "plan" / "report.html").read_text()
    assert "VP2-style" in page and "of goals.hdf5" in page and "Instance 1<" in page
    assert main(["plan", "robosuite/push", *options]) == 0  # all results are kept
    assert "simulator 2/2" not in capsys.readouterr().out
    classifier_of("robodesk/push_red", tmp_path / "red")
    objective = 'objective={"classifier": 1}'
    for words, sentence in (
        (
            ["plan", "robosuite/push", "--agents", "simulator", objective, "--classifier", "red", "--output", "other"],
            "is of the task 'robodesk/push_red', not 'robosuite/push'",
        ),
        (
            ["plan", "robosuite/push", "--agents", "random", "--classifier", "nothing"],
            "nothing holds no success classifier",
        ),
        (["plan", "goals", "robosuite/push", "--out", "goals.hdf5"], "'goals.hdf5' exists"),
        (["plan", "goals", "pusht", "--out", "more.hdf5"], "pusht has no goal files"),
        (["plan", "robosuite/push", "--agents", "script"], "there is no agent 'script'"),
        (["plan", "robosuite/push", "--output", "other"], "the agent model needs a world model of this environment"),
        (["plan", "robodesk/push_red", "--agents", "simulator", "--output", "other"], "needs a success classifier"),
    ):
        assert main(words) == 2
        assert sentence in capsys.readouterr().err


def test_a_world_model_of_another_world_and_a_missing_package_are_refused(model_of, monkeypatch) -> None:
    import importlib.util
    import sys

    from ivideogpt.core.errors import MissingExtraError
    from ivideogpt.envs import registry

    with pytest.raises(UserError, match="toy needs 16 px and 1: train a model on it"):
        benchmark().imagined(model_of("conditional"), 0)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name.startswith("robo") else find(name, *a)
    )
    for name, module in (("robodesk/push_red", "robodesk"), ("robosuite/push", "robosuite_push")):
        monkeypatch.delitem(sys.modules, f"ivideogpt.envs.{module}", raising=False)
        with pytest.raises(MissingExtraError, match=r"is not installed; run: pip install 'ivideogpt\[vp2\]'"):
            registry.make(name)
    with pytest.raises(UserError, match="pusht has no goals; expected one such as robodesk/push_red"):
        monkeypatch.setattr("ivideogpt.planning.vp2_benchmark.make", lambda name, **options: NoGoals())
        VP2Benchmark(VP2Planning(environment="pusht"))


class NoGoals:
    unwrapped = None
