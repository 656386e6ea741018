"""The interface between a session and the kinds of world models that it steps.

A session keeps the frames, the steps and the random streams of its rows. A *segment* predicts. It holds
the state of the network since the context was last encoded, for a token model a KV cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ivideogpt.decoding.sampling import Sampling
from ivideogpt.models.frame_reward import KnownReward
from ivideogpt.worldmodel.config import WorldModelConfig
from ivideogpt.worldmodel.lazy_frames import Frame


@dataclass(frozen=True)
class StepRecord:
    """One step of all rows: everything that is needed to make it again, beside its frame.

    Attributes:
        ids: int64 ``[b m]`` of the full vocabulary; m is 0 for a model without tokens.
        log_probs: float32 ``[b m]``.
        entropies: float32 ``[b m]`` in nats.
        action: ``[b a]`` in model units, or None.
        rewards: ``[b]`` in reward units, or None.
        terminations: ``[b]``, probability that the step was the last, or None.
        separators: int64 ``[b]``: the ids that opened the frame, or None.
        next_separators: int64 ``[b]``: the ids that open the next frame, or None.
        state: float32 ``[b ...]``: state of the frame beyond its pixels, such as poses, or None.
    """

    ids: Tensor
    log_probs: Tensor
    entropies: Tensor
    action: Tensor | None
    rewards: Tensor | None
    terminations: Tensor | None
    separators: Tensor | None = None
    next_separators: Tensor | None = None
    state: Tensor | None = None

    def select(self, rows: Tensor) -> StepRecord:
        """Return the record of some rows, int64 ``[k]``, in any order and any number."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{name: value[rows.to(value.device)] for name, value in values.items()})


class Segment(Protocol):
    """The steps since the context was last encoded.

    Attributes:
        random_numbers: uniform random numbers that a row draws in a step.
    """

    random_numbers: int

    def step(
        self,
        action: Tensor | None,
        uniforms: Tensor,
        sampling: Sampling,
        previous: StepRecord | None,
        earlier: KnownReward | None,
    ) -> tuple[StepRecord, Frame]:
        """Predict the next frame.

        Args:
            action: ``[b a]`` in model units, or None.
            uniforms: float32 ``[b random_numbers]`` in [0, 1).
            sampling: the sampling rule.
            previous: the step before, or None for the first one of the segment.
            earlier: the last frame whose reward is known, or None; a model may ignore it.
        """
        ...

    def observe(
        self,
        pixels: Tensor,
        action: Tensor | None,
        uniforms: Tensor,
        sampling: Sampling,
        previous: StepRecord | None,
        earlier: KnownReward | None,
    ) -> tuple[StepRecord, Frame]:
        """Append the real next frame ``[b c h w]`` in [0, 1]; other arguments as for `step`."""
        ...

    def replay(self, record: StepRecord, frame: Frame, sampling: Sampling) -> None:
        """Append a step that was made before."""
        ...

    def truncate(self, steps: int) -> None:
        """Keep the first ``steps`` steps."""
        ...

    def repeat(self, k: int) -> Segment:
        """Return a segment with each row k times."""
        ...

    def select(self, rows: Tensor, count: int) -> Segment:
        """Return a segment of the rows int64 ``[k]`` of ``count``."""
        ...

    def close(self) -> None:
        """Free the memory that only further steps need; frames of the segment can still be decoded."""
        ...


class SessionModel(Protocol):
    """A world model as a session and the checks of its inputs use it."""

    config: WorldModelConfig

    @property
    def context_frames(self) -> int:
        """Frames of the context."""
        ...

    @property
    def action_dim(self) -> int:
        """Numbers in an action; 0: action-free."""
        ...

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame in pixels."""
        ...

    @property
    def past_actions(self) -> int:
        """Actions between the context frames that the model reads."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        ...

    def segment_frames(self, reanchor_every: int | None = None) -> int:
        """Return the number of frames of a segment."""
        ...

    def check_memory(self, rows: int, frames: int) -> None:
        """Raise UserError where segments of ``frames`` frames for ``rows`` rows do not fit into memory."""
        ...

    def open_segment(self, context: Tensor, frames: int, *, past_actions: Tensor | None, speculative: bool) -> Segment:
        """Encode the context float32 ``[b c_frames c h w]`` and begin a segment of at most ``frames`` frames."""
        ...
