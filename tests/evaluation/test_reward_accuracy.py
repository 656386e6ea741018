import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.evaluate import evaluate
from ivideogpt.evaluation.held_out import read_clips
from ivideogpt.evaluation.intervals import Bootstrap
from ivideogpt.evaluation.protocols import PROTOCOLS, settle
from ivideogpt.evaluation.reward_accuracy import measure_rewards, reward_rows
from ivideogpt.reports.evaluation_page import report_page
from ivideogpt.reports.evaluation_report import About, summary

ABOUT = About(model="m", checkpoint="c", data="d")


def test_correlations_and_errors_are_those_of_numpy() -> None:
    true = torch.from_numpy(np.random.default_rng(0).random((20, 6)))
    found = 3 * true + torch.from_numpy(np.random.default_rng(1).random((20, 6)))
    scores = measure_rewards(found, true, Bootstrap(20))
    assert scores.pearson.value == pytest.approx(np.corrcoef(found.ravel(), true.ravel())[0, 1])
    assert scores.sums.value == pytest.approx(np.corrcoef(found.sum(1), true.sum(1))[0, 1])
    assert scores.error.value == pytest.approx(float((found - true).abs().mean()))
    assert scores.pearson.low < scores.pearson.value < scores.pearson.high
    assert measure_rewards(true**5, true, Bootstrap(20)).spearman.value == pytest.approx(1)


def test_a_constant_tells_nothing() -> None:
    assert math.isnan(measure_rewards(torch.ones(4, 3), torch.rand(4, 3), Bootstrap(4)).pearson.value)


def test_rewards_must_be_of_the_same_frames() -> None:
    with pytest.raises(UserError, match="expected the same"):
        measure_rewards(torch.ones(4, 3), torch.ones(4, 2), Bootstrap(4))


def test_the_last_known_reward_is_the_one_that_led_to_the_last_context_frame() -> None:
    true = torch.arange(12.0).reshape(2, 6)
    imagined = torch.rand(2, 3, 4)
    rows = reward_rows({"imagined": imagined, "zero_actions": imagined[:, :1]}, true, context_frames=2)
    assert rows["last_known"].tolist() == [[0.0] * 4, [6.0] * 4]
    assert torch.equal(rows["imagined"], imagined[:, 0]) and torch.equal(rows["mean"], imagined.mean(dim=1))
    alone = reward_rows({"imagined": imagined[:, :1]}, true, context_frames=1)
    assert alone.keys() == {"imagined"}, "one context frame shows no transition, and one future has no mean"


def test_imagined_rewards_are_compared_with_those_of_their_own_transitions(model_of, store_of) -> None:
    model = model_of("plain")
    store = store_of((9, 8, 7), dim=model.action_dim, rewards=True)
    protocol = settle(replace(PROTOCOLS["single"], clip_frames=6, start="first", samples=2), model)
    held_out = read_clips(model, store, protocol, stride=1, allow_mismatch=True)
    clips = held_out.clips
    found = evaluate(model, clips, protocol, batch_size=3)
    count = model.context_frames
    assert torch.equal(found.reward_rows["true"], torch.arange(count - 1.0, 5.0).expand(3, -1))
    actions = model.normalize_actions(clips.actions[:, count - 1 : -1])
    alone = model.imagine(clips.frames[:1, :count], actions[:1], 6 - count, sampling=protocol.sampling, seed=[0])
    torch.testing.assert_close(found.reward_rows["imagined"][:1], alone.rewards, atol=1e-4, rtol=1e-4)
    rows = {"imagined", "mean", "permuted_actions", "zero_actions", "last_known"}
    assert found.reward_scores.keys() == rows == summary(found, held_out, ABOUT)["rewards"].keys()
    page = report_page(found, held_out, ABOUT)
    assert "Does it predict the rewards?" in page and "the last known reward, unchanged" in page


def test_without_recorded_rewards_there_is_nothing_to_compare(model_of, store_of) -> None:
    model = model_of("plain")
    protocol = settle(replace(PROTOCOLS["single"], clip_frames=6), model)
    held_out = read_clips(model, store_of((12, 11), dim=model.action_dim), protocol)
    assert held_out.clips.rewards is None
    found = evaluate(model, held_out.clips, protocol, follow=False, tokens=False)
    assert found.reward_rows == {} and found.reward_scores == {}
    assert "rewards" not in summary(found, held_out, ABOUT)
    assert "what pays" not in report_page(found, held_out, ABOUT)


def test_a_goal_is_no_transition() -> None:
    rewards, true = {"imagined": torch.rand(2, 1, 4)}, torch.rand(2, 6)
    assert "last_known" not in reward_rows(rewards, true, context_frames=2, goal_conditioned=True)
    known = reward_rows(rewards, torch.rand(2, 7), context_frames=3, goal_conditioned=True)
    assert "last_known" in known
