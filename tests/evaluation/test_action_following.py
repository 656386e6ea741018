import math
from dataclasses import replace

import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.action_following import following_score, motion_explained, wrong_actions
from ivideogpt.evaluation.evaluate import evaluate
from ivideogpt.evaluation.held_out import Clips
from ivideogpt.evaluation.intervals import Bootstrap
from ivideogpt.evaluation.protocols import PROTOCOLS, settle

BOOTSTRAP = Bootstrap(4)


def errors(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def test_the_score_is_1_at_the_floor_0_without_a_difference_and_negative_where_true_actions_mislead() -> None:
    floor, wrong = errors(0.1, 0.2, 0.1, 0.2), errors(1.1, 2.2, 3.1, 1.2)
    assert following_score(floor, wrong, floor, BOOTSTRAP).value == pytest.approx(1)
    assert following_score(wrong, wrong, floor, BOOTSTRAP).value == 0
    assert following_score(2 * wrong - floor, wrong, floor, BOOTSTRAP).value == pytest.approx(-1)
    assert following_score((wrong + floor) / 2, wrong, floor, BOOTSTRAP).value == pytest.approx(0.5)


def test_where_nothing_can_be_seen_there_is_no_score() -> None:
    floor = errors(0.1, 0.2, 0.1, 0.2)
    assert math.isnan(following_score(floor, floor, floor, BOOTSTRAP).value)
    with pytest.raises(UserError, match="expected"):
        following_score(floor, floor, floor[:2], BOOTSTRAP)


def test_motion_explained_is_what_a_copy_misses() -> None:
    copy = errors(1.0, 2.0, 1.0, 0.0)
    assert motion_explained(torch.zeros(4), copy, BOOTSTRAP).value == 1
    assert motion_explained(copy, copy, BOOTSTRAP).value == 0
    assert motion_explained(copy / 4, copy, BOOTSTRAP).value == pytest.approx(0.75)


def test_wrong_actions_are_those_of_another_clip_and_raw_zeros(model_of) -> None:
    model = model_of("plain")
    actions = torch.randn(3, 4, 2)
    wrong = wrong_actions(model, actions)
    assert torch.equal(wrong["permuted_actions"], actions[[2, 0, 1]])
    # mean 0.5 and -1, deviation 2 and 0.25
    assert torch.allclose(wrong["zero_actions"], torch.tensor([-0.25, 4.0]).expand(3, 4, 2))
    assert list(wrong_actions(model, actions[:1])) == ["zero_actions"]


@pytest.fixture
def world(build, frames_for):
    """A model, and clips in which happens exactly what it imagines under their actions."""
    model = build("conditional")
    protocol = replace(settle(PROTOCOLS["single"], model), top_k=1)
    context = (frames_for(model, 6) * 255).byte()
    actions = torch.randn(6, protocol.clip_frames, 3, generator=torch.Generator().manual_seed(3))
    future = model.imagine(context, actions[:, 1:-1], sampling=protocol.sampling, seed=list(range(6))).frames
    return model, Clips(torch.cat([context, (future * 255).round().byte()], dim=1), actions), protocol


def score(model, clips, protocol) -> dict[str, float]:
    found = evaluate(model, clips, protocol, tokens=False)
    wrong = {name: found.clip_values(name, "mse") for name in ("permuted_actions", "zero_actions")}
    true = found.clip_values("imagined", "mse")
    # The floor of a tokenizer with random weights is above everything else.
    return {name: following_score(true, x, torch.zeros(6), Bootstrap(6)).value for name, x in wrong.items()}


def test_a_model_that_follows_scores_near_1(world) -> None:
    assert min(score(*world).values()) > 0.95


def test_a_model_that_ignores_its_actions_scores_0(world) -> None:
    model, clips, protocol = world
    torch.nn.init.zeros_(model.heads.action_linear.weight)
    other = score(model, clips, protocol)
    assert other == {"permuted_actions": 0.0, "zero_actions": 0.0}
