"""PushT measures read positions off pictures and tell good imaginations from bad ones."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.pusht_metrics import changed_psnr, locate_agent, locate_block, pusht_measures

WHITE, BLOCK, GOAL, AGENT = (255, 255, 255), (135, 154, 173), (144, 238, 144), (72, 116, 241)


def _draw(agent: tuple[float, float] | None, block: tuple[float, float, float]) -> torch.Tensor:
    """uint8 ``[3 64 64]``: agent at x, y and block at x, y (area centre), angle, drawn at 512 px and averaged."""
    y, x = np.mgrid[0:512, 0:512] + 0.5
    image = np.full((512, 512, 3), WHITE, np.float64)

    def tee(centre_x: float, centre_y: float, angle: float) -> np.ndarray:
        right = (x - 8 * centre_x) * math.cos(angle) + (y - 8 * centre_y) * math.sin(angle)
        down = -(x - 8 * centre_x) * math.sin(angle) + (y - 8 * centre_y) * math.cos(angle) + 40.7
        bar = (abs(right) < 60) & (down >= 0) & (down < 30)
        return bar | ((abs(right) < 15) & (down >= 30) & (down < 120))

    image[tee(29, 36, math.pi / 4)] = GOAL
    image[tee(*block)] = BLOCK
    if agent is not None:
        image[(x - 8 * agent[0]) ** 2 + (y - 8 * agent[1]) ** 2 < 15**2] = AGENT
    small = image.reshape(64, 8, 64, 8, 3).mean((1, 3)).round().astype(np.uint8)
    return torch.from_numpy(small).permute(2, 0, 1)


def _clip(positions: list[tuple[float, float]], block_x: list[float]) -> torch.Tensor:
    frames = [_draw(agent, (x, 20.0, 0.5)) for agent, x in zip(positions, block_x, strict=True)]
    return torch.stack(frames)[None].float() / 255


@pytest.mark.parametrize("xy", [(10.3, 50.8), (29.0, 36.0), (3.0, 60.5)])
def test_agent_is_found_to_a_third_of_a_pixel(xy):
    agent = locate_agent(_draw(xy, (45.0, 15.0, 1.0)))
    assert agent.present and (agent.xy - torch.tensor(xy)).norm() < 0.3


@pytest.mark.parametrize("angle", [-2.5, -0.4, 0.0, 1.2, 3.0])
def test_block_is_found_to_half_a_pixel_and_five_degrees(angle):
    block = locate_block(_draw((8.0, 8.0), (40.2, 30.6, angle)))
    assert block.present and (block.xy - torch.tensor([40.2, 30.6])).norm() < 0.5
    assert abs(math.remainder(float(block.angle) - angle, 2 * math.pi)) < math.radians(5)


def test_positions_survive_blur_and_noise():
    frame = _draw((12.0, 44.0), (42.0, 22.0, 0.7)).float() / 255
    blurred = functional.avg_pool2d(functional.pad(frame, (1, 1, 1, 1), value=1.0), 3, 1)
    noisy = (blurred + 0.02 * torch.randn(frame.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert (locate_agent(noisy).xy - torch.tensor([12.0, 44.0])).norm() < 0.5
    assert (locate_block(noisy).xy - torch.tensor([42.0, 22.0])).norm() < 1.0


def test_absent_agent_is_missing_and_blank_frames_have_no_block():
    assert not locate_agent(_draw(None, (40.0, 30.0, 0.0))).present
    blank = torch.ones(3, 64, 64)
    assert not locate_agent(blank).present and not locate_block(blank).present
    assert locate_block(blank).xy.isfinite().all()


def test_leading_axes_are_kept_and_types_agree():
    frame = _draw((12.0, 44.0), (42.0, 22.0, 0.7))
    frames = frame.expand(2, 5, 3, 64, 64)
    assert locate_agent(frames).xy.shape == (2, 5, 2) and locate_block(frames).angle.shape == (2, 5)
    torch.testing.assert_close(locate_agent(frames / 255).xy, locate_agent(frames).xy)


def test_real_frames_agree_with_the_simulator():
    pytest.importorskip("gym_pusht", reason="real frames need gym-pusht: pip install 'ivideogpt[pusht]'")
    from ivideogpt.envs.pusht import PushT

    environment = PushT()
    observations = [environment.reset(seed=seed) for seed in range(40)]
    frames = torch.from_numpy(np.stack([frame for frame, _ in observations])).permute(0, 3, 1, 2)
    state = torch.from_numpy(np.stack([info["state"] for _, info in observations]))
    stem = torch.stack([-state[:, 4].sin(), state[:, 4].cos()], -1)
    agent, block = locate_agent(frames), locate_block(frames)
    assert (agent.xy - state[:, :2] / 8).norm(dim=-1).median() < 0.3
    assert (block.xy - (state[:, 2:4] + 40.7 * stem) / 8).norm(dim=-1).median() < 0.5
    assert torch.cos(block.angle - state[:, 4]).median() > math.cos(math.radians(3))


def test_perfect_imagination_has_perfect_measures():
    true = _clip([(10, 10), (14, 10), (18, 10)], [30, 36, 42])
    measures = pusht_measures(true, true)
    assert measures["agent_near"] == measures["agent_near_last"] == 1
    assert measures["agent_missing"] == measures["block_error_moved"] == 0
    assert measures["moved_clips"] == 1


def test_copy_of_the_context_is_found_out():
    true = _clip([(10, 10), (14, 10), (18, 10)], [30, 36, 42])
    copy = true[:, :1].expand_as(true)
    measures = pusht_measures(true, copy, true[:, 0])
    assert measures["agent_near"] == pytest.approx(1 / 3) and measures["agent_near_last"] == 0
    assert measures["block_error_moved"] == pytest.approx(12, abs=0.5)
    assert measures["changed_psnr"] < 15


def test_vanished_agent_counts_as_missing_and_not_as_near():
    true = _clip([(10, 10), (14, 10)], [30, 30])
    imagined = torch.stack([true[0, 0], _draw(None, (30.0, 20.0, 0.5)) / 255])[None]
    measures = pusht_measures(true, imagined)
    assert measures["agent_missing"] == 0.5 and measures["agent_near_last"] == 0
    assert math.isnan(measures["block_error_moved"]), "no clip moved"


def test_changed_psnr_ignores_what_stood_still():
    context = torch.zeros(1, 3, 8, 8)
    true = torch.zeros(1, 2, 3, 8, 8)
    true[:, :, :, :2] = 1.0
    imagined = true.clone()
    imagined[:, :, :, 4:] = 0.5
    assert changed_psnr(true, imagined, context) == pytest.approx(100)
    imagined[:, :, :, :2] = 0.9
    assert changed_psnr(true, imagined, context) == pytest.approx(20, abs=1e-3)


def test_other_sizes_are_refused():
    with pytest.raises(UserError, match="64"):
        locate_agent(torch.zeros(3, 32, 32))
    with pytest.raises(UserError, match="expected the same"):
        pusht_measures(torch.zeros(1, 2, 3, 64, 64), torch.zeros(1, 3, 3, 64, 64))
