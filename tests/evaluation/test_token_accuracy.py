import math

import pytest
import torch

from ivideogpt.evaluation.token_accuracy import frozen_frames, repetition, score_tokens


def test_repetition_counts_tokens_that_stayed_in_their_place() -> None:
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0], [1, 2, 0, 0]])
    assert repetition(ids).item() == pytest.approx((2 + 4) / 8)
    assert frozen_frames(ids).item() == pytest.approx(0.5)
    assert repetition(ids.expand(5, 2, 3, 4)).shape == (5, 2)
    assert math.isnan(repetition(ids[:1]).item())


def test_clips_are_scored_one_by_one_as_training_scores_a_batch(any_model, frames_for, actions_for) -> None:
    frames, actions = frames_for(any_model, 3, 5), actions_for(any_model, 3, 5 - any_model.context_frames)
    with torch.no_grad():
        ids, _ = any_model.tokenizer.tokenize(frames)
        together = any_model.dynamics.losses(ids, actions)
    found = score_tokens(any_model, ids, actions)
    assert found.loss.shape == found.accuracy.shape == (3,) and found.frames == 3
    assert found.loss.mean().item() == pytest.approx(together.tokens.item(), abs=1e-4)
    assert found.accuracy.mean().item() == pytest.approx(together.accuracy.item(), abs=1e-4)


def test_clips_longer_than_a_segment_are_scored_as_far_as_it_reaches(model_of, frames_for, actions_for) -> None:
    model = model_of("plain")
    limit = model.segment_limit
    frames = frames_for(model, 1, 2 + limit + 3)
    ids, _ = model.tokenizer.tokenize(frames)
    actions = actions_for(model, 1, limit + 3)
    assert score_tokens(model, ids, actions).frames == limit
