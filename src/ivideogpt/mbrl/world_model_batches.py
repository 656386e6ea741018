"""Training batches of a world model from a replay buffer: clips for the tokenizer, tokens for the transformer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ivideogpt.core.episode import Clip
from ivideogpt.mbrl.replay_buffer import ReplayBuffer, Segments
from ivideogpt.training.token_batches import TokenBatch
from ivideogpt.worldmodel.world_model import WorldModel


class ReplayClips:
    """Endless batches of clips for a tokenizer; clip k depends on the seed and on k alone."""

    def __init__(
        self, replay: ReplayBuffer, batch_size: int, *, context: int, frames: int, horizon: int, seed: int
    ) -> None:
        """Draw clips of ``context`` neighbouring frames and later ones, in order, from within ``horizon`` frames."""
        self.replay, self.batch_size, self.context = replay, batch_size, context
        self.clip_frames, self.horizon, self.seed, self.step = frames, horizon, seed, 0

    def __iter__(self) -> Iterator[Clip]:
        """Iterate from the next batch on."""
        while True:
            first = self.step * self.batch_size
            self.step += 1
            yield self.clips(range(first, first + self.batch_size))

    def clips(self, numbers: range) -> Clip:
        """Return the clips of these numbers."""
        longest = max(len(stored.episode) for stored in self.replay)
        horizon, clips = min(self.horizon, longest), []
        for number in numbers:
            random = np.random.default_rng([self.seed, number])
            frames = self.replay.segments(1, horizon, random).frames[0]
            future = random.choice(
                np.arange(self.context, horizon),
                self.clip_frames - self.context,
                replace=horizon - self.context < self.clip_frames - self.context,
            )
            clips.append(frames[[*range(self.context), *np.sort(future)]])
        return Clip(frames=as_floats(np.stack(clips)), context_frames=self.context)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of the next batch."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
        self.step = state["step"]


class ReplayTokens:
    """Endless batches of tokens of segments; batch k depends on the seed and on k alone."""

    def __init__(self, model: WorldModel, replay: ReplayBuffer, batch_size: int, frames: int, *, seed: int) -> None:
        """Draw segments of ``frames``, tokenised by the model."""
        self.model, self.replay, self.batch_size, self.frames = model, replay, batch_size, frames
        self.seed, self.step = seed, 0

    def __iter__(self) -> Iterator[TokenBatch]:
        """Iterate from the next batch on."""
        while True:
            random = np.random.default_rng([self.seed, self.step])
            self.step += 1
            yield tokenise_segments(self.model, self.replay.segments(self.batch_size, self.frames, random))

    def state_dict(self) -> dict[str, Any]:
        """Return the number of the next batch."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
        self.step = state["step"]


def as_floats(frames: np.ndarray) -> Tensor:
    """Convert bytes ``[b t h w 3]`` to float32 ``[b t 3 h w]`` in [0, 1]."""
    return rearrange(torch.from_numpy(frames), "b t h w c -> b t c h w").float() / 255


@torch.inference_mode()
def tokenise_segments(model: WorldModel, segments: Segments, *, raw_actions: bool = True) -> TokenBatch:
    """Make a training batch of a transformer.

    Args:
        model: its tokenizer, and the statistics of its actions.
        segments: context and future. A frame's reward is that of the action that led to it.
        raw_actions: actions are in the units of the robot; False: in those of the action layer.
    """
    first = model.context_frames - 1
    ids = model.tokenize(as_floats(segments.frames).to(model.device))
    with torch.inference_mode(False):
        actions = torch.from_numpy(segments.actions[:, first - model.past_actions :]).to(model.device)
        return TokenBatch(
            ids.clone(),
            model.normalize_actions(actions) if raw_actions else actions,
            torch.from_numpy(segments.rewards[:, first:]).float().to(model.device),
            torch.from_numpy(segments.terminated[:, first:]).to(model.device),
        )
