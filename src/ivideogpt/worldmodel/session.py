"""One live imagination: stepped, observed, forked and rewound; the only rollout code there is."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from ivideogpt.core.errors import UserError
from ivideogpt.decoding import decode as engine
from ivideogpt.decoding.sampling import RandomStreams, Sampling
from ivideogpt.models.tokenizer import ContextFeatures
from ivideogpt.models.transformer import KVCache
from ivideogpt.worldmodel import chunked_tokenizer, memory, validation
from ivideogpt.worldmodel.imagination import Imagination
from ivideogpt.worldmodel.lazy_frames import Frame, SegmentDecoder, decode, stacked

if TYPE_CHECKING:
    from ivideogpt.worldmodel.world_model import WorldModel


@dataclass(frozen=True)
class Step:
    """One frame of a session.

    Attributes:
        frames: ``[b c h w]`` in [0, 1].
        ids: int64 ``[b m]`` of the full vocabulary.
        log_probs: float32 ``[b m]``; of an observed frame: how much the model expected it.
        entropies: float32 ``[b m]`` in nats: how unsure the model was of each token.
        rewards: ``[b]`` in reward units, or None without a reward head.
        terminations: ``[b]``, probability that this step was the last, or None without such a head.
    """

    frames: Tensor
    ids: Tensor
    log_probs: Tensor
    entropies: Tensor
    rewards: Tensor | None
    terminations: Tensor | None = None


@dataclass(frozen=True)
class _Past:
    """A step that was made: what is needed to make it again."""

    tokens: engine.FrameTokens
    separators: Tensor
    action: Tensor | None
    rewards: Tensor | None
    terminations: Tensor | None

    def select(self, rows: Tensor) -> _Past:
        """The same of some rows, in any order and any number: int64 ``[b]``."""

        def some(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[rows.to(x.device)]

        tokens = engine.FrameTokens(*(x[rows.to(x.device)] for x in self.tokens))
        separators = self.separators[rows.to(self.separators.device)]
        return _Past(tokens, separators, some(self.action), some(self.rewards), some(self.terminations))


@dataclass
class _Segment:
    """The steps since the context was last encoded: their cache and what the tokenizer needs.

    The tokenizer's parts have a row for each row that the segment began with; its children share it.
    """

    start: int
    cache: KVCache
    encoder: ContextFeatures
    decoder: SegmentDecoder

    def select(self, rows: Tensor, count: int) -> _Segment:
        """The same of some of ``count`` rows."""
        parents = torch.div(rows, count // self.decoder.rows, rounding_mode="floor")
        cache = self.cache.select(rows.to(self.cache.keys.device))
        return _Segment(
            self.start, cache, chunked_tokenizer.some_rows(self.encoder, parents), self.decoder.select(parents)
        )


class Session:
    """A batch of b imaginations that go on in step, made by ``WorldModel.session``.

    The cache is kept between frames. When a segment is full (see ``reanchor_every``) the last frames are encoded as a
    new context and the session goes on, so that any number of steps runs in bounded memory (frames and tokens of the
    past are kept; the cache is not). A frame is decoded when somebody looks at it, or when it becomes context.
    """

    def __init__(
        self,
        model: WorldModel,
        context: Tensor,
        *,
        sampling: Sampling | None = None,
        seed: int | Sequence[int] | RandomStreams = 0,
        reanchor_every: int | None = None,
    ) -> None:
        """Encodes the context.

        Args:
            model: the world model.
            context: ``[b c_frames c h w]``, float in [0, 1] or uint8; for a goal-conditioned model [goal, last frame].
            sampling: how tokens are drawn.
            seed: of the random streams: one number, or one a row; or the streams themselves.
            reanchor_every: imagined frames between two encodings of the context; None: what the model was trained on.

        Raises:
            UserError: wrong shape, type, range or number of context frames, or more rows than memory has room for.
        """
        self.model = model
        self.sampling = sampling or Sampling()
        context = validation.check_context(model, context)
        self._frames = [Frame.shown(pixels) for pixels in context.unbind(dim=1)]
        self._past: list[_Past] = []
        self._streams = RandomStreams.from_seed(seed, len(context))
        self._capacity = model.segment_frames(reanchor_every)
        memory.check_room(model, len(context), self._capacity)
        self._anchors = [0]
        self._opened: _Segment | None = self._open_segment()

    @property
    def steps(self) -> int:
        """Frames imagined or observed so far."""
        return len(self._past)

    @property
    def rows(self) -> int:
        """Number b of imaginations."""
        return len(self._streams.keys)

    @property
    def frames(self) -> Tensor:
        """All frames, ``[b c_frames + steps c h w]`` in [0, 1]."""
        decode(self._frames, keep=True)
        return stacked([self._frames])

    def step(self, action: Tensor | None = None) -> Step:
        """Imagines the next frame.

        Args:
            action: ``[b a]`` in model units, applied at the last frame; None only for an action-free model.

        Raises:
            UserError: the action is missing, not wanted, or of another shape.
        """
        self.advance(action)
        return self._last_step()

    @torch.inference_mode()
    def advance(self, action: Tensor | None = None) -> None:
        """Imagines the next frame as tokens only; it is decoded when somebody looks at ``frames``."""
        action, separators = self._open(action)
        uniforms = self._streams.uniforms(self.steps, self.model.layout.frame_length)[
            :, : self.model.layout.dynamics_tokens
        ]
        tokens = engine.decode_frame(
            self.model, self._segment.cache, separators, action, self.sampling, uniforms.to(separators.device)
        )
        waiting = Frame.waiting(self.model.codes(tokens.ids), self._segment.decoder)
        self._close(tokens, separators, action, waiting)

    def warmup(self) -> None:
        """Does now what the first frame would wait for: weights are laid out for the CPU, a CUDA graph is captured."""
        size = self.model.action_dim
        action = torch.zeros(self.rows, size, device=self.model.device) if size else None
        self.fork().step(action)

    def observe(self, frame: Tensor, action: Tensor | None = None) -> Step:
        """Takes the real next frame instead of an imagined one.

        Args:
            frame: ``[b c h w]``, float in [0, 1] or uint8.
            action: ``[b a]`` in model units, that led to it.

        Returns:
            The step, whose ``log_probs`` tell how much the model expected the frame.

        Raises:
            UserError: the frame or the action is of another shape, type or range, or an action is missing.
        """
        frame = validation.check_frame(self.model, frame, self.rows)
        self._read(frame, action)
        return self._last_step()

    @torch.inference_mode()
    def fork(self, k: int = 1, common_random: bool = False, *, first: int = 0) -> Session:
        """A new session with each row repeated k times; this one is left as it is.

        Args:
            k: children of each row; child 0 keeps the row's random stream.
            common_random: all children keep it.
            first: number of the first child. Children of one number are the same whenever the row is forked at this
                step; another number gives a future that was not seen yet.
        """
        if k < 1:
            raise UserError(f"k is {k}; expected at least 1 child a row")
        if first < 0:
            raise UserError(f"first is {first}; expected the number of a child, from 0 on")
        child = copy.copy(self)
        child._frames = [frame.repeat(k) for frame in self._frames]
        families = torch.arange(self.rows).repeat_interleave(k)
        child._past = [past.select(families) for past in self._past]
        child._anchors = list(self._anchors)
        child._streams = self._streams.fork(k, self.steps, common_random, first)
        if self._opened is not None:
            child._opened = replace(self._opened, cache=self._opened.cache.repeat(k))
        return child

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> Session:
        """A new session of some rows, each of which goes on as it would have; this one is left as it is.

        Args:
            rows: their numbers, in any order.

        Raises:
            UserError: there is none, or a number is no row's.
        """
        if not len(rows) or not all(0 <= row < self.rows for row in rows):
            raise UserError(f"rows is {list(rows)}; expected some of 0 to {self.rows - 1}")
        chosen = torch.as_tensor(rows, dtype=torch.long)
        child = copy.copy(self)
        child._frames = [Frame.shown(pixels) for pixels in self.frames[chosen].unbind(dim=1)]
        child._past = [past.select(chosen) for past in self._past]
        child._anchors = list(self._anchors)
        child._streams = self._streams.rows(rows)
        if self._opened is not None:
            child._opened = self._opened.select(chosen, self.rows)
        return child

    @torch.inference_mode()
    def rewind(self, n: int) -> None:
        """Goes n steps back, random streams included: the same actions lead to the same frames again.

        Raises:
            UserError: n is negative or more than the steps made.
        """
        if not 0 <= n <= self.steps:
            raise UserError(f"cannot rewind {n} steps; expected 0 to {self.steps}, the steps made so far")
        if n == 0:
            return
        steps = self.steps - n
        del self._past[steps:], self._frames[self.model.context_frames + steps :]
        if steps >= self._anchors[-1]:
            if self._opened is not None:
                self._opened.cache.truncate(self._segment_length(steps - self._opened.start))
            return
        self._opened = None
        while self._anchors[-1] > 0 and self._anchors[-1] >= steps:
            self._anchors.pop()

    # Parts

    @torch.inference_mode()
    def _read(self, frame: Tensor, action: Tensor | None) -> None:
        """Appends the real next frame ``[b c h w]`` as tokens."""
        action, separators = self._open(action)
        segment, tokenizer = self._segment, self.model.tokenizer
        pixels = rearrange(frame.to(self.model.dtype), "(b k) c h w -> b k 1 c h w", b=segment.decoder.rows)
        codes = rearrange(chunked_tokenizer.encode_future(tokenizer, pixels, segment.encoder), "b k 1 m -> (b k) m")
        ids = codes + self.model.layout.dynamics_ids.start
        tokens = engine.read_frame(self.model, self._segment.cache, separators, ids, action, self.sampling)
        self._close(tokens, separators, action, Frame.shown(frame))

    def _open(self, action: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Checks the action, makes room, and tells the id that opens the next frame."""
        action = validation.check_action(self.model, action, self.rows)
        if self.steps - self._anchors[-1] >= self._capacity:
            decode(self._context(self.steps), keep=False)
            if self._opened is not None:
                self._opened.decoder.forget()
            self._anchors.append(self.steps)
            self._opened = None  # the old cache goes before the new one comes
        layout, device = self.model.layout, self._segment.cache.keys.device
        if not self.sampling.free_separators or self.steps == self._segment.start:
            return action, torch.full((self.rows,), layout.dynamics_separator, device=device)
        # The separator is the last number drawn for the frame before.
        uniforms = self._streams.uniforms(self.steps - 1, layout.frame_length)[:, -1].to(device)
        logits = self.model.transformer.logits(self._past[-1].tokens.hidden)
        return action, self.sampling.choose(logits, uniforms).index

    def _close(self, tokens: engine.FrameTokens, separators: Tensor, action: Tensor | None, frame: Frame) -> None:
        rewards, ends = self.model.rewards(tokens.hidden), self.model.terminations(tokens.hidden)
        if not self.sampling.free_separators:
            tokens = tokens._replace(hidden=tokens.hidden.new_empty(self.rows, 0))  # a view would keep the memory
        else:
            tokens = tokens._replace(hidden=tokens.hidden.clone())
        self._past.append(_Past(tokens, separators, action, rewards, ends))
        self._frames.append(frame)

    def _last_step(self) -> Step:
        past, last = self._past[-1], self._frames[-1:]
        decode(last, keep=True)
        frame = stacked([last])[:, 0]
        # Copies, made outside inference mode: callers may change them in place and train on them.
        rewards = None if past.rewards is None else past.rewards.clone()
        ends = None if past.terminations is None else past.terminations.clone()
        tokens = past.tokens
        return Step(frame, tokens.ids.clone(), tokens.log_probs.clone(), tokens.entropies.clone(), rewards, ends)

    @property
    def _segment(self) -> _Segment:
        """The segment of the next step."""
        if self._opened is None:
            self._opened = self._open_segment()
        return self._opened

    @torch.inference_mode()
    def _open_segment(self) -> _Segment:
        """Encodes the last frames before the newest anchor as a new context, and reads the steps made since."""
        start, tokenizer = self._anchors[-1], self.model.tokenizer
        context = self._context(start)
        decode(context, keep=False)
        codes, encoder = chunked_tokenizer.encode_context(tokenizer, stacked([context]).to(self.model.dtype))
        cache = engine.prefill(self.model, codes, self._capacity)
        for step in self._past[start:]:
            engine.read_frame(self.model, cache, step.separators, step.tokens.ids, step.action, self.sampling)
        return _Segment(start, cache, encoder, SegmentDecoder(tokenizer, codes))

    def _context(self, start: int) -> list[Frame]:
        """The frames that are the context of step ``start``."""
        count = self.model.context_frames
        if self.model.config.goal_conditioned:
            return [self._frames[0], self._frames[start + count - 1]]
        return self._frames[start : start + count]

    def _segment_length(self, steps: int) -> int:
        return self.model.layout.length(self.model.context_frames, steps)


def imagination(session: Session, start: int) -> Imagination:
    """The steps of ``session`` from ``start`` on, whatever it does later."""
    past = session._past[start:]

    def joined(values: list[Tensor | None]) -> Tensor | None:
        return None if values[0] is None else torch.stack(values, dim=1)  # type: ignore[arg-type]

    return Imagination(
        frames=(tuple(session._frames[session.model.context_frames + start :]),),  # type: ignore[arg-type]
        ids=torch.stack([step.tokens.ids for step in past], dim=1),
        log_probs=torch.stack([step.tokens.log_probs for step in past], dim=1),
        entropies=torch.stack([step.tokens.entropies for step in past], dim=1),
        rewards=joined([step.rewards for step in past]),
        terminations=joined([step.terminations for step in past]),
    )
