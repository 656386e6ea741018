"""Toy push: the rules it states, its script, its recording, and its speed."""

import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.data.store.reader import EpisodeStore  # noqa: E402
from ivideogpt.envs.record.toy_episodes import ToyRecording, collect_toy  # noqa: E402
from ivideogpt.envs.toys import CELLS, COLOURS, SIDES, ZONE, ToyPush  # noqa: E402
from ivideogpt.envs.vector import make_single  # noqa: E402
from ivideogpt.policies.scripted import ToyPushPolicy  # noqa: E402


def play(seed: int, *, policy: ToyPushPolicy | None = None) -> tuple[list[np.ndarray], dict]:
    """Return the frames of an episode of the script and the last info."""
    environment = make_single("toy_push")
    policy = policy or ToyPushPolicy()
    frame, info = environment.reset(seed=seed)
    policy.reset([seed])
    frames, over = [frame], False
    while not over:
        frame, _, terminated, truncated, info = environment.step(policy.act({"state": info["state"][None]})[0])
        frames.append(frame)
        over = terminated or truncated
    return frames, info


def test_the_same_seed_and_actions_give_the_same_episode() -> None:
    first, second = play(3)[0], play(3)[0]
    assert len(first) == len(second) and all(map(np.array_equal, first, second))
    assert not np.array_equal(first[0], play(4)[0][0])


def test_the_script_solves_every_episode_and_success_ends_it() -> None:
    for seed in range(40):
        frames, info = play(seed)
        x, y = info["state"][2 + 2 * int(info["state"][-2]) :][:2]
        place = {"left": -x, "right": x, "top": -y, "bottom": y}[info["instruction"].split()[-1]]
        assert info["success"] and len(frames) <= 21 and place >= {True: CELLS - ZONE, False: 1 - ZONE}[place > 0]


def test_every_task_is_named_by_colour_and_side_and_drawn_about_as_often() -> None:
    environment = ToyPush()
    words = [environment.reset(seed=seed)[1]["instruction"] for seed in range(400)]
    expected = {f"push the {colour} square to the {side}" for colour in COLOURS for side in SIDES}
    assert set(words) == expected and max(map(words.count, expected)) < 2.5 * min(map(words.count, expected))


def test_a_square_moves_only_when_it_is_walked_into_and_walls_and_squares_stop_it() -> None:
    environment, random = ToyPush(steps=3000, terminate=False), np.random.default_rng(0)
    _, info = environment.reset(seed=1)
    moved = blocked = 0
    for _ in range(3000):
        before = info["state"][:6].reshape(3, 2)
        way = np.eye(2)[random.integers(2)] * random.choice([-1, 1])
        _, _, _, _, info = environment.step(way)
        after = info["state"][:6].reshape(3, 2)
        assert after.min() >= 0 and after.max() < CELLS and len(np.unique(after, axis=0)) == 3
        for at in (1, 2):
            if (before[at] != after[at]).any():
                assert (before[at] == before[0] + way).all() and (after[at] == before[at] + way).all()
                moved += 1
            elif (before[at] == before[0] + way).all():
                last = before[at] + way
                assert last.min() < 0 or last.max() >= CELLS or (last == before[3 - at]).all()
                assert (after[0] == before[0]).all()
                blocked += 1
    assert moved > 10 and blocked > 10


def test_a_small_action_moves_nothing_and_the_larger_number_decides() -> None:
    environment = ToyPush(terminate=False)
    for seed, action, way in ((0, (0.3, -0.3), (0, 0)), (0, (0.4, -0.9), (0, -1)), (0, (0.9, -0.4), (1, 0))):
        _, info = environment.reset(seed=seed)
        start = info["state"][:2]
        free = start + way
        if (info["state"][2:6].reshape(2, 2) == free).all(axis=1).any() or free.min() < 0 or free.max() >= CELLS:
            pytest.fail("choose a seed at which the way is free")
        assert (environment.step(np.array(action))[4]["state"][:2] == free).all()


def test_bad_arguments_and_actions_are_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="size is 8"):
        ToyPush(size=8)
    with pytest.raises(UserError, match="multiple of 8"):
        ToyPush(size=36)
    environment = ToyPush(steps=1)
    with pytest.raises(UserError, match="call reset first"):
        environment.step(np.zeros(2))
    environment.reset(seed=0)
    with pytest.raises(UserError, match="two finite numbers"):
        environment.step(np.array([np.nan, 0]))


def test_a_recording_has_instructions_one_length_and_its_first_success(tmp_path: Path) -> None:
    collect_toy(range(6), tmp_path / "store", ToyRecording(length=20, noise=0.3, random_share=0.9), workers=0)
    store = EpisodeStore(tmp_path / "store")
    assert store.lengths.tolist() == [20] * 6
    for index in range(6):
        episode, info = store[index], store.info(index)
        assert info["text"].startswith("push the ")
        assert episode.terminated is not None and episode.rewards is not None
        assert episode.terminated.sum() == info["meta"]["success"]
        assert not episode.rewards[: episode.terminated.argmax()].any()


@pytest.mark.slow
def test_a_thousand_steps_take_less_than_a_second() -> None:
    environment = ToyPush(steps=1000, terminate=False)
    environment.reset(seed=0)
    start = time.process_time()
    for _ in range(1000):
        environment.step(np.array([0.3, -0.2]))
    assert time.process_time() - start < 1
