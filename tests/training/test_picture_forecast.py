"""Training of pictures learns, resumes exactly, and weighs what is seldom."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.core.run import Run
from ivideogpt.models.picture_forecast import (
    FrameProjection,
    FrameProjectionConfig,
    PictureForecast,
    PictureForecastConfig,
    PictureNetConfig,
)
from ivideogpt.training.picture_crops import CropConfig, CropSampler, PictureClips
from ivideogpt.training.picture_forecast import (
    PictureTraining,
    PictureWeights,
    train_frame_projection,
    train_picture_forecast,
)

NET = PictureNetConfig(width=8, deep_width=8, blocks_deep=1)
SMALL = CropConfig(pixels=2 * 16 * 16, sides=(16,), side_shares=(1.0,), place_shares=(1.0,), margin=2)


def clips(unroll: int = 1, length: int = 6) -> PictureClips:
    """A blue square that jumps to where the pointer was: frames ``[4 length 32 32 3]``."""
    random = np.random.default_rng(0)
    actions = random.uniform(6, 26, (4, length, 2)).astype(np.float32)
    frames = np.full((4, length, 32, 32, 3), 250, np.uint8)
    places = np.full((4, length, 1, 2), 16, np.float32)
    for clip in range(4):
        for t in range(1, length):
            x, y = actions[clip, t - 1].round().astype(int)
            frames[clip, t, y - 2 : y + 2, x - 2 : x + 2] = (60, 100, 240)
            places[clip, t, 0] = (x, y)
    return PictureClips(
        frames=frames, actions=actions, places=places, eventful=np.ones((4, length), bool), unroll=unroll
    )


def sampler(config: CropConfig = SMALL, **changes) -> CropSampler:
    background = torch.full((3, 32, 32), 250 / 255)
    return CropSampler([clips(**changes)], background, config, history=2, pointer=True)


def model() -> PictureForecast:
    torch.manual_seed(0)
    return PictureForecast(PictureForecastConfig(net=NET))


def train(folder: Path, steps: int = 6, until: int | None = None) -> PictureForecast:
    run = Run(folder, device="cpu", log_every=0, save_every=2)
    config = PictureTraining(steps=steps, warmup_steps=2, history_noise=0.05, average_decay=0.5)
    return train_picture_forecast(config, model(), sampler(), run, until=until)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    run = Run(tmp_path, device="cpu", log_every=0, save_every=0)
    config = PictureTraining(steps=60, warmup_steps=5, learning_rate=3e-3)
    train_picture_forecast(config, model(), sampler(), run)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    losses = [float(line.split('"loss": ')[1].split(",")[0]) for line in lines]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])


def test_a_stopped_training_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", until=3)
    parts = train(tmp_path / "parts")
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_crops_of_a_step_are_always_the_same() -> None:
    first, again = sampler().draw(3), sampler().draw(3)
    assert torch.equal(first.frames, again.frames) and first.unroll == again.unroll
    assert not torch.equal(first.frames, sampler().draw(4).frames)


@pytest.mark.parametrize("step", range(12))
def test_pointers_move_with_the_pictures_that_are_mirrored_and_turned(step: int) -> None:
    crops = sampler().draw(step)
    assert crops.actions is not None
    count, side = 0, crops.frames.shape[-1]
    for row in range(len(crops.frames)):
        for t in range(1, crops.frames.shape[1]):
            x, y = crops.actions[row, t - 1].tolist()
            if 3 <= x < side - 3 and 3 <= y < side - 3:
                count += 1
                assert crops.frames[row, t, 2, int(y), int(x)] > crops.frames[row, t, 0, int(y), int(x)]
    assert count or step


def test_edges_of_a_crop_count_only_where_they_are_edges_of_the_picture() -> None:
    whole = sampler(CropConfig(pixels=32 * 32, sides=(32,), side_shares=(1.0,), place_shares=(1.0,))).draw(0)
    assert whole.counts.min() == 1
    assert all(sampler().draw(step).counts[:, :, 7, 7].min() == 1 for step in range(3))
    assert any(sampler().draw(step).counts.min() == 0 for step in range(3))


def test_weights_treat_the_true_and_the_drawn_picture_alike() -> None:
    background = torch.ones(1, 3, 16, 16)
    blue, grey = background.clone(), background.clone()
    blue[:, :2, 4:6, 4:6] = 0.2
    grey[:, :, 10:12, 10:12] = 0.5
    weigh = PictureWeights()
    assert torch.equal(weigh(blue, grey, background), weigh(grey, blue, background))
    weight = weigh(blue, grey, background)
    assert weight[0, 0, 5, 5] == 27 and weight[0, 0, 11, 11] == 7 and weight[0, 0, 0, 15] == 1


def test_clips_that_are_too_short_are_refused() -> None:
    with pytest.raises(UserError, match="expected at least 7"):
        sampler(unroll=4)


def test_each_place_of_interest_needs_a_share() -> None:
    with pytest.raises(UserError, match="place_shares has 2 numbers"):
        sampler(CropConfig(sides=(16,), side_shares=(1.0,)))


def test_a_projection_learns_to_mend_spoilt_pictures(tmp_path: Path) -> None:
    part = clips()
    pairs = np.repeat(part.frames.reshape(-1, 1, 32, 32, 3), 2, axis=1)
    places = np.repeat(part.places.reshape(-1, 1, 1, 2), 2, axis=1)
    data = PictureClips(frames=pairs, actions=None, places=places, eventful=np.ones(pairs.shape[:2], bool))
    crops = CropSampler([data], torch.full((3, 32, 32), 250 / 255), SMALL, history=1, pointer=False)
    torch.manual_seed(0)
    network = FrameProjection(FrameProjectionConfig(net=NET))
    config = PictureTraining(steps=60, warmup_steps=5, learning_rate=3e-3)
    run = Run(tmp_path, device="cpu", log_every=0, save_every=0)

    def spoil(clean: torch.Tensor, background: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return (clean + background) / 2

    train_frame_projection(config, network, crops, run, spoil=spoil)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    losses = [float(line.split('"loss": ')[1].split(",")[0]) for line in lines]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
