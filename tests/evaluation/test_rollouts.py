from collections.abc import Callable

import numpy as np
import pytest
import torch

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.evaluation.rollouts import Clips, imagine_with_progress, reconstruct, rollout_figures
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
def plain(model_of: Callable[[str], WorldModel]) -> WorldModel:
    return model_of("plain")


def test_figures_stand_beside_what_they_are_compared_with(plain: WorldModel) -> None:
    figures = rollout_figures(plain, clips_for(plain), sampling=Sampling(greedy=True))
    assert set(figures) == {"imagined", "copy_last", "reconstruction", "permuted_actions"}
    for values in figures.values():
        assert {"psnr", "psnr_last", "ssim"} <= set(values)
    assert figures["imagined"]["frames_per_second"] > 0
    assert figures["imagined"]["psnr"] != figures["permuted_actions"]["psnr"]


def test_a_clip_is_imagined_the_same_whatever_batch_it_is_in(plain: WorldModel) -> None:
    clips = clips_for(plain)
    together = rollout_figures(plain, clips, batch_size=3)
    apart = rollout_figures(plain, clips, batch_size=1)
    assert together["imagined"]["psnr"] == pytest.approx(apart["imagined"]["psnr"], abs=1e-3)


def test_an_action_free_model_has_no_permuted_actions(model_of: Callable[[str], WorldModel]) -> None:
    model = model_of("action_free")
    assert "permuted_actions" not in rollout_figures(model, clips_for(model), sampling=Sampling(greedy=True))


def test_measures_see_the_future_and_the_last_context_frame(plain: WorldModel) -> None:
    clips = clips_for(plain)
    seen = []

    def measures(true: torch.Tensor, imagined: torch.Tensor, context: torch.Tensor) -> dict[str, float]:
        assert torch.equal(true, clips.frames[:, 2:].float() / 255)
        assert torch.equal(context, clips.frames[:, 1].float() / 255)
        seen.append(imagined)
        return {"mine": 1.0}

    figures = rollout_figures(plain, clips, measures=measures, sampling=Sampling(greedy=True))
    assert all(values["mine"] == 1.0 for values in figures.values())
    assert len(seen) == 4


def test_reconstruction_is_what_the_tokenizer_makes_of_the_future(any_model: WorldModel) -> None:
    frames = clips_for(any_model).frames.float() / 255
    with torch.inference_mode():
        ids, _ = any_model.tokenizer.tokenize(frames)
        expected = any_model.tokenizer.detokenize(ids)[:, any_model.context_frames :].clamp(0, 1)
    assert torch.allclose(reconstruct(any_model, frames, batch_size=2), expected, atol=1e-5)


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
