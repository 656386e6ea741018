"""Objectives: each prefers the future that is nearer to the goal, and says what it needs."""

import math
from dataclasses import dataclass

import pytest
import torch
from einops import reduce

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.planning import objectives
from ivideogpt.planning.objectives import OBJECTIVES, Goal, make_objective


@dataclass
class Shown:
    """Futures whose frames ``[k t c h w]`` are given."""

    frames: torch.Tensor
    rewards: torch.Tensor | None = None

    @property
    def horizon(self) -> int:
        return self.frames.shape[1]

    def frames_at(self, steps):
        return self.frames[:, list(steps)]


def pusht(x: float, y: float, angle: float, agent: tuple[float, float] = (50.0, 50.0)) -> torch.Tensor:
    """A frame float ``[3 64 64]`` with the block and the agent at places in px."""
    fine = (torch.arange(512) + 0.5) / 8
    right, down = fine - x, fine[:, None] - y
    across = 8 * (right * math.cos(angle) + down * math.sin(angle))
    along = 8 * (down * math.cos(angle) - right * math.sin(angle)) + 45
    bar, stem = (across.abs() < 62) & (along > -2) & (along < 32), (across.abs() < 17) & (along > 30) & (along < 122)
    disc = ((fine - agent[0]) ** 2 + (fine[:, None] - agent[1]) ** 2) < 1.9**2
    share, disc = (reduce(mask.float(), "(h a) (w b) -> h w", "mean", a=8, b=8) for mask in (bar | stem, disc))
    block, agent_colour = (torch.tensor(colour)[:, None, None] / 255 for colour in ((135, 154, 173), (72, 116, 241)))
    frame = 1 - share * (1 - block)
    return frame * (1 - disc) + disc * agent_colour


def futures(*frames: torch.Tensor) -> Shown:
    """Futures of two frames; the first frame of all is the same."""
    last = torch.stack(frames)
    return Shown(torch.stack([last[:1].expand_as(last), last], dim=1))


GOAL = pusht(30, 34, 0.4)
NEAR, FAR = pusht(32, 34, 0.5), pusht(44, 20, 0.4)


def test_pixels_are_the_sum_of_vp2() -> None:
    rollout, goal = futures(NEAR, FAR), Goal(GOAL)
    expected = -((rollout.frames - GOAL) ** 2).flatten(1).sum(dim=1)
    torch.testing.assert_close(make_objective({"pixels": 1.0}, None)(rollout, goal), expected)
    last = -((rollout.frames[:, -1] - GOAL) ** 2).flatten(1).sum(dim=1)
    torch.testing.assert_close(make_objective({"last-pixels": 2.0}, None)(rollout, goal), 2 * last)


def test_the_block_is_compared_by_place_and_turn() -> None:
    score = make_objective({"pusht-block": 1.0}, None)
    turned = pusht(30, 34, 0.4 + math.pi / 2)
    scores = score(futures(GOAL, NEAR, FAR, turned), Goal(GOAL))
    assert scores[0] > -0.1 and (scores[:-1].diff() < 0).all()
    assert abs(float(scores[1]) + 2 + 8 * 0.1) < 0.3
    assert abs(float(scores[2]) + math.hypot(14, 14)) < 0.5
    assert abs(float(scores[3]) + 8 * math.pi / 2) < 1


def test_the_agent_is_compared_by_its_place() -> None:
    score = make_objective({"pusht-agent": 1.0}, None)
    scores = score(futures(GOAL, pusht(30, 34, 0.4, agent=(40.0, 50.0))), Goal(GOAL))
    assert abs(float(scores[0])) < 0.1 and abs(float(scores[1]) + 10) < 0.3


def test_a_weighted_sum_adds_its_parts() -> None:
    rollout, goal = futures(NEAR, FAR), Goal(GOAL)
    parts = {"pusht-block": 1.0, "pusht-agent": 0.5, "last-pixels": 0.1}
    single = [weight * make_objective({name: 1.0}, None)(rollout, goal) for name, weight in parts.items()]
    torch.testing.assert_close(make_objective(parts, None)(rollout, goal), sum(single))


def test_the_reward_is_the_mean_of_the_steps(model_of) -> None:
    rollout = Shown(torch.zeros(2, 2, 3, 16, 16), rewards=torch.tensor([[0.0, 1.0], [0.25, 0.25]]))
    assert make_objective({"reward": 1.0}, model_of("plain"))(rollout, Goal(GOAL)).tolist() == [0.5, 0.25]


def test_code_vectors_of_the_tokenizer_are_equal_for_equal_pictures(model_of, frames_for) -> None:
    for kind in ("plain", "conditional"):
        model = model_of(kind)
        frames = frames_for(model, 2, 3, seed=5)
        scores = make_objective({"tokenizer": 1.0}, model)(Shown(frames), Goal(frames[0, -1]))
        assert scores.shape == (2,) and scores[0] == 0 and scores[1] < 0


def test_the_perceptual_distance_prefers_the_nearer_picture() -> None:
    try:
        score = make_objective({"perceptual": 1.0}, None)
    except MissingExtraError as error:
        pytest.skip(str(error))
    scores = score(futures(GOAL, NEAR, FAR), Goal(GOAL))
    assert scores[0] == 0 and scores[0] > scores[1] > scores[2]


def test_what_an_objective_needs_is_said_in_one_sentence(model_of) -> None:
    with pytest.raises(UserError, match="the objective reward needs a reward head, and goal has none"):
        make_objective({"reward": 1.0}, model_of("goal"))
    with pytest.raises(UserError, match="needs a model that predicts rewards"):
        make_objective({"reward": 1.0}, None)(futures(NEAR), Goal(GOAL))
    with pytest.raises(UserError, match="the objective tokenizer needs a world model with a tokenizer"):
        make_objective({"tokenizer": 1.0}, None)
    with pytest.raises(UserError, match="there is no objective 'pixel'; did you mean 'pixels'"):
        make_objective({"pixel": 1.0}, None)
    with pytest.raises(UserError, match="the weight of the objective pixels is -1"):
        make_objective({"pixels": -1.0}, None)
    with pytest.raises(UserError, match="there is no objective; expected some of pixels"):
        make_objective({}, None)


def test_a_new_objective_is_one_function_and_one_row(monkeypatch) -> None:
    monkeypatch.setattr(
        objectives, "dark", lambda model: lambda rollout, goal: -rollout.frames.mean((1, 2, 3, 4)), raising=False
    )
    monkeypatch.setitem(OBJECTIVES, "dark", "ivideogpt.planning.objectives:dark")
    rollout = Shown(torch.stack([torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)]))
    assert make_objective({"dark": 1.0}, None)(rollout, Goal(GOAL)).tolist() == [0, -1]


def trained_classifier(words: int = 0):
    from ivideogpt.models.success_classifier import ClassifierConfig, ClassifierFacts, SuccessClassifier

    torch.manual_seed(0)
    network = ClassifierConfig(resolution=64, width=8, hidden=4, words=words)
    return SuccessClassifier(network, ClassifierFacts(task="pusht")).eval()


def test_the_classifier_objective_is_the_logit_of_all_frames() -> None:
    classifier, rollout = trained_classifier(), futures(NEAR, FAR)
    score = make_objective({"classifier": 10.0}, None, classifier)(rollout, Goal(GOAL))
    with torch.inference_mode():
        expected = 10 * classifier(rollout.frames.flatten(0, 1)).reshape(2, 2).sum(dim=1)
    torch.testing.assert_close(score, expected)
    assert score.shape == (2,) and score[0] != score[1]
    mixed = make_objective({"pixels": 0.5, "classifier": 10.0}, None, classifier)(rollout, Goal(GOAL))
    torch.testing.assert_close(mixed, expected + 0.5 * make_objective({"pixels": 1.0}, None)(rollout, Goal(GOAL)))


def test_without_a_classifier_the_objective_says_how_to_get_one() -> None:
    with pytest.raises(UserError, match="needs a success classifier; train one .ivideogpt train-classifier"):
        make_objective({"classifier": 1.0}, None)
    with pytest.raises(UserError, match="of pusht reads instructions, and a planner has none; train one with"):
        make_objective({"classifier": 1.0}, None, trained_classifier(words=16))
