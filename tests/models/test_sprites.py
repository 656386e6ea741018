"""Sprites are found where they are, drawn whole, and there is always one of each."""

import math

import pytest
import torch
from torch.nn import functional as F

from ivideogpt.core.config import from_dict, to_dict
from ivideogpt.core.errors import UserError
from ivideogpt.models.sprites import SpriteConfig, SpriteProjection, SpriteProjectionConfig

BAR, DOT = SpriteConfig(size=16, shrink=2), SpriteConfig(size=6, turns=False)


@pytest.fixture
def world() -> tuple[SpriteProjection, torch.Tensor]:
    """A red L and a blue dot before a white background of 40x48 px."""
    model = SpriteProjection(SpriteProjectionConfig(sprites=(BAR, DOT), steps=5))
    places = (torch.arange(32) + 0.5) / 2 - 8
    inside = (places[:, None].abs() < 6) & (places > -6) & (places < -2)
    inside = inside | ((places[:, None] > 2) & (places[:, None] < 6) & (places > -6) & (places < 5))
    dots = (torch.arange(12) + 0.5) / 2 - 3
    round_ = (dots**2 + dots[:, None] ** 2).sqrt() < 2.2
    for texture, mask, colour in zip(model.textures, (inside, round_), ((2.0, -2.0, -2.0), (-2, -2, 2)), strict=True):
        texture.data[:3] = torch.tensor(colour)[:, None, None]
        texture.data[3] = torch.where(mask, 6.0, -8.0)
    return model.eval(), torch.full((1, 3, 40, 48), 0.95)


def poses() -> list[torch.Tensor]:
    bar = torch.tensor([[20.3, 19.8, 0.4], [28.7, 14.2, -2.0], [15.0, 25.5, 3.0]])
    return [bar, torch.tensor([[40.2, 9.6, 0.0], [24.0, 18.0, 0.0], [4.1, 35.7, 0.0]])]


def test_config_survives_json() -> None:
    config = SpriteProjectionConfig(sprites=(BAR, DOT))
    assert from_dict(SpriteProjectionConfig, to_dict(config)) == config


def test_poses_are_read_back_to_a_tenth_of_a_pixel(world) -> None:
    model, background = world
    found, seen = model.read(model.draw(poses(), background), background)
    for pose, true in zip(found, poses(), strict=True):
        assert (pose[:, :2] - true[:, :2]).abs().max() < 0.1
    turn = found[0][:, 2] - poses()[0][:, 2]
    assert torch.atan2(turn.sin(), turn.cos()).abs().max() < 0.02
    assert all(there.all() for there in seen)


def test_a_blurred_and_faded_picture_becomes_a_clean_one(world) -> None:
    model, background = world
    with torch.no_grad():
        clean = model.draw(poses(), background)
    blurred = F.avg_pool2d(F.pad(clean, (1,) * 4, value=0.95), 3, 1) * 0.9 + background * 0.1
    found, _ = model.read(blurred, background)
    for pose, true in zip(found, poses(), strict=True):
        assert (pose[:, :2] - true[:, :2]).norm(dim=1).max() < 0.7
    assert ((model(blurred, background) - clean) ** 2).mean() < ((blurred - clean) ** 2).mean()


def test_a_missing_thing_stays_where_it_was(world) -> None:
    model, background = world
    before = model.draw(poses(), background)
    now = model.draw([poses()[0], torch.full((3, 3), 500.0)], background)
    drawn = model(now, background, before)
    assert (drawn - before).abs().max() < 0.15
    _, (bar, dot) = model.read(now, background)
    assert bar.all() and not dot.any()


def test_rows_do_not_depend_on_each_other(world) -> None:
    model, background = world
    pictures = model.draw(poses(), background)
    alone = torch.cat([model(row[None], background) for row in pictures])
    assert torch.allclose(model(pictures, background), alone, atol=1e-4)


def test_textures_are_learned_through_the_drawing() -> None:
    model = SpriteProjection(SpriteProjectionConfig(sprites=(DOT,)))
    background = torch.ones(1, 3, 16, 16)
    model.draw([torch.tensor([[8.0, 8.0, 0.0]])], background).sum().backward()
    gradient = model.textures[0].grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_things_half_outside_are_read(world) -> None:
    model, background = world
    there = [torch.tensor([[2.0, 20.0, math.pi / 2]]), torch.tensor([[47.5, 30.0, 0.0]])]
    found, _ = model.read(model.draw(there, background), background)
    assert (found[1][:, :2] - there[1][:, :2]).norm() < 0.5


def test_a_world_without_things_is_refused() -> None:
    with pytest.raises(UserError, match="sprites is empty"):
        SpriteProjectionConfig(sprites=())
