"""Success of policies: independent trials that resume, recorded actions that are played again, and agents of runs."""

import json

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")

from ivideogpt.core.episode import Episode  # noqa: E402
from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.envs.vector import make_single  # noqa: E402
from ivideogpt.evaluation.policy_trials import (  # noqa: E402
    PolicyTrial,
    ReplayPolicy,
    TrialSettings,
    random_policy,
    read_results,
    recorded_task,
    replay_policy,
    replay_trials,
    run_trials,
    tasks_of,
    trials_of,
)

SETTINGS = TrialSettings(environment_options={"size": 16, "steps": 5}, videos=1)


def play(trials, make_policy, folder, settings=SETTINGS):
    for _ in run_trials(trials, make_policy, settings, folder):
        pass
    return read_results(trials, folder)


def record(seed: int, steps: int = 5) -> Episode:
    """An episode of random actions in Reacher."""
    environment = make_single("reacher", size=16, steps=steps)
    frame, _ = environment.reset(seed=seed)
    random, frames, rewards = np.random.default_rng(seed), [frame], []
    actions = random.uniform(-1, 1, (steps, 2)).astype(np.float32)
    for action in actions:
        frame, reward, *_ = environment.step(action)
        frames.append(frame)
        rewards.append(reward)
    rows = np.concatenate([actions, np.zeros((1, 2), np.float32)])
    total = {"seed": seed, "return": float(np.sum(rewards))}
    return Episode(frames=np.stack(frames), actions=rows, rewards=np.array([*rewards, 0], np.float32), meta=total)


def test_a_suite_has_its_trials_in_the_order_of_tasks_and_start_states() -> None:
    trials = trials_of("libero_spatial", per_task=50)
    assert len(trials) == 500 and trials[50] == PolicyTrial(task="libero_spatial/1", seed=0)
    assert tasks_of("plate_slide") == ("metaworld/plate-slide",)
    assert len({trial.name for trial in trials}) == 500


def test_trials_are_independent_of_each_other_and_write_a_video_and_a_result(tmp_path) -> None:
    trials = trials_of("reacher", per_task=3)
    results = play(trials, random_policy, tmp_path / "a")
    assert [result.seed for result in results] == [0, 1, 2] and all(result.steps <= 5 for result in results)
    assert len(list((tmp_path / "a" / "videos").iterdir())) == 1
    (alone,) = play(trials[2:], random_policy, tmp_path / "b")
    assert alone.total_reward == results[2].total_reward


def test_a_stopped_evaluation_goes_on_with_the_trials_that_lack_a_result(tmp_path) -> None:
    trials = trials_of("reacher", per_task=3)
    first = run_trials(trials, random_policy, SETTINGS, tmp_path)
    next(first)
    first.close()
    path = next((tmp_path / "trials").iterdir())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"total_reward": 77.0}))
    results = play(trials, random_policy, tmp_path)
    assert len(results) == 3 and results[0].total_reward == 77.0


def test_a_replay_earns_what_was_recorded(tmp_path) -> None:
    episodes = [record(3), record(8)]
    trials = replay_trials("reacher", episodes, per_task=5)
    assert [(trial.seed, trial.episode) for trial in trials] == [(3, 0), (8, 1)]
    actions = {number: episode.actions[:-1] for number, episode in enumerate(episodes)}

    def maker(trial, action_dim, image):
        return replay_policy(trial, action_dim, image, actions=actions)

    results = play(trials, maker, tmp_path)
    assert [result.total_reward for result in results] == pytest.approx(
        [episode.meta["return"] for episode in episodes]
    )
    with pytest.raises(UserError, match="recorded episode 0 has actions of 2 numbers and reacher takes 3"):
        maker(trials[0], 3, 16)


def test_recorded_episodes_are_of_the_task_that_they_name() -> None:
    episode = record(0, steps=2)
    for name, task in (("PickCube-v1", "maniskill/pick-cube"), ("plate-slide", "metaworld/plate-slide")):
        episode.meta["task"] = name
        assert recorded_task(episode, (task,)) == task and recorded_task(episode, ("pusht",)) is None
    episode.meta["task"] = "libero_spatial/3"
    assert recorded_task(episode, tasks_of("libero_spatial")) == "libero_spatial/3"
    with pytest.raises(UserError, match="none of the 1 recorded episodes is of reacher"):
        replay_trials("reacher", [episode], per_task=1)


def test_an_episode_that_says_not_where_it_began_is_one_sentence() -> None:
    episode = record(0, steps=2)
    episode.meta.clear()
    with pytest.raises(UserError, match="says neither the seed nor the state of the simulator that it began with"):
        replay_trials("reacher", [episode], per_task=1)


def test_a_replay_rests_after_its_last_action() -> None:
    policy = ReplayPolicy(np.ones((1, 2), np.float32), np.array([0, -1], np.float32))
    policy.reset([0])
    assert [policy.act({}).tolist() for _ in range(3)] == [[[1, 1]], [[0, -1]], [[0, -1]]]
    policy.reset([0])
    assert policy.act({}).tolist() == [[1, 1]]
