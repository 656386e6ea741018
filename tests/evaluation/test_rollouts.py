import numpy as np
import pytest
import torch

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.held_out import Clips
from ivideogpt.evaluation.rollouts import imagine_with_progress
from ivideogpt.worldmodel.world_model import WorldModel


def clips_for(model: WorldModel, count: int = 3, length: int = 5) -> Clips:
    size = model.tokenizer.config.resolution
    generator = np.random.default_rng(0)
    windows = [
        Episode(
            frames=generator.integers(0, 256, (length, size, size, 3), dtype=np.uint8),
            actions=generator.normal(size=(length, model.action_dim)).astype(np.float32) if model.action_dim else None,
        )
        for _ in range(count)
    ]
    return Clips.from_episodes(windows)


@pytest.fixture
def plain(model_of) -> WorldModel:
    return model_of("plain")


def test_a_progress_bar_changes_nothing(plain: WorldModel) -> None:
    clips = clips_for(plain)
    assert clips.actions is not None
    context, actions = clips.frames[:, :2], clips.actions[:, 1:-1]
    imagined, seconds = imagine_with_progress(plain, context, actions, 3, seed=4)
    assert torch.equal(imagined.ids, plain.imagine(context, actions, seed=4).ids)
    assert seconds > 0


def test_windows_of_different_lengths_are_refused(plain: WorldModel) -> None:
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    with pytest.raises(UserError, match="one length"):
        Clips.from_episodes([Episode(frames=frames), Episode(frames=frames[:3])])
