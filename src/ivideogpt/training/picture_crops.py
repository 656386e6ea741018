"""Crops of clips for networks that draw pictures: around what moves, mirrored and turned, fixed by the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.models.frame_reward import KnownReward

Symmetry = Literal["none", "mirror", "square"]
#: Draws of a crop in which a followed place is seen throughout, or not at all, before any crop is taken.
_TRIES = 20
#: Most steps from an earlier frame to the one whose reward is predicted from it.
_MOST_STEPS = 20
# Separates the random numbers of whole frames from those of crops.
_STILLS = 1


@dataclass(frozen=True, kw_only=True)
class PictureClips:
    """Clips of one length to cut crops from.

    Attributes:
        frames: uint8 ``[n t h w c]``.
        actions: float32 ``[n t a]``; row i leads to frame i + 1; a pointer's in px of the picture. None: none.
        places: float32 ``[n t k 2]``, places of interest (x, y) in px, around which crops are cut; the first one is
            followed: it lies inside a crop throughout, or outside.
        chances: float32 ``[n t]``, how often the transition from this frame to the next is trained on, relative to the
            others.
        poses: float32 ``[n t s 3]`` of s rigid objects in each frame (x, y in px, angle in rad), or None: unknown.
        rewards: float32 ``[n t]``, what each frame is worth, NaN where it is unknown; None: all unknown.
        share: of the updates that draw from these clips, relative to other clips.
        unroll: most frames of its own that a network reads before the one it is trained on.
    """

    frames: np.ndarray
    actions: np.ndarray | None
    places: np.ndarray
    chances: np.ndarray
    poses: np.ndarray | None = None
    rewards: np.ndarray | None = None
    share: float = 1.0
    unroll: int = 0


class PictureCrops(NamedTuple):
    """Crops of one update.

    Attributes:
        frames: float32 ``[b t c s s]`` in [0, 1].
        background: float32 ``[b c s s]`` in [0, 1].
        actions: float32 ``[b t a]``, a pointer's from the crop's upper left corner, or None.
        counts: float32 ``[b 1 s s]``, 0 near those edges of a crop that are no edges of the picture, else 1.
        unroll: frames of its own that the network draws before the last one.
        rewards: float32 ``[b t]``, what each frame is worth, NaN where it is unknown; None: all unknown, or the crops
            are no whole frames.
    """

    frames: Tensor
    background: Tensor
    actions: Tensor | None
    counts: Tensor
    unroll: int
    rewards: Tensor | None = None


class PictureStills(NamedTuple):
    """Whole frames of one update.

    Attributes:
        frames: float32 ``[b c h w]`` in [0, 1].
        poses: float32 ``[b s 3]`` of the rigid objects, or None.
        rewards: float32 ``[b]``, or None.
        earlier: earlier frames of the same clips with their rewards, or None.
    """

    frames: Tensor
    poses: Tensor | None
    rewards: Tensor | None
    earlier: KnownReward | None = None


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Settings of cutting crops.

    Attributes:
        pixels: of all crops of an update together, about; smaller crops come in larger batches.
        sides: in px, one is drawn for each update.
        side_shares: how often each is drawn, relative to the others.
        place_shares: how often a crop is cut around each place of interest, relative to the others.
        jitter: px, standard deviation of the crop's place.
        margin: px along an edge of a crop that is no edge of the picture that do not count.
        symmetry: "square" mirrors and turns by quarters, "mirror" mirrors left and right, "none".
        seed: of all draws.
    """

    pixels: int = 24 * 32 * 32
    sides: tuple[int, ...] = (32, 40, 64)
    side_shares: tuple[float, ...] = (0.45, 0.25, 0.3)
    place_shares: tuple[float, ...] = (0.6, 0.4)
    jitter: float = 4.0
    margin: int = 4
    symmetry: Symmetry = "square"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is out of range.
        """
        check_at_least(self, pixels=1, jitter=0, margin=0, seed=0)
        if len(self.sides) != len(self.side_shares) or not self.sides:
            raise UserError(f"side_shares has {len(self.side_shares)} numbers; expected one for each of {self.sides}")


class CropSampler:
    """Crops and whole frames of an update, drawn from its number alone, so that a resumed run draws the same."""

    def __init__(
        self,
        clips: Sequence[PictureClips],
        background: Tensor,
        config: CropConfig,
        *,
        history: int,
        pointer: bool,
        scenes: Sequence[np.ndarray] | None = None,
    ) -> None:
        """Check and keep the clips.

        Args:
            clips: one or more sets.
            background: float32 ``[s c h w]`` in [0, 1], of s scenes.
            config: how to cut.
            history: frames that a network reads.
            pointer: actions are places of the picture.
            scenes: number of the scene of each clip, one array for each set; None: 0.

        Raises:
            UserError: there are no clips, or some are too short.
        """
        if not clips:
            raise UserError("clips is empty; expected at least one set of clips; collect some first")
        for part in clips:
            length, needed = part.frames.shape[1], history + 1 + part.unroll
            if length < needed:
                raise UserError(
                    f"clips have {length} frames; expected at least {needed}; lower unroll or record longer"
                )
            if part.places.shape[2] != len(config.place_shares):
                raise UserError(
                    f"place_shares has {len(config.place_shares)} numbers; expected {part.places.shape[2]}, "
                    "one for each place of interest"
                )
        self._clips, self._background, self._config = clips, background, config
        self._history, self._pointer = history, pointer
        self._scenes = scenes or [np.zeros(len(part.frames), int) for part in clips]
        rewards = clips[0].rewards
        self._rewarded = np.flatnonzero(np.zeros(0) if rewards is None else rewards > 0)
        self._shares = np.cumsum([part.share for part in clips])
        self._chances = [np.cumsum(part.chances[:, :-1], dtype=np.float64) for part in clips]
        self._side_shares, self._place_shares = np.cumsum(config.side_shares), np.cumsum(config.place_shares)

    def draw(self, step: int) -> PictureCrops:
        """Draw the crops of update ``step``."""
        config, random = self._config, np.random.default_rng([self._config.seed, step])
        number = _choose(random, self._shares)
        part = self._clips[number]
        side = min(config.sides[_choose(random, self._side_shares)], *part.frames.shape[2:4])
        unroll = int(random.integers(part.unroll + 1))
        length = self._history + 1 + unroll
        frames, actions, backgrounds, counts, rewards = [], [], [], [], []
        whole = part.rewards is not None and side == max(part.frames.shape[2:4])
        for _ in range(max(1, round(config.pixels / side**2))):
            clip, first, (x, y) = self._place(number, length, side, random)
            frames.append(part.frames[clip, first : first + length, y : y + side, x : x + side])
            backgrounds.append(self._background[self._scenes[number][clip], :, y : y + side, x : x + side])
            counts.append(self._counts(x, y, side, *part.frames.shape[2:4]))
            if whole and part.rewards is not None:
                rewards.append(part.rewards[clip, first : first + length])
            if part.actions is not None:
                corner = np.array([x, y], np.float32) if self._pointer else np.float32(0)
                actions.append(part.actions[clip, first : first + length] - corner)
        pictures = torch.from_numpy(np.stack(frames)).permute(0, 1, 4, 2, 3).float() / 255
        moves = torch.from_numpy(np.stack(actions)) if actions else None
        maps = [pictures, torch.stack(backgrounds), torch.stack(counts)]
        maps, moves = self._turned(maps, moves, side, random)
        worth = torch.from_numpy(np.stack(rewards)) if rewards else None
        return PictureCrops(maps[0], maps[1], moves, maps[2], unroll, worth)

    def draw_stills(self, step: int, count: int, rewarded_share: float = 0.0) -> PictureStills:
        """Draw whole frames of update ``step`` from the first set of clips.

        Args:
            step: updates made before.
            count: frames.
            rewarded_share: of the frames have a reward above 0, as far as there are such frames.
        """
        random = np.random.default_rng([self._config.seed, step, _STILLS])
        part = self._clips[0]
        rows = random.integers(part.frames.shape[0] * part.frames.shape[1], size=count)
        rewarded = round(count * rewarded_share) if len(self._rewarded) else 0
        rows[:rewarded] = self._rewarded[random.integers(len(self._rewarded) or 1, size=rewarded)]
        clip, time = np.unravel_index(rows, part.frames.shape[:2])
        poses, rewards = (None if x is None else torch.from_numpy(x[clip, time]) for x in (part.poses, part.rewards))
        earlier = None
        if part.rewards is not None:
            before = np.maximum(time - random.integers(1, _MOST_STEPS + 1, size=count), 0)
            earlier = KnownReward(_pictures(part.frames[clip, before]), torch.from_numpy(part.rewards[clip, before]))
        return PictureStills(_pictures(part.frames[clip, time]), poses, rewards, earlier)

    def _place(self, number: int, length: int, side: int, random: np.random.Generator):
        """Return a clip, its first frame, and the upper left corner of the crop."""
        part, chances = self._clips[number], self._chances[number]
        _, t, h, w, _ = part.frames.shape
        config, read = self._config, self._history
        clip, first, corner = 0, 0, np.zeros(2, int)
        for _ in range(_TRIES):
            clip, last = divmod(_choose(random, chances), t - 1)
            first = min(max(last - (length - 2), 0), t - length)  # the drawn transition is the one that is trained on
            kind = _choose(random, self._place_shares)
            where = (part.places[clip, first + read, kind] + part.places[clip, first + length - 1, kind]) / 2
            corner = np.round(where - side / 2 + random.normal(0, config.jitter, 2)).astype(int)
            corner = corner.clip(0, [w - side, h - side])
            followed = part.places[clip, first + read - 1 : first + length, 0] - corner
            inside = ((followed > 3) & (followed < side - 3)).all(axis=1)
            outside = ((followed < -3) | (followed > side + 3)).any(axis=1)
            if side >= max(h, w) or inside.all() or outside.all():
                break
        return clip, first, (int(corner[0]), int(corner[1]))

    def _counts(self, x: int, y: int, side: int, height: int, width: int) -> Tensor:
        counts, margin = torch.ones(1, side, side), self._config.margin
        if margin and side > 2 * margin:
            counts[:, : margin * (y > 0)] = counts[:, :, : margin * (x > 0)] = 0
            counts[:, side - margin * (y + side < height) :] = 0
            counts[:, :, side - margin * (x + side < width) :] = 0
        return counts

    def _turned(self, maps: list[Tensor], moves: Tensor | None, side: int, random: np.random.Generator):
        """Return the crops of an update mirrored and turned alike; a pointer's places with them."""
        kind = int(random.integers(8)) & {"none": 0, "mirror": 1, "square": 7}[self._config.symmetry]
        points = moves is not None and self._pointer
        for bit, axis in ((1, 0), (2, 1)):
            if kind & bit:
                maps = [x.flip(-1 - axis) for x in maps]
                if points:
                    assert moves is not None
                    moves = moves.clone()
                    moves[..., axis] = side - moves[..., axis]
        if kind & 4:
            maps = [x.transpose(-1, -2) for x in maps]
            moves = moves.flip(-1) if points and moves is not None else moves
        return [x.contiguous() for x in maps], moves


def _pictures(frames: np.ndarray) -> Tensor:
    """Convert uint8 ``[b h w c]`` to float32 ``[b c h w]`` in [0, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


def _choose(random: np.random.Generator, totals: np.ndarray) -> int:
    """Draw an index in proportion to shares, given their running totals (of any shape)."""
    flat = totals.reshape(-1)
    return int(np.searchsorted(flat, random.random() * flat[-1], side="right").clip(0, len(flat) - 1))
