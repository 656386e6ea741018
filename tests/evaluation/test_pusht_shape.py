"""The shape measures tell a T from what is left of one, and one agent from none or two."""

import math

import pytest
import torch
from torch.nn import functional as F

from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.pusht_shape import (
    CENTRE_OFFSET,
    PLANE_SCALE,
    agent_count,
    block_iou,
    block_shape,
    shape_measures,
)

BLOCK = torch.tensor([135, 154, 173])[:, None, None] / 255
AGENT = torch.tensor([72, 116, 241])[:, None, None] / 255


def block_share(pose: tuple[float, float, float]) -> torch.Tensor:
    """Share of a T in each pixel, float ``[64 64]``, at a pose (centre of mass in px, angle in rad)."""
    places = torch.arange(64) + 0.5
    x, y = places - pose[0], places[:, None] - pose[1]
    across = (x * math.cos(pose[2]) + y * math.sin(pose[2])) * PLANE_SCALE
    along = (y * math.cos(pose[2]) - x * math.sin(pose[2]) + CENTRE_OFFSET) * PLANE_SCALE
    bar = (62 - across.abs()).minimum(17 - (along - 15).abs())
    stem = (17 - across.abs()).minimum(46 - (along - 76).abs())
    return (bar.maximum(stem) / PLANE_SCALE + 0.5).clamp(0, 1)


def picture(pose: tuple[float, float, float] | None, agents: tuple[tuple[float, float], ...] = ()) -> torch.Tensor:
    """Float ``[3 64 64]`` with a T at a pose (centre of mass in px, angle in rad) and agents at places."""
    image = torch.ones(3, 64, 64)
    if pose is not None:
        share = block_share(pose)
        image = image + share * (BLOCK - image)
    places = torch.arange(64) + 0.5
    for x, y in agents:
        disc = (2.4 - ((places - x) ** 2 + (places[:, None] - y) ** 2).sqrt()).clamp(0, 1)
        image = image + disc * (AGENT - image)
    return image


def melted(image: torch.Tensor, times: int = 6) -> torch.Tensor:
    for _ in range(times):
        image = F.avg_pool2d(F.pad(image[None], (1, 1, 1, 1), value=1.0), 3, 1)[0]
    return image


@pytest.mark.parametrize("angle", [-2.8, -1.0, 0.0, 0.4, 2.0])
def test_a_rigid_t_scores_high_in_every_pose_and_a_melted_one_low(angle: float) -> None:
    whole = picture((31.3, 28.8, angle), ((50.0, 50.0),))
    shape = block_shape(torch.stack([whole, melted(whole)]))
    assert shape.score[0] > 0.8 and shape.score[1] < 0.65
    assert shape.area[0] == pytest.approx(1, abs=0.12)


def test_half_a_t_scores_low_and_has_half_the_area() -> None:
    image = picture((32.0, 32.0, 0.0))
    image[:, :, 32:] = 1
    shape = block_shape(image)
    assert shape.score < 0.6 and shape.area == pytest.approx(0.5, abs=0.1)


def test_a_picture_without_a_block_scores_zero() -> None:
    shape = block_shape(torch.ones(2, 3, 64, 64))
    assert shape.score.tolist() == [0, 0] and shape.area.tolist() == [0, 0]


def test_bytes_and_floats_score_alike_whatever_the_batch() -> None:
    images = torch.stack([picture((20.0 + 5 * k, 30.0, k)) for k in range(4)])
    assert torch.allclose(block_shape(images).score, block_shape((images * 255).byte(), batch=3).score, atol=0.02)


def test_agents_are_counted() -> None:
    pose = (20.0, 20.0, 0.5)
    images = [picture(pose), picture(pose, ((45.0, 40.0),)), picture(pose, ((45.0, 40.0), (50.0, 10.0)))]
    assert agent_count(torch.stack(images)).tolist() == [0, 1, 2]


def test_measures_are_given_frame_by_frame() -> None:
    true = torch.stack([picture((20.0 + 3 * t, 30.0, 0.3), ((10.0, 50.0),)) for t in range(4)])[None]
    wrong = true.clone()
    wrong[0, 3] = melted(picture((20.0, 30.0, 0.3)))
    same, other = shape_measures(true, true), shape_measures(true, wrong)
    assert same["block_iou"] == [1.0] * 4 and max(same["block_error"]) < 0.01 and same["agent_none"] == [0.0] * 4
    assert other["t_score"][:3] == same["t_score"][:3] and other["t_score"][3] < same["t_score"][3] - 0.1
    assert other["agent_none"] == [0, 0, 0, 1] and other["block_error"][3] > 5


def test_iou_of_blocks_apart_is_zero() -> None:
    assert block_iou(picture((15.0, 15.0, 0.0)), picture((48.0, 48.0, 0.0))) == 0


def test_clips_of_different_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="cut both to the same frames"):
        shape_measures(torch.ones(1, 3, 3, 64, 64), torch.ones(1, 2, 3, 64, 64))
