"""Episodes of one size held in memory as one array: what the small training loops draw clips from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange

from ivideogpt.core.episode import Clip, Episode
from ivideogpt.core.errors import UserError


@dataclass(frozen=True)
class EpisodeArrays:
    """All frames and actions of a dataset, end to end.

    Attributes:
        frames: uint8 ``[total c h w]``.
        actions: float32 ``[total a]`` raw, or None.
        rewards: float32 ``[total]``, or None.
        starts: int64 ``[episodes]``: where each episode begins.
        lengths: int64 ``[episodes]``: frames of each.
    """

    frames: torch.Tensor
    actions: torch.Tensor | None
    rewards: torch.Tensor | None
    starts: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def from_episodes(cls, episodes: Sequence[Episode]) -> EpisodeArrays:
        """Copies ``episodes`` into one block.

        Raises:
            UserError: there are none, or their frames or actions differ in shape.
        """
        if not episodes:
            raise UserError("there are no episodes to train on; collect or convert some first")
        first = episodes[0]
        for episode in episodes:
            if episode.frames.shape[1:] != first.frames.shape[1:]:
                raise UserError(
                    f"episode {episode.key!r} has frames of {list(episode.frames.shape[1:])}, "
                    f"others of {list(first.frames.shape[1:])}; resize them to one size"
                )
            for label in ("actions", "rewards"):
                if (getattr(episode, label) is None) != (getattr(first, label) is None):
                    raise UserError(f"of the episodes {first.key!r} and {episode.key!r} only one has {label}")
        lengths = torch.tensor([len(episode) for episode in episodes])
        frames = np.concatenate([episode.frames for episode in episodes])

        def joined(label: str) -> torch.Tensor | None:
            if getattr(first, label) is None:
                return None
            return torch.from_numpy(np.concatenate([getattr(x, label) for x in episodes]).astype(np.float32))

        return cls(
            frames=rearrange(torch.from_numpy(frames), "t h w c -> t c h w").contiguous(),
            actions=joined("actions"),
            rewards=joined("rewards"),
            starts=torch.cumsum(lengths, 0) - lengths,
            lengths=lengths,
        )

    def draw(self, count: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """First rows of ``count`` random windows of ``length`` frames that stay inside one episode, int64 ``[count]``.

        Raises:
            UserError: no episode is that long.
        """
        room = (self.lengths - length + 1).clamp(min=0)
        ends = torch.cumsum(room, 0)
        if not len(ends) or ends[-1] == 0:
            raise UserError(f"no episode has {length} frames (longest: {int(self.lengths.max())}); use a shorter clip")
        ticket = torch.randint(int(ends[-1]), (count,), generator=generator)
        episode = torch.searchsorted(ends, ticket, right=True)
        return self.starts[episode] + ticket - (ends - room)[episode]

    def clips(self, rows: torch.Tensor, context_frames: int) -> Clip:
        """The clips whose frames are ``rows`` (int64 ``[b t]``); actions stay raw."""
        frames = self.frames[rows].float() / 255
        return Clip(
            frames=frames,
            actions=None if self.actions is None else self.actions[rows],
            context_frames=context_frames,
        )


def contiguous(starts: torch.Tensor, length: int) -> torch.Tensor:
    """Rows of windows of ``length`` frames that begin at ``starts`` ``[b]``: int64 ``[b length]``."""
    return starts[:, None] + torch.arange(length)


def random_after_context(
    starts: torch.Tensor, context_frames: int, future_frames: int, horizon: int, generator: torch.Generator
) -> torch.Tensor:
    """Rows of the context, then ``future_frames`` sorted random ones of the ``horizon`` after it: int64 ``[b t]``.

    Source: thuml/iVideoGPT ``rand_select``; same.
    """
    chosen = torch.rand(len(starts), horizon, generator=generator).argsort(dim=1)[:, :future_frames].sort(dim=1).values
    context = torch.arange(context_frames).expand(len(starts), -1)
    return starts[:, None] + torch.cat([context, context_frames + chosen], dim=1)
