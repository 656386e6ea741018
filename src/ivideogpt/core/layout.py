"""Positions and ids of the tokens of a sequence; all arithmetic on them is here.

A sequence of c context and f future frames is

    context tokens (n) | scf | context tokens (n) | ... | sdf | dynamics tokens (m) | sdf | dynamics tokens (m) | ...

where the separator scf opens each context frame but the first and sdf opens each future frame. Vocabulary: context
codes first, then dynamics codes, then scf, then sdf.

Source: thuml/iVideoGPT ivideogpt/tokenizer (same order, ids and labels).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange

from ivideogpt.core.errors import UserError

IGNORED_LABEL = -100


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """Layout of the token sequence of one model.

    Attributes:
        context_tokens: tokens n of a context frame (256 in the official models).
        dynamics_tokens: tokens m of a future frame (16 in the official models).
        context_codes: size of the codebook of context tokens.
        dynamics_codes: size of the codebook of dynamics tokens.
    """

    context_tokens: int
    dynamics_tokens: int
    context_codes: int
    dynamics_codes: int

    @property
    def vocab_size(self) -> int:
        """Number of ids: both codebooks and two separators."""
        return self.context_codes + self.dynamics_codes + 2

    @property
    def context_separator(self) -> int:
        """Id of scf, which opens each context frame but the first."""
        return self.context_codes + self.dynamics_codes

    @property
    def dynamics_separator(self) -> int:
        """Id of sdf, which opens each future frame."""
        return self.context_codes + self.dynamics_codes + 1

    @property
    def dynamics_ids(self) -> range:
        """Legal ids of a dynamics token, in the full vocabulary."""
        return range(self.context_codes, self.context_codes + self.dynamics_codes)

    @property
    def frame_length(self) -> int:
        """Positions of one future frame: its separator and its tokens."""
        return 1 + self.dynamics_tokens

    @property
    def slot_count(self) -> int:
        """Number of positions in a frame of either kind, its separator included; see ``slots``."""
        return 1 + max(self.context_tokens, self.dynamics_tokens)

    def context_length(self, context_frames: int) -> int:
        """Return the positions of the context frames alone, without the separator of the first future frame."""
        return (self.context_tokens + 1) * context_frames - 1

    def length(self, context_frames: int, future_frames: int) -> int:
        """Return the positions of a whole sequence."""
        return self.context_length(context_frames) + self.frame_length * future_frames

    def prompt_length(self, context_frames: int) -> int:
        """Return the positions of the official prompt: the context frames and the first sdf."""
        return self.context_length(context_frames) + 1

    def future_frames(self, context_frames: int, positions: int) -> int:
        """Return the number of future frames that fit into ``positions`` after ``context_frames``, at least 0."""
        return max(0, (positions - self.context_length(context_frames)) // self.frame_length)

    def action_positions(self, context_frames: int, future_frames: int) -> torch.Tensor:
        """Return the positions of the separators sdf, where the actions of future frames are added: int64 ``[f]``."""
        return self.context_length(context_frames) + self.frame_length * torch.arange(future_frames)

    def legal_ids(self, position: int, context_frames: int) -> range:
        """Return the legal ids at ``position`` of a sequence with ``context_frames``, as a range of the vocabulary."""
        start = self.context_length(context_frames)
        if position < start:
            if position % (self.context_tokens + 1) == self.context_tokens:
                return range(self.context_separator, self.context_separator + 1)
            return range(self.context_codes)
        if (position - start) % self.frame_length == 0:
            return range(self.dynamics_separator, self.dynamics_separator + 1)
        return self.dynamics_ids

    def slots(self, context_frames: int, future_frames: int) -> torch.Tensor:
        """Return the slot of each position in its frame, int64 ``[length]``: 0 for a separator, 1 + i for token i."""
        context = torch.arange(1, (self.context_tokens + 1) * context_frames) % (self.context_tokens + 1)
        future = torch.arange(self.frame_length * future_frames) % self.frame_length
        return torch.cat([context, future])

    def join(self, context: torch.Tensor, dynamics: torch.Tensor | None = None) -> torch.Tensor:
        """Return one sequence from the codes of frames.

        Args:
            context: int64 ``[b c n]`` codes of the context codebook.
            dynamics: int64 ``[b f m]`` codes of the dynamics codebook (from 0), or None for the context alone.

        Returns:
            int64 ``[b length]`` ids of the full vocabulary.
        """
        opened = torch.nn.functional.pad(context, (1, 0), value=self.context_separator)
        ids = rearrange(opened, "b c n -> b (c n)")[:, 1:]
        if dynamics is None:
            return ids
        future = torch.nn.functional.pad(dynamics + self.context_codes, (1, 0), value=self.dynamics_separator)
        return torch.cat([ids, rearrange(future, "b f m -> b (f m)")], dim=1)

    def split(self, ids: torch.Tensor, context_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the codes of frames from one sequence; the ids at separator positions are ignored.

        Args:
            ids: int64 ``[b length]`` of the full vocabulary.
            context_frames: c.

        Returns:
            Context codes ``[b c n]`` and dynamics codes ``[b f m]`` (from 0; out-of-range ids are clamped).

        Raises:
            UserError: the length is that of no whole number of future frames.
        """
        start = self.context_length(context_frames)
        if ids.shape[1] < start or (ids.shape[1] - start) % self.frame_length:
            raise UserError(
                f"a sequence of {ids.shape[1]} tokens does not hold {context_frames} context frames of "
                f"{self.context_tokens} tokens and whole future frames of {self.dynamics_tokens}"
            )
        context = torch.nn.functional.pad(ids[:, :start], (1, 0))
        context = rearrange(context, "b (c n) -> b c n", c=context_frames)[:, :, 1:]
        future = rearrange(ids[:, start:], "b (f m) -> b f m", m=self.frame_length)[:, :, 1:]
        return context, (future - self.context_codes).clamp(0, self.dynamics_codes - 1)

    def labels(self, ids: torch.Tensor, context_frames: int) -> torch.Tensor:
        """Return targets of the language-model loss: ``ids`` with the prompt ignored (-100), int64 ``[b length]``."""
        labels = ids.clone()
        labels[:, : self.prompt_length(context_frames)] = IGNORED_LABEL
        return labels
