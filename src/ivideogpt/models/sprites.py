"""Pictures of rigid things before a still background: where each of them lies is read, and they are drawn again there.

A sprite is a learned texture with a mask. Reading finds the pose (x, y in px, angle in rad from x towards y) of each
sprite at which the drawn picture is nearest to a given one: first among all places and some angles by products, then by
damped least squares. So a blurred, faded or bent thing becomes a whole one where it is, and there is always exactly one
of each. It is the strongest of projections onto clean pictures, and only for worlds of rigid things seen from above.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError

#: px, px and rad by which a pose is nudged to see how the picture changes.
_NUDGES = (0.25, 0.25, 0.04)
# Most px, px and rad that a pose changes in one step.
_MOST = (2.0, 2.0, 0.3)


@dataclass(frozen=True, kw_only=True)
class SpriteConfig:
    """One rigid thing.

    Attributes:
        size: px along a side of the square that holds it in every pose.
        turns: it has an angle; a round thing has none.
        texels: of its texture for each px, along a side.
        angles: that are tried first.
        shrink: the first search is made on pictures averaged over squares of this side, in px.
    """

    size: int
    turns: bool = True
    texels: int = 2
    angles: int = 24
    shrink: int = 1

    def __post_init__(self) -> None:
        """Raises UserError where a number cannot be."""
        check_at_least(self, size=1, texels=1, angles=1, shrink=1)


@dataclass(frozen=True, kw_only=True)
class SpriteProjectionConfig:
    """The things of a world.

    Attributes:
        sprites: in the order in which they are drawn: later ones cover earlier ones.
        steps: of least squares, for each thing and round.
        rounds: each thing is fitted again while the others stay where they were found.
        missing_below: a thing of which less than this part is seen is missing; it is then where it was in the last
            picture, where there is one.
    """

    sprites: tuple[SpriteConfig, ...]
    steps: int = 3
    rounds: int = 2
    missing_below: float = 0.2

    def __post_init__(self) -> None:
        """Raises UserError where a number cannot be."""
        check_at_least(self, steps=1, rounds=1)
        if not self.sprites:
            raise UserError("sprites is empty; expected at least one thing that can be drawn")


class SpriteProjection(nn.Module):
    """Reads the poses of sprites from pictures and draws them.

    Source: ours; least squares on a rendered picture as in the tracking of known shapes.
    """

    def __init__(self, config: SpriteProjectionConfig) -> None:
        """Starts with grey discs; textures are trained on pictures whose poses are known."""
        super().__init__()
        self.config = config
        self.textures = nn.ParameterList()
        for sprite in config.sprites:
            side = sprite.size * sprite.texels
            places = (torch.arange(side) + 0.5) / side * 2 - 1
            inside = (places**2 + places[:, None] ** 2).sqrt() < 0.6
            mask = torch.where(inside, 0.0, -4.0)
            self.textures.append(nn.Parameter(torch.stack([torch.zeros_like(mask)] * 3 + [mask])))

    def draw(self, poses: Sequence[Tensor], background: Tensor) -> Tensor:
        """Draws all sprites.

        Args:
            poses: for each sprite float ``[b 3]``.
            background: float ``[b c h w]`` or ``[1 c h w]`` in [0, 1].

        Returns:
            float ``[b c h w]`` in [0, 1].
        """
        picture = background.expand(len(poses[0]), -1, -1, -1)
        corner = poses[0].new_zeros(len(poses[0]), 2)
        for index, pose in enumerate(poses):
            colour, mask = self._layer(index, pose, corner, picture.shape[-2:])
            picture = picture * (1 - mask) + colour
        return picture

    @torch.no_grad()
    def forward(self, frames: Tensor, background: Tensor, last: Tensor | None = None) -> Tensor:
        """Draws again what ``frames`` show.

        Args:
            frames: float ``[b c h w]`` in [0, 1].
            background: float ``[1 c h w]`` in [0, 1].
            last: the pictures before them, ``[b c h w]``: where a thing is missing, it is where it was.

        Returns:
            float ``[b c h w]`` in [0, 1].
        """
        poses, seen = self.read(frames, background)
        missing = ~torch.stack(seen).all(dim=0)
        if last is not None and missing.any():
            before, _ = self.read(last[missing], background)
            for pose, there, old in zip(poses, seen, before, strict=True):
                pose[missing] = torch.where(there[missing, None], pose[missing], old)
        return self.draw(poses, background)

    @torch.no_grad()
    def read(self, frames: Tensor, background: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Finds each sprite.

        Args:
            frames: float ``[b c h w]`` in [0, 1].
            background: float ``[1 c h w]`` in [0, 1].

        Returns:
            For each sprite its pose float ``[b 3]``, and whether it is seen at all, bool ``[b]``.
        """
        poses: list[Tensor | None] = [None] * len(self.config.sprites)
        seen, padded = [], self._padded(frames, background)
        for index in range(len(poses)):
            pose, part = self._search(index, frames, background, poses)
            seen.append(part >= self.config.missing_below)
            poses[index] = self._fit(index, pose, padded, poses)
        for _ in range(self.config.rounds - 1):
            for index, pose in enumerate(poses):
                assert pose is not None
                poses[index] = self._fit(index, pose, padded, poses)
        return [pose for pose in poses if pose is not None], seen

    def _layer(self, index: int, poses: Tensor, corner: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Colours times mask ``[b c h w]`` and mask ``[b 1 h w]`` of a sprite in windows that begin at ``corner``."""
        sprite, texture = self.config.sprites[index], self.textures[index].sigmoid()
        height, width = size
        x = torch.arange(width, device=poses.device) + 0.5 + (corner[:, :1] - poses[:, :1])
        y = torch.arange(height, device=poses.device) + 0.5 + (corner[:, 1:] - poses[:, 1:2])
        x, y = x[:, None, :], y[:, :, None]
        cosine, sine = poses[:, 2, None, None].cos(), poses[:, 2, None, None].sin()
        grid = torch.stack([x * cosine + y * sine, y * cosine - x * sine], dim=-1) * (2 / sprite.size)
        masked = torch.cat([texture[:3] * texture[3:], texture[3:]])
        layer = F.grid_sample(masked.expand(len(poses), -1, -1, -1), grid, align_corners=False)
        return layer[:, :3], layer[:, 3:]

    def _search(self, index: int, frames: Tensor, background: Tensor, poses: Sequence[Tensor | None]):
        """The best of some angles at all places: pose ``[b 3]``, and how much of the sprite is there ``[b]``."""
        sprite = self.config.sprites[index]
        angles = sprite.angles if sprite.turns else 1
        tried = torch.zeros(angles, 3, device=frames.device)
        side = sprite.size // sprite.shrink * sprite.shrink
        tried[:, :2] = side / 2
        tried[:, 2] = torch.arange(angles, device=frames.device) * (2 * math.pi / angles)
        colour, mask = self._layer(index, tried, torch.zeros_like(tried[:, :2]), (side, side))
        usual = reduce(background, "1 c h w -> 1 c 1 1", "mean")
        templates = F.avg_pool2d(colour - mask * usual, sprite.shrink)
        known = [pose for pose in poses if pose is not None]
        without = self._draw_known(poses, background, len(frames)) if known else background
        difference = F.avg_pool2d(frames - without, sprite.shrink)
        energy = reduce(templates**2, "k c h w -> k 1 1", "sum")
        margin = templates.shape[-1] // 2
        padded = F.pad(difference, (margin,) * 4)
        scores = 2 * F.conv2d(padded, templates) - energy
        columns = scores.shape[-1]
        best, place = scores.flatten(1).max(dim=1)
        kind, place = place // scores[0, 0].numel(), place % scores[0, 0].numel()
        middle = templates.shape[-1] / 2 - margin
        row, column = place // columns, place % columns
        centre = torch.stack([column + middle, row + middle], dim=1) * sprite.shrink
        return torch.cat([centre, tried[kind, 2:]], dim=1), best / energy[kind, 0, 0]

    def _draw_known(self, poses: Sequence[Tensor | None], background: Tensor, rows: int) -> Tensor:
        picture = background.expand(rows, -1, -1, -1)
        for index, pose in enumerate(poses):
            if pose is not None:
                colour, mask = self._layer(index, pose, torch.zeros_like(pose[:, :2]), picture.shape[-2:])
                picture = picture * (1 - mask) + colour
        return picture

    @property
    def _margin(self) -> int:
        """Px around a picture, so that every window lies in it."""
        return max(sprite.size for sprite in self.config.sprites) // 2 + 2

    def _padded(self, frames: Tensor, background: Tensor) -> Tensor:
        """Pictures, background and what counts: ``[b h w 2c+1]`` with a margin."""
        parts = [frames, background.expand_as(frames), torch.ones_like(frames[:, :1])]
        padded = F.pad(torch.cat(parts, dim=1), (self._margin,) * 4)
        return padded.permute(0, 2, 3, 1).contiguous()

    def _fit(self, index: int, pose: Tensor, padded: Tensor, poses: Sequence[Tensor | None]):
        """Pose ``[b 3]`` of one sprite by least squares in a window around it, the others where they are."""
        sprite, rows, margin = self.config.sprites[index], len(padded), self._margin
        side = sprite.size // 2 * 2 + 4
        limit = pose.new_tensor([padded.shape[2] - 2 * margin, padded.shape[1] - 2 * margin])
        middle = torch.minimum(pose[:, :2].round().clamp(min=0), limit).long()
        corner = (middle - side // 2).float()
        window = _windows(padded, middle + (margin - side // 2), side)
        channels = window.shape[1] // 2
        target, below, counts = window[:, :channels], window[:, channels:-1], window[:, -1:]
        above = []
        for other, there in enumerate(poses):
            if there is None or other == index:
                continue
            colour, mask = self._layer(other, there, corner, (side, side))
            if other < index:
                below = below * (1 - mask) + colour
            else:
                above.append((colour, mask))

        def drawn(trial: Tensor) -> Tensor:
            copies = len(trial) // rows
            colour, mask = self._layer(index, trial, _repeated(corner, copies), (side, side))
            picture = _repeated(below, copies) * (1 - mask) + colour
            for colour, mask in above:
                picture = picture * (1 - _repeated(mask, copies)) + _repeated(colour, copies)
            return picture

        return fit_poses(drawn, target, counts, pose, turns=sprite.turns, steps=self.config.steps)


def fit_poses(
    drawn: Callable[[Tensor], Tensor],
    target: Tensor,
    counts: Tensor,
    pose: Tensor,
    *,
    turns: bool = True,
    steps: int = 8,
) -> Tensor:
    """Fits poses to pictures by damped least squares.

    Args:
        drawn: pictures ``[n*k c h w]`` of poses ``[n*k 3]``, k of them for each row of ``target``.
        target: float ``[n c h w]``.
        counts: float ``[n 1 h w]``, weights of the pixels.
        pose: float ``[n 3]`` (x, y in px, angle in rad), a first guess.
        turns: the angle is fitted too.
        steps: tries; after one that is no better, the next is more careful.

    Returns:
        float ``[n 3]``.
    """
    free = 3 if turns else 2
    nudges, most = pose.new_tensor(_NUDGES[:free]), pose.new_tensor(_MOST[:free])
    directions = F.pad(torch.diag(nudges), (0, 3 - free, 1, 0))  # the pose itself comes first
    best = pose
    error = pose.new_full((len(pose), 1, 1), math.inf)
    damping = pose.new_full((len(pose), 1, 1), 0.1)
    curvature, gradient = pose.new_zeros(len(pose), free, free), pose.new_zeros(len(pose), free, 1)
    for step in range(steps + 1):
        nudged = rearrange(pose[:, None] + directions, "n k p -> (n k) p")
        pictures = rearrange(drawn(nudged), "(n k) c h w -> n k (c h w)", k=free + 1)
        missing = rearrange(target, "n c h w -> n 1 (c h w)") - pictures[:, :1]
        weights = counts.expand_as(target).flatten(1)[:, None]
        here = (missing**2 * weights).sum(dim=2, keepdim=True)
        better = here < error
        slopes = (pictures[:, 1:] - pictures[:, :1]) / nudges[:, None]
        weighted = slopes * weights
        best = torch.where(better[:, 0], pose, best)
        error = torch.where(better, here, error)
        curvature = torch.where(better, weighted @ slopes.mT, curvature)
        gradient = torch.where(better, weighted @ missing.mT, gradient)
        damping = torch.where(better, damping * 0.3, damping * 10)
        if step < steps:
            careful = torch.diag_embed(curvature.diagonal(dim1=1, dim2=2) * damping[:, 0] + 1e-4)
            change = torch.linalg.solve(curvature + careful, gradient)[..., 0].clamp(-most, most)
            pose = best + F.pad(change, (0, 3 - free))
    return best


def _windows(padded: Tensor, corner: Tensor, side: int) -> Tensor:
    """Windows ``[b c side side]`` of pictures ``[b h w c]`` that begin at ``corner`` int64 ``[b 2]`` (x, y)."""
    steps = torch.arange(side, device=padded.device)
    rows, columns = corner[:, 1:] + steps, corner[:, :1] + steps
    index = torch.arange(len(padded), device=padded.device)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _repeated(x: Tensor, copies: int) -> Tensor:
    """Each row ``copies`` times in a row."""
    return x if copies == 1 else x.repeat_interleave(copies, dim=0)
