"""A rollout in progress, which can be stepped, observed, forked and rewound; the only rollout loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ivideogpt.core.errors import UserError
from ivideogpt.decoding.sampling import RandomStreams, Sampling
from ivideogpt.models.frame_reward import KnownReward
from ivideogpt.worldmodel import validation
from ivideogpt.worldmodel.imagination import Imagination
from ivideogpt.worldmodel.interfaces import Segment, SessionModel, StepRecord
from ivideogpt.worldmodel.lazy_frames import Frame, decode, stacked
from ivideogpt.worldmodel.token_segment import TokenSegment

DEFAULT_HORIZON = 14


@dataclass(frozen=True)
class Step:
    """One frame of a session.

    Attributes:
        frames: ``[b c h w]`` in [0, 1].
        ids: int64 ``[b m]`` of the full vocabulary; m is 0 for a model without tokens.
        log_probs: float32 ``[b m]`` of the tokens; of an observed frame, minus its surprise.
        entropies: float32 ``[b m]`` in nats, of the distribution of each token.
        rewards: ``[b]`` in reward units, or None without a reward head.
        terminations: ``[b]``, probability that this step was the last, or None without such a head.
    """

    frames: Tensor
    ids: Tensor
    log_probs: Tensor
    entropies: Tensor
    rewards: Tensor | None
    terminations: Tensor | None = None


class Session:
    """A batch of b rollouts that are stepped together, made by ``WorldModel.session``.

    When a segment is full (see ``reanchor_every``), the session re-anchors: it encodes the last frames as a new context
    and continues. So any number of steps runs with a cache of bounded size; past frames and tokens are kept. A frame is
    decoded when it is read, or when it becomes context.

    Attributes:
        model: the world model.
        sampling: the sampling rule of the next steps; may be changed between steps.
    """

    def __init__(
        self,
        model: SessionModel,
        context: Tensor,
        *,
        sampling: Sampling | None = None,
        seed: int | Sequence[int] | RandomStreams = 0,
        past_actions: Tensor | None = None,
        last_rewards: Tensor | None = None,
        reanchor_every: int | None = None,
        speculative: bool = True,
    ) -> None:
        """Encode the context.

        Args:
            model: the world model.
            context: ``[b c_frames c h w]``, float in [0, 1] or uint8; for a goal-conditioned model [goal, last frame].
            sampling: the sampling rule; None: the checkpoint's.
            seed: of the random streams: one number, or one a row; or the streams themselves.
            past_actions: ``[b c_frames-1 a]`` the actions between the context frames, for a model that reads them.
            last_rewards: ``[b]`` in reward units, of the transition that led to the last context frame, NaN where it is
                unknown. A picture model may predict rewards as changes from it; other models ignore it.
            reanchor_every: imagined frames between two encodings of the context; None: as the model was trained.
            speculative: speculative decoding where it is faster; False: token by token. The results are equal, up to
                rounding.

        Raises:
            UserError: wrong shape, type, range or number of context frames, or too many rows for the memory.
        """
        self.model = model
        self.sampling = sampling or model.config.sampling
        context = validation.check_context(model, context)
        past_actions = validation.check_past_actions(model, past_actions, len(context))
        self._past_actions = [] if past_actions is None else list(past_actions.unbind(dim=1))
        self._frames = [Frame.shown(pixels) for pixels in context.unbind(dim=1)]
        # Rewards that were given, oldest first, each with its step. Predictions never enter, so errors do not add up.
        self._references: list[tuple[int, KnownReward]] = []
        self._give_rewards(context[:, -1], validation.check_rewards(model, last_rewards, len(context)), 0)
        self._past: list[StepRecord] = []
        self._streams = RandomStreams.from_seed(seed, len(context))
        self._capacity = model.segment_frames(reanchor_every)
        self._speculative = speculative
        model.check_memory(len(context), self._capacity)
        # The steps at which a segment began, and the newest segment; None until the next step needs it.
        self._anchors = [0]
        self._opened: Segment | None = self._open_segment()

    @property
    def steps(self) -> int:
        """Frames imagined or observed so far."""
        return len(self._past)

    @property
    def rows(self) -> int:
        """Number b of rollouts."""
        return len(self._streams.keys)

    @property
    def frames(self) -> Tensor:
        """All frames, ``[b c_frames + steps c h w]`` in [0, 1]."""
        decode(self._frames, keep=True)
        return stacked([self._frames])

    def step(self, action: Tensor | None = None) -> Step:
        """Imagine the next frame.

        Args:
            action: ``[b a]`` in model units, applied at the last frame; None only for an action-free model.

        Raises:
            UserError: the action is missing, not expected, or of another shape.
        """
        self.advance(action)
        return self._last_step()

    @torch.inference_mode()
    def advance(self, action: Tensor | None = None) -> None:
        """Imagine the next frame without decoding it; it is decoded when ``frames`` is read."""
        action = validation.check_action(self.model, action, self.rows)
        segment = self._next_segment()
        uniforms = self._streams.uniforms(self.steps, segment.random_numbers)
        self._append(*segment.step(action, uniforms, self.sampling, self._previous(), self._earlier()))

    def rollout(
        self,
        actions: Tensor | None = None,
        horizon: int | None = None,
        *,
        on_step: Callable[[], object] | None = None,
    ) -> Imagination:
        """Imagine several frames.

        Args:
            actions: ``[b horizon a]`` in model units; ``actions[:, i]`` leads to the i-th frame of the rollout. None
                only for an action-free model.
            horizon: frames to imagine; default: as many as there are actions, else 14.
            on_step: called after each step, for progress bars.

        Returns:
            The frames of this rollout, whatever the session does later.

        Raises:
            UserError: shapes or lengths are wrong.
        """
        horizon = check_horizon(actions, horizon)
        actions = validation.check_actions(self.model, actions, self.rows, horizon)
        start = self.steps
        for index in range(horizon):
            self.advance(None if actions is None else actions[:, index])
            if on_step is not None:
                on_step()
        return self.imagination(start)

    @torch.inference_mode()
    def draft(self, actions: Tensor | None = None, horizon: int | None = None) -> Imagination:
        """Forecast several frames without the transformer, by the likeliest tokens; the session does not change.

        It is a cheap first look at many actions. There are no rewards, no random numbers and no re-anchoring.

        Args:
            actions: ``[b horizon a]`` in model units, as for `rollout`.
            horizon: frames to forecast; default: as many as there are actions, else 14.

        Raises:
            UserError: the model has no forecast of tokens, or shapes or lengths are wrong.
        """
        segment = self._next_segment()
        if not isinstance(segment, TokenSegment) or not segment.dynamics.heads.config.forecast_grid:
            name = self.model.config.name or "this model"
            raise UserError(f"{name} has no forecast of tokens; a draft needs one; use rollout (--planner.speed full)")
        horizon = check_horizon(actions, horizon)
        actions = validation.check_actions(self.model, actions, self.rows, horizon)
        tokens, frames = segment.draft(actions, horizon)
        return Imagination((tuple(frames),), tokens.ids, tokens.log_probs, tokens.entropies, None)

    def imagination(self, start: int = 0) -> Imagination:
        """Return the steps made so far from step ``start`` on, whatever the session does later."""
        past = self._past[start:]

        def stack(values: list[Tensor | None]) -> Tensor | None:
            return None if values[0] is None else torch.stack(values, dim=1)  # type: ignore[arg-type]

        return Imagination(
            frames=(tuple(self._frames[self.model.context_frames + start :]),),
            ids=torch.stack([step.ids for step in past], dim=1),
            log_probs=torch.stack([step.log_probs for step in past], dim=1),
            entropies=torch.stack([step.entropies for step in past], dim=1),
            rewards=stack([step.rewards for step in past]),
            terminations=stack([step.terminations for step in past]),
        )

    def warmup(self) -> None:
        """Prepare the first step: reorder weights for the CPU, capture a CUDA graph."""
        size = self.model.action_dim
        action = torch.zeros(self.rows, size, device=self.model.device) if size else None
        self.fork().step(action)

    def observe(self, frame: Tensor, action: Tensor | None = None, rewards: Tensor | None = None) -> Step:
        """Append the recorded next frame in the place of an imagined one.

        Args:
            frame: ``[b c h w]``, float in [0, 1] or uint8.
            action: ``[b a]`` in model units, that led to it.
            rewards: ``[b]`` of that action, NaN where it is unknown; later rewards are predicted from them, see
                ``last_rewards``.

        Returns:
            The step; its ``log_probs`` are those of the observed tokens, its rewards the given ones where they are
            known.

        Raises:
            UserError: the frame or the action is of another shape, type or range, or an action is missing.
        """
        frame = validation.check_frame(self.model, frame, self.rows)
        action = validation.check_action(self.model, action, self.rows)
        rewards = validation.check_rewards(self.model, rewards, self.rows, "rewards")
        with torch.inference_mode():
            segment = self._next_segment()
            uniforms = self._streams.uniforms(self.steps, segment.random_numbers)
            step, shown = segment.observe(frame, action, uniforms, self.sampling, self._previous(), self._earlier())
            if rewards is not None and step.rewards is not None:
                step = replace(step, rewards=torch.where(rewards.isnan(), step.rewards, rewards))
            self._append(step, shown)
            self._give_rewards(frame, rewards, self.steps)
        return self._last_step()

    @torch.inference_mode()
    def fork(self, k: int = 1, common_random: bool = False, *, first: int = 0) -> Session:
        """Return a new session with each row repeated k times; this one does not change.

        Args:
            k: children of each row; child 0 keeps the row's random stream.
            common_random: all children keep it.
            first: number of the first child. Children of one number are the same whenever the row is forked at this
                step; another number gives another future.

        Raises:
            UserError: k or first is too small.
        """
        if k < 1:
            raise UserError(f"k is {k}; expected at least 1 child a row")
        if first < 0:
            raise UserError(f"first is {first}; expected the number of a child, from 0 on")
        child = copy.copy(self)
        child._frames = [frame.repeat(k) for frame in self._frames]
        families = torch.arange(self.rows).repeat_interleave(k)
        child._past = [past.select(families) for past in self._past]
        child._references = [(step, reference.select(families)) for step, reference in self._references]
        child._past_actions = [action[families.to(action.device)] for action in self._past_actions]
        child._anchors = list(self._anchors)
        child._streams = self._streams.fork(k, self.steps, common_random, first)
        if self._opened is not None:
            child._opened = self._opened.repeat(k)
        return child

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> Session:
        """Return a new session of some rows, which continue as they would here; this one does not change.

        Args:
            rows: their numbers, in any order.

        Raises:
            UserError: ``rows`` is empty, or a number is out of range.
        """
        if not len(rows) or not all(0 <= row < self.rows for row in rows):
            raise UserError(f"rows is {list(rows)}; expected some of 0 to {self.rows - 1}")
        selected = torch.as_tensor(rows, dtype=torch.long)
        child = copy.copy(self)
        child._frames = [Frame.shown(pixels) for pixels in self.frames[selected].unbind(dim=1)]
        child._past = [past.select(selected) for past in self._past]
        child._references = [(step, reference.select(selected)) for step, reference in self._references]
        child._past_actions = [action[selected.to(action.device)] for action in self._past_actions]
        child._anchors = list(self._anchors)
        child._streams = self._streams.rows(rows)
        if self._opened is not None:
            child._opened = self._opened.select(selected, self.rows)
        return child

    @torch.inference_mode()
    def rewind(self, n: int) -> None:
        """Go n steps back, random streams included: the same actions lead to the same frames again.

        Raises:
            UserError: n is negative or more than the steps made.
        """
        if not 0 <= n <= self.steps:
            raise UserError(f"cannot rewind {n} steps; expected 0 to {self.steps}, the steps made so far")
        if n == 0:
            return
        steps = self.steps - n
        del self._past[steps:], self._frames[self.model.context_frames + steps :]
        self._references = [pair for pair in self._references if pair[0] <= steps]
        if steps >= self._anchors[-1]:
            if self._opened is not None:
                self._opened.truncate(steps - self._anchors[-1])
            return
        self._opened = None
        while self._anchors[-1] > 0 and self._anchors[-1] >= steps:
            self._anchors.pop()

    # Segments

    def _next_segment(self) -> Segment:
        """Return the segment of the next step; a new one where the newest is full."""
        if self.steps - self._anchors[-1] >= self._capacity:
            decode(self._context(self.steps), keep=False)
            if self._opened is not None:
                self._opened.close()
            self._anchors.append(self.steps)
            self._opened = None  # the old cache goes before the new one comes
        return self._segment

    @property
    def _segment(self) -> Segment:
        """The newest segment."""
        if self._opened is None:
            self._opened = self._open_segment()
        return self._opened

    @torch.inference_mode()
    def _open_segment(self) -> Segment:
        """Encode the frames before the newest anchor as a new context, and replay the steps made since."""
        start = self._anchors[-1]
        context = self._context(start)
        decode(context, keep=False)
        segment = self.model.open_segment(
            stacked([context]),
            self._capacity,
            past_actions=self._actions_before(start),
            speculative=self._speculative,
        )
        for record, frame in zip(self._past[start:], self._frames[self.model.context_frames + start :], strict=True):
            segment.replay(record, frame, self.sampling)
        return segment

    def _actions_before(self, start: int) -> Tensor | None:
        """Return the actions ``[b p a]`` between the context frames of step ``start``, where the model reads them."""
        actions = [*self._past_actions, *(record.action for record in self._past)]
        used = [action for action in actions[start : start + self.model.past_actions] if action is not None]
        return torch.stack(used, dim=1) if used else None

    def _context(self, start: int) -> list[Frame]:
        """Return the frames that are the context of step ``start``."""
        count = self.model.context_frames
        if self.model.config.goal_conditioned:
            return [self._frames[0], self._frames[start + count - 1]]
        return self._frames[start : start + count]

    # Steps

    def _previous(self) -> StepRecord | None:
        """Return the last step of the newest segment, or None where it has none."""
        return self._past[-1] if self.steps > self._anchors[-1] else None

    def _earlier(self) -> KnownReward | None:
        """Return the last frame of each row whose reward was given, or None where none was."""
        return self._references[-1][1] if self._references else None

    def _give_rewards(self, frames: Tensor, rewards: Tensor | None, step: int) -> None:
        """Keep the rewards ``[b]`` of frames ``[b c h w]`` that were given for step ``step``."""
        if rewards is None or rewards.isnan().all():
            return
        reference, earlier = KnownReward(frames, rewards), self._earlier()
        self._references.append((step, reference if earlier is None else reference.or_else(earlier)))

    def _append(self, record: StepRecord, frame: Frame) -> None:
        self._past.append(record)
        self._frames.append(frame)

    def _last_step(self) -> Step:
        past, last = self._past[-1], self._frames[-1:]
        decode(last, keep=True)
        frame = stacked([last])[:, 0]
        # Copies, made outside inference mode: callers may change them in place and train on them.
        rewards = None if past.rewards is None else past.rewards.clone()
        terminations = None if past.terminations is None else past.terminations.clone()
        return Step(frame, past.ids.clone(), past.log_probs.clone(), past.entropies.clone(), rewards, terminations)


def check_horizon(actions: Tensor | None, horizon: int | None) -> int:
    """Return the number of frames to imagine: ``horizon``, or one for each action, or 14.

    Raises:
        UserError: the horizon is less than 1, or another number than that of the actions.
    """
    count = actions.shape[1] if actions is not None and actions.ndim == 3 else None
    if horizon is not None and horizon < 1:
        raise UserError(f"horizon is {horizon}; expected at least 1")
    if horizon is not None and count is not None and horizon != count:
        raise UserError(f"horizon is {horizon}, but there are {count} actions a row; give one action a future frame")
    return horizon or count or DEFAULT_HORIZON
