"""PushT to a goal: instances that can be reached, copies of the simulator, success, and what baselines do."""

import numpy as np
import pytest
import torch

pytest.importorskip("gym_pusht", reason="PushT needs gym-pusht: pip install 'ivideogpt[pusht]'")

from dataclasses import replace  # noqa: E402

from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.envs.pusht import PushT, normalised_action  # noqa: E402
from ivideogpt.envs.record.pusht_episodes import collect_pusht  # noqa: E402
from ivideogpt.planning.config import PushTGoals  # noqa: E402
from ivideogpt.planning.objectives import Goal, make_objective  # noqa: E402
from ivideogpt.planning.planner import Planner  # noqa: E402
from ivideogpt.planning.pusht_benchmark import (  # noqa: E402
    PushTBenchmark,
    agent_place,
    block_errors,
    pusht_instances,
    reached,
)


class Replay:
    """The recorded actions of an episode, from a frame on."""

    def __init__(self, seed: int, start: int) -> None:
        (episode,) = collect_pusht([seed], 48)
        self.actions = list(normalised_action(episode.actions[start:]))

    def reset(self, seeds, instructions=None) -> None:
        pass

    def act(self, observation):
        self.frames = observation["frames"]
        return self.actions.pop(0)[None]


@pytest.fixture(scope="module")
def instances():
    return pusht_instances(PushTGoals(), 3)


def test_the_recorded_actions_reach_every_goal_exactly(instances) -> None:
    control = PushTBenchmark(PushTGoals())
    for instance in instances:
        policy = Replay(instance.seed, instance.start)
        result, recording = control.run(instance, policy)
        assert policy.frames.shape[:2] == (1, instance.start + result.steps)  # all before the last one
        assert result.success and not result.solved_at_start and result.steps <= 25
        assert np.array_equal(recording.frames[0], instance.frames[0])
        assert np.array_equal(recording.frames, instance.frames[: result.steps + 1])


def test_instances_are_held_out_and_repeatable(instances) -> None:
    again = pusht_instances(PushTGoals(), 2)
    assert [(i.seed, i.start) for i in again] == [(i.seed, i.start) for i in instances[:2]]
    assert min(i.seed for i in instances) >= 20_000
    with pytest.raises(UserError, match="first_seed is 9999; expected at least 10000"):
        PushTGoals(first_seed=9999)
    anywhere = pusht_instances(PushTGoals(moving=False), 1)
    assert anywhere[0].seed == 20_000


def test_goals_that_hardly_any_episode_has_are_refused(monkeypatch) -> None:
    for moving, most in ((True, 43), (False, 46)):
        assert len(pusht_instances(PushTGoals(goal_steps=most, moving=moving), 1)) == 1
        with pytest.raises(UserError, match=f"goal_steps is {most + 1}; expected at most {most}"):
            PushTGoals(goal_steps=most + 1, moving=moving)
    monkeypatch.setattr("ivideogpt.planning.pusht_benchmark._MOST_UNFIT", 5)
    with pytest.raises(UserError, match="in 5 recorded episodes in a row the block never moves 64 px within 1 steps"):
        pusht_instances(PushTGoals(goal_steps=1), 1)


def test_a_copy_of_the_simulator_goes_on_like_the_original() -> None:
    original, copy = PushT(terminate_on_success=False), PushT(terminate_on_success=False)
    _, info = original.reset(seed=3)
    copy.reset(seed=4)
    contacts = 0
    for step in range(60):
        if step % 12 == 0:
            copy.restore_state(original.save_state())
            assert np.array_equal(copy.picture(), original.picture())
        raw = info["state"][2:4] + 90 * np.array([np.cos(step / 5), np.sin(step / 5)])
        action = np.clip(normalised_action(raw), -1, 1)
        _, reward, _, _, info = original.step(action)
        assert abs(copy.simulate(action) - reward) < 0.03
        contacts += info["n_contacts"] > 0
        assert np.abs(copy.save_state() - original.save_state())[[0, 1, 4, 5]].max() < 2
    assert contacts > 10


def test_candidates_of_the_simulator_begin_at_the_same_state_and_leave_it_alone(instances) -> None:
    control = PushTBenchmark(PushTGoals())
    control.environment.reset(seed=5)
    state = control.environment.save_state()
    root = control.planning_model("simulator").root({})
    actions = torch.tensor([[[0.5, 0.5]] * 3, [[-0.5, 0.2]] * 3, [[0.5, 0.5]] * 3])
    rollout = root.rollout(actions)
    frames = rollout.frames_at([0, -1])
    assert frames.shape == (3, 2, 3, 64, 64) and torch.equal(frames[0], frames[2])
    assert not torch.equal(frames[0], frames[1]) and rollout.rewards.shape == (3, 3)
    assert np.array_equal(control.environment.save_state(), state)
    with pytest.raises(UserError, match="the simulator has no draft"):
        root.draft(actions)


def test_the_objective_is_highest_at_the_goal(instances) -> None:
    control = PushTBenchmark(PushTGoals())
    control._begin(instances[0])
    recorded = torch.from_numpy(np.stack(Replay(instances[0].seed, instances[0].start).actions[:25]))
    still = torch.from_numpy(agent_place(instances[0].frames[0])).expand(25, 2)
    goal = Goal(torch.from_numpy(instances[0].goal).permute(2, 0, 1).float() / 255)
    rollout = control.planning_model("simulator").root({}).rollout(torch.stack([recorded, still]))
    score = make_objective({"pusht-block": 1.0, "pusht-agent": 0.3}, None)(rollout, goal)
    assert score[0] > -0.2 and score[1] < -4


def test_a_success_needs_agent_block_and_angle() -> None:
    goal = np.array([100.0, 100.0, 200.0, 200.0, 3.0])
    assert reached(goal + [10, 0, 10, 0, 0.3], goal)
    assert reached(goal + [0, 0, 0, 0, 2 * np.pi], goal)
    for change in ([21, 0, 0, 0, 0], [15, 0, 15, 0, 0], [0, 0, 0, 0, 0.36]):
        assert not reached(goal + change, goal)
    position, angle = block_errors(np.stack([goal, goal + [0, 0, 3, 4, -6.2]]), goal)
    assert position.tolist() == [0, 5] and angle[0] == 0 and abs(angle[1] - (2 * np.pi - 6.2)) < 1e-9


def test_the_place_of_the_agent_is_read_from_the_picture(instances) -> None:
    for instance in instances:
        place = 256 * (agent_place(instance.goal) + 1)
        assert np.linalg.norm(place - instance.goal_state[:2]) < 4


def test_planning_in_the_simulator_reaches_a_goal_that_random_actions_and_the_script_miss(instances) -> None:
    from ivideogpt.configs.planning import pusht_planning

    settings = replace(pusht_planning().with_budget(24, 2, 4), goals=PushTGoals(max_steps=25))
    control = PushTBenchmark(settings.goals)
    planner = Planner(
        control.planning_model("simulator"),
        make_objective(settings.objective, None),
        settings.planner,
        first_action=agent_place,
    )
    instance = instances[0]
    result, recording = control.run(instance, planner)
    others = [control.run(instance, control.baseline(name))[0] for name in ("random", "script")]
    assert result.position_error < 20 and result.position_error < min(other.position_error for other in others)
    assert result.decisions == -(-result.steps // 5) and result.seconds > 0
    assert recording.planned.shape == recording.frames.shape
    assert all(other.decisions == 0 and not other.success for other in others)
