"""Positions of agent and block in PushT frames, read from their colours, and their errors in imagined frames.

The picture has four colours (white, agent, block, goal), and area averaging mixes them linearly. So the share of
each colour in a pixel is a 3x3 linear map of its RGB value, exact on edges and mild on blur. Positions are computed
from these shares, not from thresholded classes. Positions are in px of the 64x64 image, x to the right
and y down, and the plane's origin is at (0, 0): 8 px of the simulator are 1 px here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional

from ivideogpt.core.errors import UserError

#: Side of the images in px.
IMAGE_SIZE = 64

# Mean colours as drawn: rim and lighter inside. In this order: agent (RoyalBlue), block (LightSlateGray), goal.
_COLOURS = ((72, 116, 241), (135, 154, 173), (144, 238, 144))
# Shares below this are noise of colour: rims, walls, contact marks.
_AGENT_FLOOR, _BLOCK_FLOOR = 0.2, 0.4
# Areas of the agent (11 px) and the block (98 px) above the floors.
_AGENT_AREA, _BLOCK_AREA = 9.0, 72.0
# An object is missing where less than this part of it is visible.
_PRESENT_PART = 0.35
# Sides in px of the windows that hold a whole object.
_AGENT_WINDOW, _BLOCK_WINDOW = 7, 23


class AgentLocation(NamedTuple):
    """Position of the agent: ``xy`` float32 ``[.. 2]`` in px; ``present`` bool ``[..]``, False: ``xy`` is a guess."""

    xy: Tensor
    present: Tensor


class BlockLocation(NamedTuple):
    """Pose of the block.

    Attributes:
        xy: float32 ``[.. 2]``, centre of its visible area in px.
        angle: float32 ``[..]`` in rad, -pi to pi, turning from x towards y; the simulator's block angle.
        present: bool ``[..]``; False: ``xy`` and ``angle`` are a guess.
    """

    xy: Tensor
    angle: Tensor
    present: Tensor


def colour_shares(frames: Tensor) -> Tensor:
    """Return the share of agent, block and goal in each pixel.

    Args:
        frames: ``[.. 3 64 64]``, RGB; uint8, or floating in [0, 1].

    Returns:
        float32 ``[.. 3 64 64]`` in [0, 1]: agent, block, goal.

    Raises:
        UserError: the shape is wrong.
    """
    if frames.shape[-3:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise UserError(f"frames have shape {list(frames.shape)}; expected [.. 3 {IMAGE_SIZE} {IMAGE_SIZE}] of PushT")
    colours = torch.tensor(_COLOURS, device=frames.device) / 255 - 1
    shares = torch.einsum("...chw,cs->...shw", _unit(frames) - 1, torch.linalg.inv(colours))
    return shares.clamp(0, 1)


def locate_agent(frames: Tensor) -> AgentLocation:
    """Locate the agent in ``frames`` ``[.. 3 64 64]`` (uint8, or floating in [0, 1])."""
    agent = _above(colour_shares(frames)[..., 0, :, :], _AGENT_FLOOR)
    weight = _near_densest(agent, _AGENT_WINDOW)
    return AgentLocation(_centroid(weight), reduce(weight, "... h w -> ...", "sum") >= _PRESENT_PART * _AGENT_AREA)


def locate_block(frames: Tensor) -> BlockLocation:
    """Locate the block in ``frames`` ``[.. 3 64 64]`` (uint8, or floating in [0, 1]).

    The T is longest along its stem, and its mass tails off towards the stem's end: second moments give the axis,
    the third moment gives the direction.
    """
    # Grey is close to tinted white: the share of the block is averaged over 3x3 px before noise is cut off.
    weight = _near_densest(_above(_box_mean(colour_shares(frames)[..., 1, :, :], 3), _BLOCK_FLOOR), _BLOCK_WINDOW)
    total = reduce(weight, "... h w -> ...", "sum")
    xy = _centroid(weight)
    weight = weight / rearrange(total.clamp_min(1e-6), "... -> ... 1 1")
    places = torch.arange(IMAGE_SIZE, device=weight.device) + 0.5
    x = places - rearrange(xy[..., 0], "... -> ... 1 1")
    y = rearrange(places, "h -> h 1") - rearrange(xy[..., 1], "... -> ... 1 1")

    def moment(values: Tensor) -> Tensor:
        return reduce(weight * values, "... h w -> ...", "sum")

    axis = 0.5 * torch.atan2(2 * moment(x * y), moment(x * x) - moment(y * y))
    along = x * rearrange(torch.cos(axis), "... -> ... 1 1") + y * rearrange(torch.sin(axis), "... -> ... 1 1")
    stem = axis + torch.where(moment(along**3) < 0, math.pi, 0.0)
    # At angle zero the stem points down, along y.
    return BlockLocation(xy, _wrapped(stem - math.pi / 2), total >= _PRESENT_PART * _BLOCK_AREA)


def changed_psnr(true: Tensor, imagined: Tensor, context_frame: Tensor, threshold: float = 8 / 255) -> Tensor:
    """Compute the PSNR over the pixels that differ from the last context frame, where a copy of it gains nothing.

    Args:
        true: ``[n t 3 h w]``, floating in [0, 1].
        imagined: the same.
        context_frame: ``[n 3 h w]``, the last context frame.
        threshold: a pixel has changed where a channel of ``true`` differs by more than this.

    Returns:
        float32 ``[n]`` in dB, one a clip over all its changed pixels; NaN where none changed.
    """
    difference = (true - rearrange(context_frame, "n c h w -> n 1 c h w")).abs()
    changed = reduce(difference, "n t c h w -> n t h w", "max") > threshold
    squared = reduce((true - imagined) ** 2, "n t c h w -> n t h w", "mean")
    error = reduce(squared * changed, "n t h w -> n", "sum") / reduce(changed.float(), "n t h w -> n", "sum")
    return -10 * torch.log10(error.clamp_min(1e-10))


def pusht_measures(
    true: Tensor,
    imagined: Tensor,
    context_frame: Tensor | None = None,
    near: float = 2.0,
    moved: float = 8.0,
) -> dict[str, float]:
    """Compare imagined PushT clips with the true ones by the positions in their pictures.

    Args:
        true: ``[n t 3 64 64]``, uint8 or floating in [0, 1], the frames after the context.
        imagined: the imagined frames.
        context_frame: ``[n 3 64 64]``, the last context frame, or None to leave out ``changed_psnr``.
        near: px within which the agent counts as right.
        moved: px the block's centre must travel from the first to the last true frame for a clip to count as moved.

    Returns:
        Shares in 0 to 1: ``agent_near`` and ``agent_near_last`` (right and present, all frames and last frame),
        ``agent_missing`` and ``agent_missing_last``, ``block_missing_last``; of frames whose true agent is visible.
        ``block_error_moved`` px and ``block_turn_moved`` rad: mean error at the last frame of moved clips (a missing
        block counts from the image's centre), NaN without such clips; ``moved_clips`` their number; with
        ``context_frame`` also ``changed_psnr`` in dB, the mean over clips in which something changed.

    Raises:
        UserError: the shapes differ.
    """
    if true.shape != imagined.shape or true.ndim != 5:
        shapes = f"true is {list(true.shape)} and imagined is {list(imagined.shape)}"
        raise UserError(f"{shapes}; expected the same [n t 3 {IMAGE_SIZE} {IMAGE_SIZE}]")
    true, imagined = _unit(true), _unit(imagined)
    true_agent, agent = locate_agent(true), locate_agent(imagined)
    right = agent.present & ((agent.xy - true_agent.xy).norm(dim=-1) <= near)
    visible = true_agent.present
    true_block, block = locate_block(true), locate_block(imagined[:, -1])
    travelled = (true_block.xy[:, -1] - true_block.xy[:, 0]).norm(dim=-1) >= moved
    turn = _wrapped(block.angle - true_block.angle[:, -1])
    measures = {
        "agent_near": right[visible].float().mean(),
        "agent_near_last": right[:, -1][visible[:, -1]].float().mean(),
        "agent_missing": (~agent.present)[visible].float().mean(),
        "agent_missing_last": (~agent.present)[:, -1][visible[:, -1]].float().mean(),
        "block_missing_last": (~block.present).float().mean(),
        "block_error_moved": (block.xy - true_block.xy[:, -1]).norm(dim=-1)[travelled].mean(),
        "block_turn_moved": turn.abs()[travelled].mean(),
        "moved_clips": travelled.sum(),
    }
    if context_frame is not None:
        measures["changed_psnr"] = changed_psnr(true, imagined, _unit(context_frame)).nanmean()
    return {name: float(value) for name, value in measures.items()}


def _unit(frames: Tensor) -> Tensor:
    """Convert frames of either type to float32 in [0, 1]."""
    return frames.float() / 255 if frames.dtype == torch.uint8 else frames.float()


def _wrapped(angle: Tensor) -> Tensor:
    """Wrap ``angle`` in rad to -pi to pi."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def _above(shares: Tensor, floor: float) -> Tensor:
    return functional.relu(shares - floor) / (1 - floor)


def _box_mean(images: Tensor, side: int) -> Tensor:
    """Average ``images`` ``[.. h w]`` over a window of ``side`` px around each pixel, zero beyond the image."""
    flat = rearrange(images, "... h w -> (...) 1 h w")
    return functional.avg_pool2d(flat, side, stride=1, padding=side // 2).reshape(images.shape)


def _near_densest(weight: Tensor, side: int) -> Tensor:
    """Keep ``weight`` ``[.. h w]`` inside the window of ``side`` px that holds most of it, zero elsewhere."""
    # Where several windows hold all of it, the mean of two boxes prefers the one with the object in its middle.
    score = _box_mean(_box_mean(weight, side), side // 2 | 1)
    best = rearrange(score, "... h w -> ... (h w)").argmax(-1)
    places = torch.arange(IMAGE_SIZE, device=weight.device)
    rows = (places - rearrange(best // IMAGE_SIZE, "... -> ... 1")).abs() <= side // 2
    columns = (places - rearrange(best % IMAGE_SIZE, "... -> ... 1")).abs() <= side // 2
    return weight * rearrange(rows, "... h -> ... h 1") * rearrange(columns, "... w -> ... 1 w")


def _centroid(weight: Tensor) -> Tensor:
    """Return the centre of mass ``[.. 2]`` (x, y) of ``weight`` ``[.. h w]`` in px, else the middle of the image."""
    places = torch.arange(IMAGE_SIZE, device=weight.device) + 0.5
    columns, rows = reduce(weight, "... h w -> ... w", "sum"), reduce(weight, "... h w -> ... h", "sum")
    total = reduce(columns, "... w -> ...", "sum")
    # A trace of mass in the middle, too small to matter beside an object, defines the centre of an empty image.
    trace = 1e-6
    x, y = ((side @ places + trace * IMAGE_SIZE / 2) / (total + trace) for side in (columns, rows))
    return torch.stack([x, y], -1)
