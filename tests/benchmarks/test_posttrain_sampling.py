"""The benchmark of sampling for post-training runs all its ways on the same prompts; models are compared in pairs."""

import compare
import posttrain
import pytest
import torch
from _subject import Subject

from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.held_out import Clips, HeldOut


@pytest.mark.parametrize("kind", ["plain", "action_free"])
def test_all_ways_sample_as_many_futures(kind, build, frames_for, actions_for) -> None:
    pytest.importorskip("transformers", reason="the baseline comes with: pip install 'ivideogpt[dev]'")
    model = build(kind)
    subject = Subject(model, frames_for(model, 2), actions_for(model, 2, 2), noise=True)
    options = posttrain.PosttrainOptions(prompts=2, group=3, horizon=2, rows_at_once=3)
    for name, sample in posttrain.ways(options, subject).items():
        frames = sample()
        assert frames.shape == (6, 2, 3, 16, 16), name
        assert len({tuple(row.flatten().tolist()) for row in frames}) > 3, f"{name}: the futures of a group differ"


def test_a_model_differs_from_itself_by_nothing(build, frames_for) -> None:
    model = build("plain")
    frames = (frames_for(model, 3, 4) * 255).to(torch.uint8)
    held_out = HeldOut(Clips(frames, torch.randn(3, 4, 2)), "mine", "test", 1, 0, ())
    options = compare.CompareOptions(checkpoints=("a", "b"), measures=("mae", "repetition"), samples=2)
    first, second = (compare.clip_values(options, model, held_out) for _ in range(2))
    assert first.keys() == {"mae", "repetition"} and first["mae"].shape == (3,)
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(UserError, match="expected 2 or more"):
        compare.CompareOptions(checkpoints=("a",))
