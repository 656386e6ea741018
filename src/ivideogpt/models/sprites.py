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
from ivideogpt.models.weight_cache import WeightCache

#: px, px and rad by which a pose is nudged to see how the picture changes.
_NUDGES = (0.05, 0.05, 0.01)
# Most px, px and rad that a pose changes in one step.
_MOST = (2.0, 2.0, 0.3)
# A thing stays near to where it was unless its error there is this many times that of the best place.
_CLEARLY_BETTER = 1.3


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
        self._masked_textures: list[WeightCache[Tensor]] = [WeightCache() for _ in config.sprites]

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
            last: the pictures before them, ``[b c h w]``, see `read`; whoever keeps poses calls `read` and `draw`.

        Returns:
            float ``[b c h w]`` in [0, 1].
        """
        before = None if last is None else self.read(last, background)[0]
        return self.draw(self.read(frames, background, before)[0], background)

    @torch.no_grad()
    def read(
        self, frames: Tensor, background: Tensor, before: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Finds each sprite.

        Args:
            frames: float ``[b c h w]`` in [0, 1].
            background: float ``[1 c h w]`` in [0, 1].
            before: for each sprite its pose ``[b 3]`` in the picture before. What turns is looked for there too, and
                taken there unless another place is clearly better; a thing that is missing stays where it was.

        Returns:
            For each sprite its pose float ``[b 3]``, and whether it is seen at all, bool ``[b]``.
        """
        padded = self._padded(frames, background)
        poses: list[Tensor | None] = [None] * len(self.config.sprites)
        seen: list[Tensor] = [torch.ones(0)] * len(poses)
        # What covers others is found first, and searched again when what it covers is known.
        for index in reversed(range(1, len(poses))):
            poses[index], _ = self._search(index, frames, background, poses)
        for index in range(len(poses)):
            pose, part = self._search(index, frames, background, poses)
            seen[index] = part >= self.config.missing_below
            found, gain = self._fit(index, pose, padded, poses)
            if before is not None:
                if self.config.sprites[index].turns:
                    near, near_gain = self._fit(index, before[index], padded, poses)
                    below, hidden = self._others(index, background, poses)
                    whole = ((frames - below) ** 2 * (1 - hidden)).sum((1, 2, 3))
                    stays = whole - near_gain < _CLEARLY_BETTER * (whole - gain).clamp(min=0)
                    found = torch.where(stays[:, None], near, found)
                found = torch.where(seen[index][:, None], found, before[index])
            poses[index] = found
        for _ in range(self.config.rounds - 1):
            for index, pose in enumerate(poses):
                assert pose is not None
                poses[index] = torch.where(seen[index][:, None], self._fit(index, pose, padded, poses)[0], pose)
        return [pose for pose in poses if pose is not None], seen

    def _layer(self, index: int, poses: Tensor, corner: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Colours times mask ``[b c h w]`` and mask ``[b 1 h w]`` of a sprite in windows that begin at ``corner``."""
        sprite, (height, width) = self.config.sprites[index], size
        x = torch.arange(width, device=poses.device) + 0.5 + (corner[:, :1] - poses[:, :1])
        y = torch.arange(height, device=poses.device) + 0.5 + (corner[:, 1:] - poses[:, 1:2])
        x, y = x[:, None, :], y[:, :, None]
        cosine, sine = poses[:, 2, None, None].cos(), poses[:, 2, None, None].sin()
        grid = torch.stack([x * cosine + y * sine, y * cosine - x * sine], dim=-1) * (2 / sprite.size)
        layer = F.grid_sample(self._texture(index).expand(len(poses), -1, -1, -1), grid, align_corners=False)
        return layer[:, :-1], layer[:, -1:]

    def _texture(self, index: int) -> Tensor:
        """Colours times mask, and mask: ``[c+1 side side]``."""
        if torch.is_grad_enabled():
            return _masked(self.textures[index])
        return self._masked_textures[index].get(self.textures[index], "masked", _masked)

    def _search(self, index: int, frames: Tensor, background: Tensor, poses: Sequence[Tensor | None]):
        """The best of some angles at all places: pose ``[b 3]``, and how much of the sprite is there ``[b]``."""
        sprite = self.config.sprites[index]
        angles = sprite.angles if sprite.turns else 1
        tried = torch.zeros(angles, 3, device=frames.device)
        side = sprite.size // sprite.shrink * sprite.shrink
        tried[:, :2] = side / 2
        tried[:, 2] = torch.arange(angles, device=frames.device) * (2 * math.pi / angles)
        colour, mask = self._layer(index, tried, torch.zeros_like(tried[:, :2]), (side, side))
        colour, mask = F.avg_pool2d(colour, sprite.shrink), F.avg_pool2d(mask, sprite.shrink)
        below, hidden = self._others(index, background, poses)
        difference = F.avg_pool2d((frames - below) * (1 - hidden), sprite.shrink)
        below = F.avg_pool2d(below, sprite.shrink)
        # By how much the squared error falls where the sprite is drawn, for all places at once.
        products = torch.cat([difference, (difference * below).sum(1, keepdim=True)], dim=1)
        margin = mask.shape[-1] // 2
        gain = 2 * F.conv2d(products, torch.cat([colour, -mask], dim=1), padding=margin)
        still = torch.cat([below, (below**2).sum(1, keepdim=True)], dim=1)
        energy = reduce(colour**2, "k c h w -> k 1 1", "sum") - F.conv2d(
            still, torch.cat([2 * colour * mask, -(mask**2)], dim=1), padding=margin
        )
        scores = gain - energy
        rows, columns = scores.shape[-2:]
        best, place = scores.flatten(1).max(dim=1)
        part = best / energy.expand_as(scores).flatten(1).gather(1, place[:, None])[:, 0].clamp(min=1e-6)
        kind, place = place // (rows * columns), place % (rows * columns)
        middle = mask.shape[-1] / 2 - margin
        centre = torch.stack([place % columns + middle, place // columns + middle], dim=1) * sprite.shrink
        return torch.cat([centre, tried[kind, 2:]], dim=1), part

    def _others(self, index: int, background: Tensor, poses: Sequence[Tensor | None]):
        """Return what lies below a sprite ``[b c h w]`` and where others hide it ``[b 1 h w]``."""
        below, hidden = background, torch.zeros_like(background[:, :1])
        for other, pose in enumerate(poses):
            if pose is None or other == index:
                continue
            colour, mask = self._layer(other, pose, torch.zeros_like(pose[:, :2]), background.shape[-2:])
            if other < index:
                below = below * (1 - mask) + colour
            else:
                hidden = torch.maximum(hidden, (mask > 0.02).float())
        return below, hidden

    @property
    def _margin(self) -> int:
        """Px around a picture, so that every window lies in it."""
        return max(sprite.size for sprite in self.config.sprites) // 2 + 2

    def _padded(self, frames: Tensor, background: Tensor) -> Tensor:
        """Pictures, background and what counts: ``[b h w 2c+1]`` with a margin."""
        parts = [frames, background.expand_as(frames), torch.ones_like(frames[:, :1])]
        padded = F.pad(torch.cat(parts, dim=1), (self._margin,) * 4)
        return padded.permute(0, 2, 3, 1).contiguous()

    def _fit(self, index: int, pose: Tensor, padded: Tensor, poses: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """Pose ``[b 3]`` of one sprite by least squares in a window, and by how much the error falls ``[b]``."""
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

        fitted, error = fit_poses(drawn, target, counts, pose, turns=sprite.turns, steps=self.config.steps)
        without = below
        for colour, mask in above:
            without = without * (1 - mask) + colour
        return fitted, ((target - without) ** 2 * counts).sum((1, 2, 3)) - error


def _masked(texture: Tensor) -> Tensor:
    texture = texture.sigmoid()
    return torch.cat([texture[:-1] * texture[-1:], texture[-1:]])


def fit_poses(
    drawn: Callable[[Tensor], Tensor],
    target: Tensor,
    counts: Tensor,
    pose: Tensor,
    *,
    turns: bool = True,
    steps: int = 8,
) -> tuple[Tensor, Tensor]:
    """Fits poses to pictures by damped least squares.

    Args:
        drawn: pictures ``[n*k c h w]`` of poses ``[n*k 3]``, k of them for each row of ``target``.
        target: float ``[n c h w]``.
        counts: float ``[n 1 h w]``, weights of the pixels.
        pose: float ``[n 3]`` (x, y in px, angle in rad), a first guess.
        turns: the angle is fitted too.
        steps: tries; after one that is no better, the next is more careful.

    Returns:
        float ``[n 3]``, and the weighted squared error that is left, ``[n]``.
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
    return best, error[:, 0, 0]


def _windows(padded: Tensor, corner: Tensor, side: int) -> Tensor:
    """Windows ``[b c side side]`` of pictures ``[b h w c]`` that begin at ``corner`` int64 ``[b 2]`` (x, y)."""
    steps = torch.arange(side, device=padded.device)
    rows, columns = corner[:, 1:] + steps, corner[:, :1] + steps
    index = torch.arange(len(padded), device=padded.device)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _repeated(x: Tensor, copies: int) -> Tensor:
    """Each row ``copies`` times in a row."""
    return x if copies == 1 else x.repeat_interleave(copies, dim=0)
