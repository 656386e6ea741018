"""Training of a picture model learns every part, resumes exactly, and weighs what is seldom."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.core.run import Run
from ivideogpt.models.frame_reward import FrameRewardConfig
from ivideogpt.models.picture_dynamics import PictureDynamics, PictureDynamicsConfig
from ivideogpt.models.picture_forecast import PictureForecastConfig, PictureNetConfig
from ivideogpt.models.sprites import SpriteConfig, SpriteProjectionConfig
from ivideogpt.training.picture_crops import CropConfig, CropSampler, PictureClips
from ivideogpt.training.picture_data import clips_of_changes
from ivideogpt.training.pictures import PictureTraining, PictureWeights, RoundSchedule, forecast_loss, train_pictures

NET = PictureNetConfig(width=8, deep_width=8, blocks_deep=1)
SMALL = CropConfig(pixels=2 * 16 * 16, sides=(16,), side_shares=(1.0,), place_shares=(1.0,), margin=2)
CONFIG = PictureTraining(
    dynamics=PictureDynamicsConfig(
        resolution=32,
        forecast=PictureForecastConfig(net=NET),
        sprites=SpriteProjectionConfig(sprites=(SpriteConfig(size=6, turns=False, texels=1),)),
        reward=FrameRewardConfig(width=8, blocks=1),
    ),
    steps=6,
    crops=SMALL,
    history_noise=0.05,
    unroll=1,
    unroll_after=3,
    stills=4,
    warmup_steps=2,
    average_decay=0.5,
    log_every=0,
    save_every=2,
)


def clips(length: int = 6, unroll: int = 0, seed: int = 0) -> PictureClips:
    """A blue square that jumps to where the pointer was: frames ``[4 length 32 32 3]``; its column is the reward."""
    random = np.random.default_rng(seed)
    actions = random.uniform(6, 26, (4, length, 2)).astype(np.float32)
    frames = np.full((4, length, 32, 32, 3), 250, np.uint8)
    places = np.full((4, length, 1, 2), 16, np.float32)
    for clip in range(4):
        for t in range(length):
            x, y = actions[clip, t - 1].round().astype(int) if t else (16, 16)
            frames[clip, t, y - 2 : y + 2, x - 2 : x + 2] = (60, 100, 240)
            places[clip, t, 0] = (x, y)
    poses = np.concatenate([places, np.zeros_like(places[..., :1])], axis=-1)
    return PictureClips(
        frames=frames,
        actions=actions,
        places=places,
        chances=np.ones((4, length), np.float32),
        poses=poses,
        rewards=places[:, :, 0, 0] / 32,
        unroll=unroll,
    )


def sampler(config: CropConfig = SMALL, **changes) -> CropSampler:
    background = torch.full((1, 3, 32, 32), 250 / 255)
    return CropSampler([clips(**changes)], background, config, history=2, pointer=True)


def train(folder: Path, config: PictureTraining = CONFIG, until: int | None = None, correct=None) -> PictureDynamics:
    torch.manual_seed(0)
    model = PictureDynamics(config.dynamics)
    model.background.fill_(250 / 255)
    run = Run(folder, device="cpu", log_every=0, save_every=config.save_every)
    return train_pictures(config, model, clips(), run, correct=correct, until=until)


def losses(folder: Path, name: str) -> np.ndarray:
    return np.array([json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()])


def test_training_lowers_every_loss(tmp_path: Path) -> None:
    train(tmp_path, replace(CONFIG, steps=60, warmup_steps=5, learning_rate=2e-2, history_noise=0.0, stills=8))
    for name, share in (("forecast", 0.6), ("sprites", 0.8), ("reward", 0.5)):
        values = losses(tmp_path, name)
        assert values[-10:].mean() < share * values[:5].mean(), name


def test_the_loss_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    train(tmp_path, replace(CONFIG, sprite_weight=2.0, reward_weight=0.5))
    parts = losses(tmp_path, "forecast") + 2 * losses(tmp_path, "sprites") + 0.5 * losses(tmp_path, "reward")
    assert np.allclose(losses(tmp_path, "loss"), parts, rtol=1e-5)


def test_the_change_of_the_reward_is_learned_beside_it(tmp_path: Path) -> None:
    dynamics = replace(CONFIG.dynamics, sprites=None, reward=replace(CONFIG.dynamics.reward, change=True))
    train(tmp_path, replace(CONFIG, dynamics=dynamics, steps=100, warmup_steps=5, learning_rate=2e-2, stills=8))
    values = losses(tmp_path, "reward_change")
    assert values[-20:].mean() < 0.6 * values[:5].mean()
    total = sum(losses(tmp_path, name) for name in ("forecast", "reward", "reward_change"))
    assert np.allclose(losses(tmp_path, "loss"), total, rtol=1e-5)


def test_unrolling_begins_late_and_grows() -> None:
    config = replace(CONFIG, unroll=4, unroll_after=10, unroll_growth=8)
    assert [config.unroll_at(step) for step in (0, 9, 10, 11, 12, 17, 18, 100)] == [0, 0, 1, 1, 2, 4, 4, 4]
    assert replace(config, unroll_growth=0).unroll_at(10) == 4


def test_the_loss_is_the_mean_over_all_frames_that_are_drawn() -> None:
    """With weights of 1 it is the error of each frame, where later ones follow the model's own."""
    config = replace(CONFIG, weights=PictureWeights(shown=0, marked=0), square_weight=0, history_noise=0)
    torch.manual_seed(0)
    model, crops = PictureDynamics(config.dynamics), sampler(unroll=2).draw(3)
    assert crops.unroll == 2 and crops.actions is not None
    loss, drawn = forecast_loss(config, model, crops._replace(counts=torch.ones_like(crops.counts)), torch.Generator())
    history, errors = crops.frames[:, :2], []
    for step in range(3):
        frame = model.forecast(history, crops.background, crops.actions[:, 1 + step])
        errors.append((frame - crops.frames[:, 2 + step]).abs().mean())
        history = torch.stack([history[:, 1], frame.clamp(0, 1)], dim=1)
        assert torch.allclose(drawn[:, step], history[:, 1], atol=1e-6)
    assert torch.allclose(loss, torch.stack(errors).mean())


def test_moving_pixels_weigh_more_where_it_is_asked_for() -> None:
    before, after = torch.full((1, 3, 16, 16), 0.9), torch.full((1, 3, 16, 16), 0.9)
    after[..., 12] = 0.1
    weigh = PictureWeights(shown=0, marked=0, moving=3, reach=1)
    weight = weigh(after, before, before, before)[0, 0]
    assert weight[:, 11:14].eq(4).all() and weight[:, :11].eq(1).all()
    assert weigh(after, after, before, after).eq(1).all()


def test_a_stopped_training_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    config = replace(CONFIG, rounds=RoundSchedule(first=1, every=2, kept=1, share=1.0))
    played: list[int] = []

    def correct(model: PictureDynamics, transitions: int, seed: int) -> PictureClips:
        played.append(seed)
        weight = float(sum(x.abs().sum() for x in model.parameters()))
        return clips(3, seed=int(weight * 1000) % 1000)  # depends on the model, as a real round does

    whole = train(tmp_path / "whole", config, correct=correct)
    assert played == [1, 3, 5]
    for until in (3, 4, None):  # killed once before a round and once behind it
        parts = train(tmp_path / "parts", config, until=until, correct=correct)
    assert played == [1, 3, 5, 1, 3, 5]
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_kill_long_after_the_last_checkpoint_leaves_the_rounds_that_it_needs(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=8, save_every=100, rounds=RoundSchedule(first=1, every=1, kept=1, share=1.0))

    def until_killed(model: PictureDynamics, transitions: int, seed: int) -> PictureClips:
        if seed == 6:
            raise KeyboardInterrupt
        return clips(3, seed=seed)

    train(tmp_path, config, until=2, correct=until_killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, config, correct=until_killed)
    train(tmp_path, config, correct=lambda model, transitions, seed: clips(3, seed=seed))
    assert len(losses(tmp_path, "loss")) == 8
    # Checkpoints 2 and 8 are kept: rounds 1 and those after it.
    assert sorted(int(path.stem[5:]) for path in (tmp_path / "rounds").iterdir()) == [1, 2, 3, 4, 5, 6, 7]
    train(tmp_path, replace(config, steps=10, save_every=1), correct=lambda model, transitions, seed: clips(3))
    assert sorted(int(path.stem[5:]) for path in (tmp_path / "rounds").iterdir()) == [8, 9]


def test_crops_are_not_mirrored_where_actions_would_not_be() -> None:
    forecast = PictureForecastConfig(net=NET, action="numbers", action_dim=2)
    numbers = replace(CONFIG.dynamics, forecast=forecast)
    with pytest.raises(UserError, match="crops.symmetry is square and forecast.action is numbers"):
        replace(CONFIG, dynamics=numbers)
    assert replace(CONFIG, dynamics=numbers, crops=replace(SMALL, symmetry="none")).steps == CONFIG.steps


def test_corrections_are_trained_on(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=30, learning_rate=1e-2, rounds=RoundSchedule(every=100, share=1e9), unroll=0)
    black = clips(3)
    black = replace(black, frames=np.zeros_like(black.frames))
    plain = train(tmp_path / "plain", replace(config, rounds=RoundSchedule()))
    dark = train(tmp_path / "black", config, correct=lambda model, transitions, seed: black)
    with torch.no_grad():
        light, black_drawn = (
            model.forecast(torch.zeros(1, 2, 3, 32, 32), model.background, torch.full((1, 2), 16.0)).mean()
            for model in (plain, dark)
        )
    assert black_drawn < light - 0.2


def test_the_crops_of_a_step_are_always_the_same() -> None:
    first, again = sampler().draw(3), sampler().draw(3)
    assert torch.equal(first.frames, again.frames) and first.unroll == again.unroll
    assert not torch.equal(first.frames, sampler().draw(4).frames)
    assert torch.equal(sampler().draw_stills(3, 4).frames, sampler().draw_stills(3, 4).frames)


def test_transitions_are_drawn_as_often_as_their_chances_say() -> None:
    part = clips()
    chances = np.zeros_like(part.chances)
    chances[2, 3] = 1.0
    background = torch.full((1, 3, 32, 32), 250 / 255)
    config = replace(SMALL, sides=(32,), pixels=32 * 32, symmetry="none")
    one = CropSampler([replace(part, chances=chances)], background, config, history=2, pointer=True)
    expected = torch.from_numpy(part.frames[2, 2:5]).permute(0, 3, 1, 2).float() / 255
    assert all(torch.equal(one.draw(step).frames[0], expected) for step in range(3))


def test_a_blocked_action_is_trained_on_as_often_as_a_change_and_rest_less_often() -> None:
    frames = np.zeros((1, 5, 8, 8, 3), np.uint8)
    frames[0, 2:] = 200  # the second of four actions changes something
    actions = np.array([[[0, 0], [1, 0], [-1, 0], [0.1, 0], [0, 0]]], np.float32)
    chances = clips_of_changes([Episode(frames=frames[0], actions=actions[0])]).chances
    assert chances[0, :4].tolist() == pytest.approx([0.2, 1, 1, 0.2])
    without = clips_of_changes([Episode(frames=frames[0])]).chances
    assert without[0, :4].tolist() == pytest.approx([0.2, 1, 0.2, 0.2])


def test_whole_frames_come_with_their_poses_and_rewards() -> None:
    part = clips()
    stills = sampler().draw_stills(0, 6)
    assert stills.poses is not None and stills.rewards is not None
    for frame, pose, reward in zip(stills.frames, stills.poses, stills.rewards, strict=True):
        x, y = pose[0, :2].round().int().tolist()
        assert frame[2, y, x] > frame[0, y, x] + 0.5 and reward == pytest.approx(pose[0, 0].item() / 32)
    seldom = np.zeros_like(part.rewards)
    seldom[1, 2] = 1.0
    background = torch.full((1, 3, 32, 32), 250 / 255)
    rich = CropSampler([replace(part, rewards=seldom)], background, SMALL, history=2, pointer=True)
    rewards = rich.draw_stills(0, 8, rewarded_share=0.75).rewards
    assert rewards is not None and (rewards > 0).sum() >= 6


def test_whole_frames_come_with_an_earlier_frame_of_their_clip() -> None:
    part = replace(clips(), rewards=np.arange(24, dtype=np.float32).reshape(4, 6))
    background = torch.full((1, 3, 32, 32), 250 / 255)
    stills = CropSampler([part], background, SMALL, history=2, pointer=True).draw_stills(0, 12)
    assert stills.earlier is not None and stills.rewards is not None
    for frame, earlier, reward in zip(*stills.earlier, stills.rewards, strict=True):
        (clip, before), (same, time) = divmod(int(earlier), 6), divmod(int(reward), 6)
        assert clip == same and (before < time or before == time == 0)
        assert torch.equal(frame, torch.from_numpy(part.frames[clip, before]).permute(2, 0, 1).float() / 255)


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
