"""Picture models: frames without tokens, stepped, forked, rewound, saved and loaded like every other world model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ivideogpt import UserError, WorldModel
from ivideogpt.models.dynamics import HeadsConfig
from ivideogpt.models.frame_reward import FrameRewardConfig
from ivideogpt.models.picture_dynamics import PictureDynamics, PictureDynamicsConfig
from ivideogpt.models.picture_forecast import PictureForecastConfig, PictureNetConfig
from ivideogpt.models.sprites import SpriteConfig, SpriteProjectionConfig
from ivideogpt.worldmodel.config import WorldModelConfig

NET = PictureNetConfig(width=8, deep_width=8, blocks_deep=1)


def build(**parts: object) -> WorldModel:
    """A tiny picture model of 16 px with random weights."""
    torch.manual_seed(0)
    config = PictureDynamicsConfig(
        resolution=16,
        forecast=PictureForecastConfig(net=NET),
        pointer_scale=8.0,
        pointer_offset=8.0,
        **{"reward": FrameRewardConfig(success_above=0.5), **parts},  # type: ignore[arg-type]
    )
    pictures = PictureDynamics(config)
    pictures.background.uniform_(0.7, 0.9)
    settings = WorldModelConfig(name="tiny", clip_frames=5, heads=HeadsConfig(action_dim=2, reward=True))
    return WorldModel.from_pictures(settings, pictures).eval()


@pytest.fixture
def model() -> WorldModel:
    return build()


SPRITES = SpriteProjectionConfig(sprites=(SpriteConfig(size=6, turns=False), SpriteConfig(size=8, angles=8)))


def frames(rows: int = 2, count: int = 2) -> Tensor:
    return torch.rand(rows, count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def actions(rows: int = 2, horizon: int = 5) -> Tensor:
    return torch.rand(rows, horizon, 2, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_frames_and_rewards_are_imagined_without_tokens(model: WorldModel) -> None:
    imagined = model.imagine(frames(), actions())
    assert imagined.frames.shape == (2, 5, 3, 16, 16) and 0 <= imagined.frames.min() <= imagined.frames.max() <= 1
    assert imagined.ids.shape == imagined.log_probs.shape == imagined.entropies.shape == (2, 5, 0)
    assert imagined.ids.dtype == torch.int64
    assert imagined.rewards is not None and imagined.rewards.shape == (2, 5)
    assert imagined.terminations is not None and set(imagined.terminations.unique().tolist()) <= {0.0, 1.0}


def test_the_action_moves_the_forecast_to_the_pointed_pixel(model: WorldModel) -> None:
    context = frames(1).expand(2, -1, -1, -1, -1)
    imagined = model.imagine(context, torch.tensor([[[-1.0, -1.0]], [[1.0, 1.0]]]))
    assert not torch.equal(imagined.frames[0], imagined.frames[1])
    assert model.pictures is not None
    direct = model.pictures(context, torch.tensor([[-1.0, -1.0], [1.0, 1.0]])).frames
    torch.testing.assert_close(imagined.frames[:, 0], direct)


def test_steps_equal_a_rollout_across_segments_and_after_rewinding(model: WorldModel) -> None:
    imagined = model.imagine(frames(), actions())
    session = model.session(frames(), reanchor_every=2)
    for index in range(5):
        session.step(actions()[:, index])
    torch.testing.assert_close(session.frames[:, 2:], imagined.frames)
    session.rewind(4)
    for index in range(1, 5):
        session.step(actions()[:, index])
    torch.testing.assert_close(session.frames[:, 2:], imagined.frames)


def test_rigid_objects_go_on_from_their_poses_after_forking_and_rewinding() -> None:
    session = build(sprites=SPRITES).session(frames())
    steps = [session.step(actions()[:, index]).frames for index in range(3)]
    session.rewind(2)
    child = session.fork(2)
    for index in (1, 2):
        again = session.step(actions()[:, index]).frames
        torch.testing.assert_close(again, steps[index])
        torch.testing.assert_close(child.step(actions()[:, index].repeat_interleave(2, dim=0)).frames[::2], again)


def test_children_of_a_fork_and_selected_rows_go_on_as_their_parents(model: WorldModel) -> None:
    session = model.session(frames())
    session.step(actions()[:, 0])
    child, chosen = session.fork(3), session.select([1])
    expected = session.step(actions()[:, 1]).frames
    torch.testing.assert_close(child.step(actions()[:, 1].repeat_interleave(3, dim=0)).frames[::3], expected)
    torch.testing.assert_close(chosen.step(actions()[1:, 1]).frames, expected[1:])
    child.rewind(2)
    assert child.steps == 0 and session.steps == 2


def test_an_observed_frame_takes_the_place_of_the_imagined_one(model: WorldModel) -> None:
    real = frames(2, 3)
    session = model.session(real[:, :2])
    step = session.observe(real[:, 2], actions()[:, 0])
    torch.testing.assert_close(step.frames, real[:, 2])
    assert model.pictures is not None
    expected = model.pictures(real[:, 1:], actions()[:, 1]).frames
    torch.testing.assert_close(session.step(actions()[:, 1]).frames, expected)


def test_a_saved_model_imagines_the_same(tmp_path: Path) -> None:
    model = build(sprites=SPRITES)
    model.save_pretrained(tmp_path / "saved")
    loaded = WorldModel.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(loaded.imagine(frames(), actions()).frames, model.imagine(frames(), actions()).frames)
    assert not loaded.has_tokens and loaded.resolution == 16 and loaded.config == model.config
    assert "drawn by a convolutional network" in (tmp_path / "saved" / "README.md").read_text()


def test_the_reward_is_that_of_the_frame_and_a_success_ends_an_episode(model: WorldModel) -> None:
    assert model.pictures is not None and model.pictures.reward is not None
    torch.nn.init.constant_(model.pictures.reward.head.bias, 1.0)
    step = model.session(frames()).step(actions()[:, 0])
    assert step.rewards is not None and step.terminations is not None
    assert (step.rewards > 0.5).all() and (step.terminations == 1).all()


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (
            lambda model: model.log_prob(frames(), actions(), torch.zeros(2, 5, 4).long()),
            "log_prob needs a token model",
        ),
        (lambda model: model.imagine(frames(2, 3), actions()), "takes exactly 2"),
        (lambda model: model.imagine(frames()), "no actions came"),
    ],
)
def test_what_a_picture_model_cannot_do_is_refused_in_a_sentence(model: WorldModel, mistake, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        mistake(model)


def test_parts_that_do_not_fit_are_refused() -> None:
    pictures = build().pictures
    assert pictures is not None
    with pytest.raises(UserError, match="actions of 3 numbers"):
        WorldModel.from_pictures(WorldModelConfig(heads=HeadsConfig(action_dim=3)), pictures)
    with pytest.raises(UserError, match="its forecast reads 2"):
        WorldModel.from_pictures(WorldModelConfig(context_frames=1, heads=HeadsConfig(action_dim=2)), pictures)
    with pytest.raises(UserError, match="multiple of 8"):
        PictureDynamicsConfig(resolution=20)


def test_a_damaged_checkpoint_is_named(tmp_path: Path, model: WorldModel) -> None:
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no 'world_model'"):
        WorldModel.from_pretrained(tmp_path / "saved")


def test_each_row_is_drawn_over_the_background_of_its_scene() -> None:
    """Two scenes; a third of the pixels of each frame is covered, and the scene is read from the rest."""
    model = build(scenes=2)
    assert model.pictures is not None
    pictures = model.pictures
    pictures.background[0], pictures.background[1] = 0.2, 0.8
    pictures.steadiness.fill_(0.9)
    covered = frames(4, 1)[:, 0]
    for row, scene in enumerate((1, 0, 0, 1)):
        covered[row, :, :, 5:] = pictures.background[scene, :, :, 5:]
    assert pictures.scene_of(covered).tolist() == [1, 0, 0, 1]
    assert torch.equal(pictures.background_of(covered)[0], pictures.background[1])
    # a row among others is drawn as it would be alone
    history, moves = covered[:, None].repeat(1, 2, 1, 1, 1), actions(4, 1)
    together = model.imagine(history, moves).frames
    alone = [model.imagine(history[row : row + 1], moves[row : row + 1]).frames for row in range(4)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_scenes_survive_saving(tmp_path: Path) -> None:
    model = build(scenes=3)
    assert model.pictures is not None
    model.pictures.steadiness.uniform_()
    model.save_pretrained(tmp_path / "scenes")
    loaded = WorldModel.from_pretrained(tmp_path / "scenes").pictures
    assert loaded is not None and torch.equal(loaded.steadiness, model.pictures.steadiness)
    assert torch.equal(loaded.background, model.pictures.background)
