"""Shape and pose of the block in PushT frames, and the number of agents.

A frame can have a high PSNR and still be wrong: the T melts, an arm grows, the agent is missing or doubled. The T score
compares the block with a rigid T in every pose, whether or not the pose is the true one; other measures do that.
Positions are in px of the 64x64 picture, angles in rad from x towards y.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.pusht_metrics import IMAGE_SIZE, colour_shares, locate_agent, locate_block

#: px of the simulator's plane for one px of a picture.
PLANE_SCALE = 8.0
# The T in px of the plane, in its own frame: bar and stem, with the rim of 2 px that is drawn round each.
_BAR = ((-62.0, -2.0), (62.0, 32.0))
_STEM = ((-17.0, 30.0), (17.0, 122.0))
#: From the T's origin to its centre of mass along its own y axis, in px of a picture.
CENTRE_OFFSET = 45.0 / PLANE_SCALE
_AREA = (124 * 34 + 34 * 92) / PLANE_SCALE**2
# Shares of the block below this are noise of colour; walls are grey too and lie in the outermost px.
_FLOOR, _WALL = 0.1, 2
_ANGLES, _SHIFTS, _TEMPLATE, _WINDOW, _CANDIDATES = 60, 2, 25, 40, 6
# A second agent: what lies outside the first one's window and is at least this part of one.
_AGENT_FLOOR, _AGENT_AREA, _AGENT_PART, _AGENT_WINDOW = 0.2, 9.0, 0.35, 9


class BlockShape(NamedTuple):
    """Shape of the block in each frame.

    Attributes:
        score: float32 ``[..]`` in 0 to 1, T score: best soft intersection over union with a rigid T of any pose.
        area: float32 ``[..]``, drawn area / area of a T.
    """

    score: Tensor
    area: Tensor


def block_shares(frames: Tensor) -> Tensor:
    """Share of the block in each pixel, without the walls: float32 ``[.. 64 64]`` of ``frames`` ``[.. 3 64 64]``."""
    shares = colour_shares(frames)[..., 1, :, :].clone()
    shares[..., :_WALL, :] = shares[..., -_WALL:, :] = 0
    shares[..., :, :_WALL] = shares[..., :, -_WALL:] = 0
    return shares


def block_shape(frames: Tensor, batch: int = 64) -> BlockShape:
    """Compare the block with a rigid T at 60 angles and all positions to half a px; true frames score about .81.

    Args:
        frames: ``[.. 3 64 64]``, uint8 or floating in [0, 1].
        batch: pictures compared at once.

    Returns:
        The T score and the area of each picture.
    """
    lead = frames.shape[:-3]
    shares = F.relu(block_shares(frames) - _FLOOR) / (1 - _FLOOR)
    flat = rearrange(shares.reshape(-1, IMAGE_SIZE, IMAGE_SIZE), "n h w -> n 1 h w")
    scores = [_t_scores(part) for part in flat.split(batch)]
    score = torch.cat(scores) if scores else flat.new_zeros(0)
    return BlockShape(score.reshape(lead), reduce(flat, "n 1 h w -> n", "sum").reshape(lead) / _AREA)


def block_iou(true: Tensor, imagined: Tensor, threshold: float = 0.4) -> Tensor:
    """Intersection over union of the blocks' pixels: float32 ``[..]`` of two ``[.. 3 64 64]``; without any block, 0."""
    x, y = block_shares(true) > threshold, block_shares(imagined) > threshold
    both, either = (reduce(z.float(), "... h w -> ...", "sum") for z in (x & y, x | y))
    return both / either.clamp(min=1)


def agent_count(frames: Tensor) -> Tensor:
    """Agents in each picture: int64 ``[..]``, 0, 1 or 2 (two or more), of ``frames`` ``[.. 3 64 64]``.

    What counts is colour: a first agent is the densest window of it, a second one is what lies outside and is at least
    a third of an agent.
    """
    agent = locate_agent(frames)
    colour = F.relu(colour_shares(frames)[..., 0, :, :] - _AGENT_FLOOR) / (1 - _AGENT_FLOOR)
    places = torch.arange(IMAGE_SIZE, device=frames.device) + 0.5
    beyond = _AGENT_WINDOW / 2
    outside_x = (places - agent.xy[..., :1]).abs() > beyond
    outside_y = (places - agent.xy[..., 1:]).abs() > beyond
    outside = outside_y[..., :, None] | outside_x[..., None, :]
    second = reduce(colour * outside, "... h w -> ...", "sum") >= _AGENT_PART * _AGENT_AREA
    return agent.present.long() + (agent.present & second).long()


def shape_measures(true: Tensor, imagined: Tensor, moved: float = 8.0) -> dict[str, list[float]]:
    """Measures how well imagined PushT clips hold together, frame by frame.

    Args:
        true: ``[n t 3 64 64]``, uint8 or floating in [0, 1], the frames after the context.
        imagined: the same frames as the model imagines them.
        moved: px that the true block's centre must travel in a clip for it to count as moved.

    Returns:
        Lists of t means: ``t_score``, ``t_score_true``, ``block_iou``, ``block_area`` (imagined / true), ``agent_none``
        and ``agent_two`` (shares of frames whose true agent is seen), and over moved clips ``block_error`` in px and
        ``block_turn`` in rad (NaN without such clips).

    Raises:
        UserError: the shapes differ.
    """
    if true.shape != imagined.shape or true.ndim != 5:
        shapes = f"true is {list(true.shape)} and imagined is {list(imagined.shape)}"
        raise UserError(f"{shapes}; expected the same [n t 3 {IMAGE_SIZE} {IMAGE_SIZE}]; cut both to the same frames")
    shape, true_shape = block_shape(imagined), block_shape(true)
    agents, seen = agent_count(imagined), locate_agent(true).present.float()
    block, true_block = locate_block(imagined), locate_block(true)
    travelled = (true_block.xy[:, -1] - true_block.xy[:, 0]).norm(dim=-1) >= moved
    turn = block.angle - true_block.angle
    turn = torch.atan2(turn.sin(), turn.cos()).abs()
    frames_seen = seen.sum(dim=0)
    means = {
        "t_score": shape.score.mean(dim=0),
        "t_score_true": true_shape.score.mean(dim=0),
        "block_iou": block_iou(true, imagined).mean(dim=0),
        "block_area": (shape.area / true_shape.area.clamp(min=0.1)).mean(dim=0),
        "agent_none": ((agents == 0) * seen).sum(dim=0) / frames_seen,
        "agent_two": ((agents == 2) * seen).sum(dim=0) / frames_seen,
        "block_error": (block.xy - true_block.xy).norm(dim=-1)[travelled].mean(dim=0),
        "block_turn": turn[travelled].mean(dim=0),
    }
    return {name: values.tolist() for name, values in means.items()}


def _t_scores(shares: Tensor) -> Tensor:
    """T score of shares ``[n 1 64 64]``: ``[n]``.

    All templates are laid over a window around the densest place; for the best few of each picture the overlap is then
    computed exactly, what lies outside of the window included.
    """
    n, half = len(shares), _WINDOW // 2
    templates = _templates().to(shares.device)
    areas = reduce(templates, "k 1 h w -> k", "sum")
    densest = F.avg_pool2d(shares, 17, 1, 8).flatten(1).argmax(dim=1)
    padded = F.pad(shares, (half,) * 4)
    rows = densest[:, None] // IMAGE_SIZE + torch.arange(_WINDOW, device=shares.device)
    columns = densest[:, None] % IMAGE_SIZE + torch.arange(_WINDOW, device=shares.device)
    window = padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None, :]]
    # The minimum with a template is at most its product's bound, so the product finds the candidates.
    product = F.conv2d(window[:, None], templates)
    inside = reduce(window, "n h w -> n", "sum")
    quality = product / (inside[:, None, None, None] + areas[:, None, None] - product)
    best = quality.flatten(1).topk(_CANDIDATES, dim=1).indices
    side = _WINDOW - _TEMPLATE + 1
    kind, place = best // side**2, best % side**2
    row, column = place // side, place % side
    steps = torch.arange(_TEMPLATE, device=shares.device)
    index = torch.arange(n)[:, None, None, None]
    patch = window[
        index, (row[..., None] + steps)[..., :, None], (column[..., None] + steps)[..., None, :]
    ]  # [n candidates 25 25]
    template = templates[kind, 0]
    both = torch.minimum(patch, template).sum((2, 3))
    total = reduce(shares, "n 1 h w -> n 1", "sum")
    return (both / (total + areas[kind] - both)).amax(dim=1)


@functools.cache
def _templates() -> Tensor:
    """Draw the T at every angle and subpixel shift, averaged over 8x8 points a pixel: float32 ``[k 1 25 25]``."""
    fine, middle = 8, _TEMPLATE / 2
    points = (torch.arange(_TEMPLATE * fine) + 0.5) / fine
    drawn = []
    for number in range(_ANGLES):
        angle = 2 * math.pi * number / _ANGLES
        for shift_x, shift_y in itertools.product(range(_SHIFTS), repeat=2):
            x, y = points - middle - shift_x / _SHIFTS, points[:, None] - middle - shift_y / _SHIFTS
            across = (x * math.cos(angle) + y * math.sin(angle)) * PLANE_SCALE
            along = (y * math.cos(angle) - x * math.sin(angle) + CENTRE_OFFSET) * PLANE_SCALE
            inside = torch.zeros(len(points), len(points), dtype=torch.bool)
            for (left, top), (right, bottom) in (_BAR, _STEM):
                inside |= (across >= left) & (across <= right) & (along >= top) & (along <= bottom)
            drawn.append(reduce(inside.float(), "(h p) (w q) -> h w", "mean", p=fine, q=fine))
    return torch.stack(drawn)[:, None]
