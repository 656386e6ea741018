"""Positions and ids of the tokens of a sequence; all arithmetic on them is here.

A sequence of c context and f future frames is

    context tokens (n) | scf | context tokens (n) | ... | sdf | dynamics tokens (m) | sdf | dynamics tokens (m) | ...

where the separator scf opens each context frame but the first and sdf opens each future frame. Vocabulary: context
codes first, then dynamics codes, then scf, then sdf.

Source: thuml/iVideoGPT ivideogpt/tokenizer (same order, ids and labels).

With tokens for the numbers of an action (k of them, one for each number), these stand where the separators were:

    frame (n) | action (k) | frame (n) | ... | action (k) | bos | frame (n)           one codebook for all frames
    reference (n) | frame (m) | action (k) | frame (m) | action (k) | frame (m) ...   a codebook for later frames

In the second order the last context frame has dynamics tokens too: it is a *lead* frame. Vocabulary: dynamics codes,
context codes (where they are others), bins of an action, bos, eos. eos is part of the vocabulary and of no sequence.

Source: thuml/RLVR-World, the single-step and the multi-step processor; same order and ids. There the single-step
sequence ends with eos, which nothing reads.
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
        action_tokens: tokens k of an action; 0: actions are no tokens.
        action_bins: ids of an action token.
        shared_ids: context and dynamics codes have the same ids; only with action tokens.
        lead_frames: context frames with dynamics tokens, after the one with context tokens: 0 or 1; only with action
            tokens.
    """

    context_tokens: int
    dynamics_tokens: int
    context_codes: int
    dynamics_codes: int
    action_tokens: int = 0
    action_bins: int = 0
    shared_ids: bool = False
    lead_frames: int = 0

    # Ids

    @property
    def vocab_size(self) -> int:
        """Number of ids: the codebooks, the bins of actions, and two separators."""
        return self.context_separator + 2

    @property
    def context_separator(self) -> int:
        """Id of scf, which opens each context frame but the first; with action tokens bos."""
        return self.dynamics_codes + self.context_codes * (not self.shared_ids) + self.action_bins

    @property
    def dynamics_separator(self) -> int:
        """Id of sdf, which opens each future frame; with action tokens bos."""
        return self.context_separator + (not self.action_tokens)

    @property
    def context_ids(self) -> range:
        """Legal ids of a context token, in the full vocabulary."""
        first = self.dynamics_codes if self.action_tokens and not self.shared_ids else 0
        return range(first, first + self.context_codes)

    @property
    def dynamics_ids(self) -> range:
        """Legal ids of a dynamics token, in the full vocabulary."""
        first = 0 if self.action_tokens else self.context_codes
        return range(first, first + self.dynamics_codes)

    @property
    def action_ids(self) -> range:
        """Legal ids of an action token; empty where actions are no tokens."""
        return range(self.context_separator - self.action_bins, self.context_separator)

    # Positions

    @property
    def opening(self) -> int:
        """Positions of a future frame before its tokens: its separator, or the action, and bos in a shared codebook."""
        return self.action_tokens + (self.shared_ids or not self.action_tokens)

    @property
    def frame_length(self) -> int:
        """Positions of one future frame: its opening and its tokens."""
        return self.opening + self.dynamics_tokens

    @property
    def slot_count(self) -> int:
        """Number of positions in a frame of either kind, its separator included; see ``slots``."""
        return 1 + max(self.context_tokens, self.dynamics_tokens)

    @property
    def _gap(self) -> int:
        """Positions between two frames of context tokens."""
        return self.action_tokens or 1

    def past_actions(self, context_frames: int) -> int:
        """Return the number of actions that are tokens of the context: those between its frames."""
        return context_frames - 1 if self.action_tokens and not self.lead_frames else 0

    def context_length(self, context_frames: int) -> int:
        """Return the positions of the context frames alone, without the opening of the first future frame."""
        count = context_frames - self.lead_frames
        return (self.context_tokens + self._gap) * count - self._gap + self.dynamics_tokens * self.lead_frames

    def length(self, context_frames: int, future_frames: int) -> int:
        """Return the positions of a whole sequence."""
        return self.context_length(context_frames) + self.frame_length * future_frames

    def prompt_length(self, context_frames: int) -> int:
        """Return the positions of the official prompt: the context frames and the opening of the first future one."""
        return self.context_length(context_frames) + self.opening

    def future_frames(self, context_frames: int, positions: int) -> int:
        """Return the number of future frames that fit into ``positions`` after ``context_frames``, at least 0."""
        return max(0, (positions - self.context_length(context_frames)) // self.frame_length)

    def frame_start(self, context_frames: int, frame: int) -> int:
        """Return the position of the first token of a frame, context frames counted first."""
        coded = context_frames - self.lead_frames
        if frame < coded:
            return (self.context_tokens + self._gap) * frame
        if frame < context_frames:
            return self.context_length(context_frames) - self.dynamics_tokens * (context_frames - frame)
        return self.length(context_frames, frame - context_frames) + self.opening

    def action_positions(self, context_frames: int, future_frames: int) -> torch.Tensor:
        """Return the positions of actions: int64 ``[f]``, the separators sdf that those of future frames are added to.

        With action tokens: ``[a k]``, the tokens of the a actions of the context and of the future frames.
        """
        if not self.action_tokens:
            return self.context_length(context_frames) + self.frame_length * torch.arange(future_frames)
        last = context_frames + future_frames
        first = context_frames - self.past_actions(context_frames)
        before = [self.opening if frame >= context_frames else self.action_tokens for frame in range(first, last)]
        starts = [self.frame_start(context_frames, first + index) - size for index, size in enumerate(before)]
        return torch.tensor(starts, dtype=torch.long)[:, None] + torch.arange(self.action_tokens)

    def legal_ids(self, position: int, context_frames: int) -> range:
        """Return the legal ids at ``position`` of a sequence with ``context_frames``, as a range of the vocabulary."""
        start, lead = self.context_length(context_frames), self.dynamics_tokens * self.lead_frames
        if position < start - lead:
            inside = position % (self.context_tokens + self._gap) < self.context_tokens
            return self.context_ids if inside else self.action_ids or _only(self.context_separator)
        place = (position - start) % self.frame_length if position >= start else self.opening
        if place >= self.opening:
            return self.dynamics_ids
        return self.action_ids if place < self.action_tokens else _only(self.dynamics_separator)

    def slots(self, context_frames: int, future_frames: int) -> torch.Tensor:
        """Return the slot of each position in its frame, int64 ``[length]``: 0 for a separator, 1 + i for token i."""
        if self.action_tokens:  # slots are not learned there
            return torch.zeros(self.length(context_frames, future_frames), dtype=torch.long)
        context = torch.arange(1, (self.context_tokens + 1) * context_frames) % (self.context_tokens + 1)
        future = torch.arange(self.frame_length * future_frames) % self.frame_length
        return torch.cat([context, future])

    # Sequences

    def join(self, context: torch.Tensor, dynamics: torch.Tensor | None = None) -> torch.Tensor:
        """Return one sequence from the codes of frames; where actions are tokens, each of them is in the first bin.

        Args:
            context: int64 ``[b c n]`` codes of the context codebook.
            dynamics: int64 ``[b l+f m]`` codes of the dynamics codebook (from 0): those of the lead frames, where there
                are some, and of the future frames; None for the context alone.

        Returns:
            int64 ``[b length]`` ids of the full vocabulary.
        """
        gap = self.action_ids.start if self.action_tokens else self.context_separator
        opened = torch.nn.functional.pad(context + self.context_ids.start, (self._gap, 0), value=gap)
        ids = rearrange(opened, "b c n -> b (c n)")[:, self._gap :]
        if dynamics is None:
            return ids
        frames = dynamics + self.dynamics_ids.start
        lead, future = frames[:, : self.lead_frames], frames[:, self.lead_frames :]
        return self.extend(torch.cat([ids, lead.flatten(1)], dim=1), future)

    def extend(self, context: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
        """Return the sequence ``[b length]`` of a context ``[b length]`` and ids ``[b f m]`` of future frames."""
        if self.opening > self.action_tokens:
            future = torch.nn.functional.pad(future, (1, 0), value=self.dynamics_separator)
        future = torch.nn.functional.pad(future, (self.action_tokens, 0), value=self.action_ids.start)
        return torch.cat([context, future.flatten(1)], dim=1)

    def split(self, ids: torch.Tensor, context_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the codes of frames from one sequence; the ids at other positions are ignored.

        Args:
            ids: int64 ``[b length]`` of the full vocabulary.
            context_frames: c, lead frames l included.

        Returns:
            Context codes ``[b c-l n]`` and dynamics codes ``[b l+f m]`` (from 0; out-of-range ids are clamped).

        Raises:
            UserError: the length is that of no whole number of future frames.
        """
        start, lead = self.context_length(context_frames), self.dynamics_tokens * self.lead_frames
        if ids.shape[1] < start or (ids.shape[1] - start) % self.frame_length:
            raise UserError(
                f"a sequence of {ids.shape[1]} tokens does not hold {context_frames} context frames of "
                f"{self.context_tokens} tokens and whole future frames of {self.dynamics_tokens}"
            )
        context = torch.nn.functional.pad(ids[:, : start - lead], (self._gap, 0))
        context = rearrange(context, "b (c n) -> b c n", n=self.context_tokens + self._gap)[:, :, self._gap :]
        first = rearrange(ids[:, start - lead : start], "b (l m) -> b l m", m=self.dynamics_tokens)
        future = rearrange(ids[:, start:], "b (f m) -> b f m", m=self.frame_length)[:, :, self.opening :]
        frames = torch.cat([first, future], dim=1)
        if self.action_tokens:  # official models decode context ids as they are
            context = (context - self.context_ids.start).clamp(0, self.context_codes - 1)
        return context, (frames - self.dynamics_ids.start).clamp(0, self.dynamics_codes - 1)

    def labels(self, ids: torch.Tensor, context_frames: int) -> torch.Tensor:
        """Return targets of the language-model loss, int64 ``[b length]``: ``ids`` with the prompt ignored (-100).

        Where actions are tokens, the openings of all frames are ignored too.
        """
        labels = ids.clone()
        labels[:, : self.prompt_length(context_frames)] = IGNORED_LABEL
        if self.action_tokens:
            future = labels[:, self.context_length(context_frames) :].unflatten(1, (-1, self.frame_length))
            future[:, :, : self.opening] = IGNORED_LABEL
        return labels


def _only(number: int) -> range:
    return range(number, number + 1)
