"""The frames of an episode that make a training clip.

    spec = ClipSpec(context_frames=2, frames=16)
    drawn = draw_rows(spec, length=len(episode), stride=2, random=np.random.default_rng(0))
    frames = episode.frames[drawn.rows]

``loader.ClipLoader`` draws such clips from episode stores and returns them in batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ivideogpt.core.errors import UserError

ClipMode = Literal["contiguous", "random_after_context", "random_order", "goal_first", "reference_first"]
MODES: tuple[ClipMode, ...] = get_args(ClipMode)


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """Frames, stride and size of the clips of a training.

    Attributes:
        context_frames: frames at the beginning that the model receives.
        frames: of a clip, context and goal included.
        mode: ``contiguous``: frames one stride apart. ``random_after_context``: the context one stride apart, then a
            sorted random choice of all later frames of the horizon (for training a tokenizer). ``random_order``:
            random frames of the horizon, one stride apart, in random order (the goal-conditioned tokenizer).
            ``goal_first``: the last frame of a contiguous clip, then that clip (the goal-conditioned transformer).
            ``reference_first``: a frame, then a contiguous clip that begins any number of strides later, all within the
            horizon (the multi-step transformer of RLVR-World).
        stride: distance between used frames, for sources without a stride of their own. None: that of the dataset, by
            the rule of ``DatasetInfo.stride``.
        video_stepsize: of that rule; 1 is about three frames a second.
        horizon: strides that the modes with a choice choose from; None: ``frames``.
        size: frames are resized to ``size`` x ``size`` pixels, or to (height, width); None: they keep their size.
        actions: read actions if a source has some. In ``random_order`` there are none.
        rewards: read rewards, which every source must have.

    Source: thuml/iVideoGPT ``SimpleRoboticDatasetv2.get_segment``; the same frames with the same probabilities.
    """

    context_frames: int = 2
    frames: int = 16
    mode: ClipMode = "contiguous"
    stride: int | None = None
    video_stepsize: float = 1.0
    horizon: int | None = None
    size: int | tuple[int, int] | None = None
    actions: bool = True
    rewards: bool = False

    def __post_init__(self) -> None:
        """Raise UserError if a number is out of range or contradicts another."""
        if self.mode not in MODES:
            raise UserError(f"mode is {self.mode!r}; expected one of: {', '.join(MODES)}")
        if not 1 <= self.context_frames <= self.frames:
            raise UserError(
                f"a clip of {self.frames} frames cannot have {self.context_frames} context frames; "
                "give 1 to as many as the clip has"
            )
        if self.mode == "goal_first" and self.frames < 2:
            raise UserError("a clip of 1 frame has no room for a goal and a frame; give at least 2 frames")
        for name in ("stride", "horizon", "size"):
            value = getattr(self, name)
            if value is not None and min(value if isinstance(value, tuple) else (value,)) < 1:
                raise UserError(f"{name} is {value}; expected at least 1")
        if not 0 < self.video_stepsize < float("inf"):
            raise UserError(f"video_stepsize is {self.video_stepsize}; expected a number above 0")
        if self.horizon is not None and self.horizon < self.frames:
            raise UserError(f"horizon is {self.horizon}; expected at least the {self.frames} frames of a clip")

    @property
    def span(self) -> int:
        """Strides of an episode that a clip is drawn from."""
        if self.mode == "goal_first":
            return self.frames - 1
        return self.frames if self.mode == "contiguous" else self.horizon or self.frames

    @property
    def has_transitions(self) -> bool:
        """True where frames follow each other, so that they have actions and rewards."""
        return self.mode != "random_order"


@dataclass(frozen=True)
class DrawnRows:
    """The frames of one clip.

    Attributes:
        rows: int64 ``[t]``: their numbers in the episode.
        padding: bool ``[t]``: True where the episode was too short and its last used frame is repeated.
        transitions: bool ``[t]``: True where the row has an action: it leads to the next frame of the clip.
    """

    rows: np.ndarray
    padding: np.ndarray
    transitions: np.ndarray


def effective_stride(length: int, span: int, stride: int) -> int:
    """Return the stride for an episode of ``length`` frames.

    It shrinks to ``length // span``, at least 1, if ``span`` strides are longer than the episode.
    """
    return max(1, length // span) if stride * span > length else stride


def draw_rows(
    spec: ClipSpec, length: int, stride: int, random: np.random.Generator, start: int | None = None
) -> DrawnRows:
    """Draw the frames of one clip; each possible start is equally likely.

    An episode that is too short even at stride 1 gives all its frames, the last one repeated and marked as padding.

    Args:
        spec: of the clip; its ``stride`` is not used.
        length: frames of the episode, at least 1.
        stride: distance between used frames.
        random: the clip's own random numbers.
        start: its first frame, goal aside, instead of a drawn one.
    """
    stride = effective_stride(length, spec.span, stride)
    if start is None:
        start = int(random.integers(max(length - stride * spec.span + 1, 1)))
    if spec.mode == "contiguous":
        wanted = start + stride * np.arange(spec.frames)
    elif spec.mode == "goal_first":
        wanted = start + stride * np.arange(spec.frames - 1)
        wanted = np.concatenate([wanted[-1:], wanted])
    elif spec.mode == "reference_first":
        room = (length - 1 - start) // stride - (spec.frames - 2)  # of the first step, so that the clip ends in time
        distance = 1 + int(random.integers(max(min(spec.span - spec.frames + 1, room), 1)))
        wanted = start + stride * np.append(0, distance + np.arange(spec.frames - 1))
    elif spec.mode == "random_order":
        wanted = start + stride * random.choice(spec.span, spec.frames, replace=False)
    else:
        wanted = _random_after_context(spec, length, stride, start, random)
    rows = np.minimum(wanted, length - 1).astype(np.int64)
    padding = wanted >= length
    if padding.any() and length - 1 not in wanted:
        padding[padding.argmax()] = False  # a random order may contain the last frame only as padding
    transitions = np.zeros(spec.frames, bool)
    if spec.has_transitions:
        transitions[:-1] = ~padding[1:]
    if spec.mode == "goal_first":
        padding[0] = False  # the last frame of the episode, shown for the first time
    if spec.mode in ("goal_first", "reference_first"):
        transitions[0] = False  # no action leads from the goal or the reference to the next frame of the clip
    return DrawnRows(rows, padding, transitions)


def _random_after_context(
    spec: ClipSpec, length: int, stride: int, start: int, random: np.random.Generator
) -> np.ndarray:
    """Return the context, then a sorted choice of all frames after it; rows of ``length`` stand for padding."""
    stop = min(start + stride * spec.span, length)
    context = start + stride * np.arange(spec.context_frames)
    context = context[context < stop]
    later = np.arange(start + stride * spec.context_frames, stop)
    count = min(len(later), spec.frames - spec.context_frames)
    chosen = np.sort(random.choice(later, count, replace=False)) if count else later[:0]
    missing = spec.frames - len(context) - count
    return np.concatenate([context, chosen, np.full(missing, length)])
