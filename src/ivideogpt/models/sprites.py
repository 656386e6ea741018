"""Sprites: rigid objects whose poses are read from a frame, and which are drawn again at these poses.

A sprite is a learned texture with a mask. Reading a frame finds the pose of each sprite (x, y in px, angle in rad from
x towards y) at which the drawn frame is nearest to the given one: first a search over all positions and some angles by
convolutions, then damped least squares. So a blurred, faded or bent object becomes a clean one at its place, and there
is always exactly one of each. This suits only worlds of rigid objects before a still background, seen from above.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import reduce
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.models.weight_cache import WeightCache

# Largest change of a pose in one step, in px, px and rad.
_MOST = (2.0, 2.0, 0.3)
# An object stays near its last pose unless the error there is this many times that of the best pose.
_CLEARLY_BETTER = 1.3
# An object is not searched if it explains this share of the error without it, and as much of it is visible.
_WELL_EXPLAINED = 0.85
# Distance in px between the edges of two objects from which on their fits are independent.
_APART = 2.0


@dataclass(frozen=True, kw_only=True)
class SpriteConfig:
    """One rigid object.

    Attributes:
        size: side in px of a square that contains it at every angle.
        turns: it has an angle; False for a round object.
        texels: texels of its texture for each px, along a side.
        angles: angles of the search.
        shrink: the search uses frames averaged over squares of this side, in px.
    """

    size: int
    turns: bool = True
    texels: int = 2
    angles: int = 24
    shrink: int = 1

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is out of range.
        """
        check_at_least(self, size=1, texels=1, angles=1, shrink=1)


@dataclass(frozen=True, kw_only=True)
class SpriteProjectionConfig:
    """The rigid objects of a world.

    Attributes:
        sprites: in the order of drawing: later ones cover earlier ones.
        steps: of least squares, for each object and round.
        rounds: in each round every object is fitted again while the others keep their poses.
        missing_below: an object with a smaller visible share is missing; it keeps its pose in the last frame, if there
            is one.
    """

    sprites: tuple[SpriteConfig, ...]
    steps: int = 3
    rounds: int = 2
    missing_below: float = 0.2

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is out of range.
        """
        check_at_least(self, steps=1, rounds=1)
        if not self.sprites:
            raise UserError("sprites is empty; expected at least one object to draw")


class SpriteProjection(nn.Module):
    """Replace the objects in frames by clean ones: read the poses of sprites and draw them.

    Source: ours; least squares on a rendered image, as in model-based tracking.
    """

    def __init__(self, config: SpriteProjectionConfig) -> None:
        """Begin with grey discs; the textures are trained on pictures with known poses."""
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
        """Draw all sprites over the background.

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
        """Read the poses in ``frames`` and draw the sprites there.

        Args:
            frames: float ``[b c h w]`` in [0, 1].
            background: float ``[1 c h w]`` in [0, 1].
            last: the frames before them, ``[b c h w]``, or None. Callers that keep poses use `read` and `draw`.

        Returns:
            float ``[b c h w]`` in [0, 1].
        """
        before = None if last is None else self.read(last, background)[0]
        return self.draw(self.read(frames, background, before)[0], background)

    @torch.no_grad()
    def read(
        self, frames: Tensor, background: Tensor, before: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Read the pose of each sprite.

        Args:
            frames: float ``[b c h w]`` in [0, 1].
            background: float ``[1 c h w]`` in [0, 1].
            before: pose ``[b 3]`` of each sprite in the frame before. The sprite is fitted near that pose. Only if this
                explains the frame badly, it is searched everywhere, and moves if another pose is clearly better. A
                missing sprite keeps its pose.

        Returns:
            For each sprite its pose float ``[b 3]``, and whether it is visible, bool ``[b]``.
        """
        poses: list[Tensor | None] = [None] * len(self.config.sprites) if before is None else list(before)
        seen = [torch.ones(len(frames), dtype=torch.bool, device=frames.device) for _ in poses]
        # Sprites that cover others come first, and again when the covered ones are known.
        for index in reversed(range(1, len(poses))):
            poses[index] = self._first_guess(index, frames, background, poses)
        for index in range(len(poses)):
            if before is None:
                pose, part = self._search(index, frames, background, poses)
                seen[index] = part >= self.config.missing_below
                poses[index] = self._fit(index, pose, frames, background, poses).pose
            else:
                poses[index], seen[index] = self._follow(index, frames, background, poses, before[index])
        fitted = [pose for pose in poses if pose is not None]
        for _ in range(self.config.rounds - 1):
            for index in range(len(fitted)):
                rows = (self._touches(index, fitted) & seen[index]).nonzero()[:, 0]
                if len(rows):
                    there = [pose[rows] for pose in fitted]
                    fit = self._fit(index, there[index], frames, background, there, rows)
                    fitted[index] = fitted[index].index_copy(0, rows, fit.pose)
        return fitted, seen

    def _first_guess(self, index: int, frames: Tensor, background: Tensor, poses: Sequence[Tensor | None]) -> Tensor:
        """Return a pose ``[b 3]`` of a sprite near its last one, or anywhere if that explains little."""
        nothing, last = [None] * len(poses), poses[index]
        if last is None:
            return self._search(index, frames, background, nothing)[0]
        near = self._fit(index, last, frames, background, poses)
        rows = near.doubtful()
        if not len(rows):
            return near.pose
        return near.pose.index_copy(0, rows, self._search(index, frames[rows], background, nothing)[0])

    def _follow(
        self, index: int, frames: Tensor, background: Tensor, poses: Sequence[Tensor | None], last: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the pose ``[b 3]`` of a sprite, near that in ``poses`` or elsewhere, and whether it is seen."""
        start = poses[index]
        assert start is not None
        near = self._fit(index, start, frames, background, poses)
        pose, seen = near.pose, torch.ones(len(frames), dtype=torch.bool, device=frames.device)
        rows = near.doubtful()
        if not len(rows):
            return pose, seen
        others = [None if x is None else x[rows] for x in poses]
        start, part = self._search(index, frames[rows], background, others)
        elsewhere = self._fit(index, start, frames, background, others, rows)
        below, hidden = self._others(index, background, others)
        whole = ((frames[rows] - below) ** 2 * (1 - hidden)).sum((1, 2, 3))
        # what turns may look nearly alike in two poses
        margin = _CLEARLY_BETTER if self.config.sprites[index].turns else 1.0
        stays = whole - near.gain[rows] < margin * (whole - elsewhere.gain).clamp(min=0)
        visible = part >= self.config.missing_below
        searched = torch.where(stays[:, None], pose[rows], elsewhere.pose)
        searched = torch.where(visible[:, None], searched, last[rows])
        return pose.index_copy(0, rows, searched), seen.index_copy(0, rows, visible)

    def _touches(self, index: int, poses: Sequence[Tensor]) -> Tensor:
        """Return whether another sprite may overlap this one, bool ``[b]``."""
        sprites, touches = self.config.sprites, torch.zeros_like(poses[index][:, 0], dtype=torch.bool)
        for other, pose in enumerate(poses):
            if other != index:
                reach = (sprites[index].size + sprites[other].size) / 2 + _APART
                touches |= (pose - poses[index])[:, :2].abs().amax(dim=1) < reach
        return touches

    def _layer(self, index: int, poses: Tensor, corner: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Colours times mask ``[b c h w]`` and mask ``[b 1 h w]`` of a sprite in windows that begin at ``corner``."""
        _, _, layer = self._sampled(self.config.sprites[index], self._texture(index), poses, corner, size)
        return layer[:, :-1], layer[:, -1:]

    def _texture(self, index: int) -> Tensor:
        """Colours times mask, and mask: ``[c+1 side side]``."""
        if torch.is_grad_enabled():
            return _masked(self.textures[index])
        return self._masked_textures[index].get(self.textures[index], "masked", _masked)

    def _slopes(self, index: int) -> Tensor:
        """Return colours times mask, mask, and the slopes of them: ``[3(c+1) side side]``."""
        texels = self.config.sprites[index].texels
        return self._masked_textures[index].get(
            self.textures[index], "slopes", lambda texture: _with_slopes(_masked(texture), texels)
        )

    def _search(self, index: int, frames: Tensor, background: Tensor, poses: Sequence[Tensor | None]):
        """Search some angles at all positions: best pose ``[b 3]`` and the visible part of the sprite ``[b]``."""
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

    def _fit(
        self,
        index: int,
        pose: Tensor,
        frames: Tensor,
        background: Tensor,
        poses: Sequence[Tensor | None],
        rows: Tensor | None = None,
    ) -> _Fit:
        """Fit the pose ``[n 3]`` of one sprite by damped least squares, in a window around it.

        Args:
            index: of the sprite.
            pose: float ``[n 3]``, a first guess.
            frames: float ``[b c h w]``.
            background: float ``[1 c h w]``.
            poses: of all sprites, float ``[n 3]`` each, or None: unknown.
            rows: int64 ``[n]``, the frames to look at; None: all.
        """
        side = self.config.sprites[index].size // 2 * 2 + 4
        limit = pose.new_tensor([frames.shape[3], frames.shape[2]])
        middle = torch.minimum(pose[:, :2].round().clamp(min=0), limit).long()
        corner = middle - side // 2
        rows = torch.arange(len(frames), device=frames.device) if rows is None else rows
        target, visible = _windows(frames, rows, corner, side)
        below, _ = _windows(background, torch.zeros_like(rows), corner, side)
        inside, corner = visible, corner.to(pose.dtype)
        above = []
        for other, there in enumerate(poses):
            if there is None or other == index:
                continue
            colour, mask = self._layer(other, there, corner, (side, side))
            if other < index:
                below = below * (1 - mask) + colour
            else:
                above.append((colour, mask))
        missing = target - below
        for colour, mask in above:
            missing = missing * (1 - mask) - (colour - target * mask)
            visible = visible * (1 - mask)
        return self._least_squares(index, pose, corner, missing * inside, below * visible, visible)

    def _least_squares(
        self, index: int, pose: Tensor, corner: Tensor, missing: Tensor, below: Tensor, visible: Tensor
    ) -> _Fit:
        """Fit the pose of a sprite to what is missing of a picture.

        Args:
            index: of the sprite.
            pose: float ``[b 3]``, a first guess.
            corner: float ``[b 2]``, place of the windows in the picture.
            missing: float ``[b c h w]``, the picture minus what would be seen without the sprite, in windows.
            below: float ``[b c h w]``, what the sprite would hide.
            visible: float ``[b 1 h w]``, share of a pixel in which the sprite would be seen.
        """
        sprite, slopes, channels = self.config.sprites[index], self._slopes(index), missing.shape[1]
        free = 3 if sprite.turns else 2
        most = pose.new_tensor(_MOST[:free])
        best, trial = pose, pose
        error, damping = pose.new_full((len(pose),), math.inf), pose.new_full((len(pose),), 0.1)
        drawn = error
        curvature, gradient = pose.new_zeros(len(pose), free, free), pose.new_zeros(len(pose), free, 1)
        for step in range(self.config.steps + 1):
            texture = slopes if step < self.config.steps else slopes[: channels + 1]  # the last one is only judged
            x, y, sampled = self._sampled(sprite, texture, trial, corner, missing.shape[-2:])
            rest = missing + below * sampled[:, channels : channels + 1] - visible * sampled[:, :channels]
            here = (rest**2).sum((1, 2, 3))
            better = here < error
            best, error = torch.where(better[:, None], trial, best), torch.where(better, here, error)
            drawn = torch.where(better, ((missing - rest) ** 2).sum((1, 2, 3)), drawn)
            damping = torch.where(better, damping * 0.3, damping * 10)
            if step == self.config.steps:
                break
            # how the picture changes as the texture's own axes and its angle do
            along, across = (
                visible * part[:, :channels] - below * part[:, channels:]
                for part in sampled[:, channels + 1 :].chunk(2, dim=1)
            )
            changes = [along, across] + ([y[:, None] * along - x[:, None] * across] if sprite.turns else [])
            change = torch.stack(changes, dim=1).flatten(2)
            curvature = torch.where(better[:, None, None], change @ change.mT, curvature)
            gradient = torch.where(better[:, None, None], change @ rest.flatten(1)[:, :, None], gradient)
            careful = torch.diag_embed(curvature.diagonal(dim1=1, dim2=2) * damping[:, None] + 1e-4)
            move = torch.linalg.solve(curvature + careful, gradient)[..., 0]
            cosine, sine = best[:, 2].cos(), best[:, 2].sin()
            place = [sine * move[:, 1] - cosine * move[:, 0], -sine * move[:, 0] - cosine * move[:, 1]]
            move = torch.stack([*place, *move.unbind(dim=1)[2:]], dim=1).clamp(-most, most)
            trial = best + F.pad(move, (0, 3 - free))
        return _Fit(best, (missing**2).sum((1, 2, 3)) - error, error, drawn)

    def _sampled(
        self, sprite: SpriteConfig, texture: Tensor, poses: Tensor, corner: Tensor, size: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sample a texture ``[k side side]`` at poses ``[b 3]`` in windows of ``size`` that begin at ``corner``.

        Returns:
            Each pixel's place on the sprite's own axes, ``[b h w]`` in px, and the samples ``[b k h w]``.
        """
        height, width = size
        x = torch.arange(width, device=poses.device) + 0.5 + (corner[:, :1] - poses[:, :1])
        y = torch.arange(height, device=poses.device) + 0.5 + (corner[:, 1:] - poses[:, 1:2])
        x, y = x[:, None, :], y[:, :, None]
        cosine, sine = poses[:, 2, None, None].cos(), poses[:, 2, None, None].sin()
        x, y = x * cosine + y * sine, y * cosine - x * sine
        grid = torch.stack([x, y], dim=-1) * (2 / sprite.size)
        return x, y, F.grid_sample(texture.expand(len(poses), -1, -1, -1), grid, align_corners=False)


class _Fit(NamedTuple):
    """Result of a fit.

    Attributes:
        pose: float ``[b 3]``.
        gain: float ``[b]``, by how much the squared error falls where the sprite is drawn.
        error: float ``[b]``, the squared error that is left in the window.
        drawn: float ``[b]``, squared difference that the sprite makes to the picture; a gain as large is a perfect fit.
    """

    pose: Tensor
    gain: Tensor
    error: Tensor
    drawn: Tensor

    def doubtful(self) -> Tensor:
        """Return the rows, int64 ``[k]``, in which the sprite may be elsewhere."""
        explained = self.gain / (self.gain + self.error).clamp(min=1e-6)
        there = self.gain / self.drawn.clamp(min=1e-6)
        return (torch.minimum(explained, there) < _WELL_EXPLAINED).nonzero()[:, 0]


def _masked(texture: Tensor) -> Tensor:
    texture = texture.sigmoid()
    return torch.cat([texture[:-1] * texture[-1:], texture[-1:]])


def _with_slopes(texture: Tensor, texels: int) -> Tensor:
    """Return a texture ``[k side side]`` with its slopes for each px to the right and down: ``[3k side side]``."""
    right = F.pad(texture[:, :, 2:] - texture[:, :, :-2], (1, 1)) * (texels / 2)
    down = F.pad(texture[:, 2:] - texture[:, :-2], (0, 0, 1, 1)) * (texels / 2)
    return torch.cat([texture, right, down])


def _windows(pictures: Tensor, rows: Tensor, corner: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Cut windows out of pictures ``[b c h w]``.

    Args:
        pictures: float ``[b c h w]``.
        rows: int64 ``[n]``, the picture of each window.
        corner: int64 ``[n 2]`` (x, y), where the window begins; it may lie outside.
        side: of a window, in px.

    Returns:
        The windows ``[n c side side]``, and 1 inside the picture and 0 outside of it, ``[n 1 side side]``.
    """
    steps = torch.arange(side, device=pictures.device)
    height, width = pictures.shape[2:]
    y, x = corner[:, 1:] + steps, corner[:, :1] + steps
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    window = pictures.permute(0, 2, 3, 1)[rows[:, None, None], y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
    return window, inside[:, None].to(pictures.dtype)
