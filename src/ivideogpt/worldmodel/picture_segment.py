"""A segment of a picture model: the last frames, from which a `PictureDynamics` draws the next one."""

from __future__ import annotations

import torch
from torch import Tensor

from ivideogpt.decoding.decode import single_thread
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.models.frame_reward import KnownReward
from ivideogpt.models.picture_dynamics import PictureDynamics, PictureStep
from ivideogpt.worldmodel.interfaces import StepRecord
from ivideogpt.worldmodel.lazy_frames import Frame, stacked

#: Rows up to which a step is made by one thread of a CPU: its many operations are too small to share.
SINGLE_THREAD_ROWS = 32


class PictureSegment:
    """Steps of a picture model since its context.

    The model is deterministic: it draws no random numbers, and the sampling rule has no effect. A step has no tokens.
    """

    random_numbers = 0

    def __init__(self, dynamics: PictureDynamics, frames: list[Frame], context_frames: int) -> None:
        """Hold the frames of the segment, the ``context_frames`` frames of the context first."""
        self.dynamics, self.frames, self.context_frames = dynamics, frames, context_frames

    @classmethod
    def open(cls, dynamics: PictureDynamics, context: Tensor) -> PictureSegment:
        """Begin a segment after the context float32 ``[b c_frames c h w]`` in [0, 1]."""
        return cls(dynamics, [Frame.shown(frame) for frame in context.unbind(dim=1)], context.shape[1])

    def step(
        self,
        action: Tensor | None,
        uniforms: Tensor,
        sampling: Sampling,
        previous: StepRecord | None,
        earlier: KnownReward | None,
    ) -> tuple[StepRecord, Frame]:
        """Draw the next frame; see `Segment`."""
        history = stacked([self.frames[-self.dynamics.config.forecast.frames :]])
        poses = None if previous is None else previous.state
        with single_thread(history.device.type == "cpu" and len(history) <= SINGLE_THREAD_ROWS):
            step = self.dynamics(history, action, poses, earlier)
        return self._append(step, action)

    def observe(
        self,
        pixels: Tensor,
        action: Tensor | None,
        uniforms: Tensor,
        sampling: Sampling,
        previous: StepRecord | None,
        earlier: KnownReward | None,
    ) -> tuple[StepRecord, Frame]:
        """Append the real next frame; see `Segment`."""
        return self._append(PictureStep(pixels, *self.dynamics.read_reward(pixels, earlier=earlier)), action)

    def replay(self, record: StepRecord, frame: Frame, sampling: Sampling) -> None:
        """Append a step that was made before; see `Segment`."""
        self.frames.append(frame)

    def truncate(self, steps: int) -> None:
        """Keep the first ``steps`` steps."""
        del self.frames[self.context_frames + steps :]

    def repeat(self, k: int) -> PictureSegment:
        """Return a segment with each row k times."""
        return PictureSegment(self.dynamics, [frame.repeat(k) for frame in self.frames], self.context_frames)

    def select(self, rows: Tensor, count: int) -> PictureSegment:
        """Return a segment of the rows int64 ``[k]`` of ``count``."""
        frames = stacked([self.frames])
        selected = frames[rows.to(frames.device)].unbind(dim=1)
        return PictureSegment(self.dynamics, [Frame.shown(frame) for frame in selected], self.context_frames)

    def close(self) -> None:
        """Do nothing: a frame of a picture model is never decoded later."""

    def _append(self, step: PictureStep, action: Tensor | None) -> tuple[StepRecord, Frame]:
        frame, rows = Frame.shown(step.frames), len(step.frames)
        self.frames.append(frame)
        nothing = torch.empty(rows, 0, device=step.frames.device)
        record = StepRecord(nothing.long(), nothing, nothing, action, step.rewards, step.terminations, state=step.poses)
        return record, frame
