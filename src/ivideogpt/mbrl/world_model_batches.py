"""What a world model is trained on: clips and tokens of the episodes in a replay buffer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ivideogpt.core.episode import Clip
from ivideogpt.mbrl.replay_buffer import Replay, Segments
from ivideogpt.training.token_batches import TokenBatch
from ivideogpt.worldmodel.world_model import WorldModel


class ReplayClips:
    """Endless batches of clips of a buffer for a tokenizer: clip k depends on the seed and on k alone."""

    def __init__(self, replay: Replay, batch_size: int, *, context: int, frames: int, horizon: int, seed: int) -> None:
        """Clips of ``context`` frames in a row and others, in order, from within ``horizon`` frames."""
        self.replay, self.batch_size, self.context = replay, batch_size, context
        self.clip_frames, self.horizon, self.seed, self.step = frames, horizon, seed, 0

    def __iter__(self) -> Iterator[Clip]:
        """From the next batch on."""
        while True:
            first = self.step * self.batch_size
            self.step += 1
            yield self.clips(range(first, first + self.batch_size))

    def clips(self, numbers: range) -> Clip:
        """The clips of these numbers."""
        longest = max(len(kept.episode) for kept in self.replay)
        horizon, found = min(self.horizon, longest), []
        for number in numbers:
            random = np.random.default_rng([self.seed, number])
            frames = self.replay.segments(1, horizon, random).frames[0]
            rest = random.choice(
                np.arange(self.context, horizon),
                self.clip_frames - self.context,
                replace=horizon - self.context < self.clip_frames - self.context,
            )
            found.append(frames[[*range(self.context), *np.sort(rest)]])
        return Clip(frames=as_floats(np.stack(found)), context_frames=self.context)

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        self.step = state["step"]


class ReplayTokens:
    """Endless batches of tokens of a buffer's segments: batch k depends on the seed and on k alone."""

    def __init__(self, model: WorldModel, replay: Replay, batch_size: int, frames: int, *, seed: int) -> None:
        """Segments of ``frames``, tokenised by the model."""
        self.model, self.replay, self.batch_size, self.frames = model, replay, batch_size, frames
        self.seed, self.step = seed, 0

    def __iter__(self) -> Iterator[TokenBatch]:
        """From the next batch on."""
        while True:
            random = np.random.default_rng([self.seed, self.step])
            self.step += 1
            yield tokenised(self.model, self.replay.segments(self.batch_size, self.frames, random))

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        self.step = state["step"]


def as_floats(frames: np.ndarray) -> Tensor:
    """Bytes ``[b t h w 3]`` as float32 ``[b t 3 h w]`` in [0, 1]."""
    return rearrange(torch.from_numpy(frames), "b t h w c -> b t c h w").float() / 255


@torch.inference_mode()
def tokenised(
    model: WorldModel, segments: Segments, *, model_units: bool = False, late_rewards: bool = False
) -> TokenBatch:
    """What a transformer is trained on.

    Args:
        model: its tokenizer and its action statistics.
        segments: context and future.
        model_units: see ``WorldConfig``.
        late_rewards: a frame is to tell what is paid for the action after it, as the official code has it; the segments
            have one frame more then, which is not read.
    """
    rewards = segments.rewards
    if late_rewards:
        segments = Segments(segments.frames[:, :-1], *(part[:, :-1] for part in segments[1:]))
        rewards = rewards[:, 1:]
    first = model.context_frames - 1
    ids, _ = model.tokenizer.tokenize(as_floats(segments.frames).to(model.device))
    with torch.inference_mode(False):
        actions = torch.from_numpy(segments.actions[:, first:]).to(model.device)
        return TokenBatch(
            ids.clone(),
            actions if model_units else model.normalize_actions(actions),
            torch.from_numpy(rewards[:, first:]).float().to(model.device),
            torch.from_numpy(segments.terminated[:, first:]).to(model.device),
        )
