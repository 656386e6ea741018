"""Prompts of post-training, and the sampling of a group of futures for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from einops import rearrange, repeat
from torch import Tensor

from ivideogpt.core.errors import UserError
from ivideogpt.data.loader import ClipLoader
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.models.dynamics import Dynamics
from ivideogpt.posttrain.rewards import Rollouts
from ivideogpt.training.token_batches import clip_transitions
from ivideogpt.worldmodel.world_model import WorldModel


class Prompts(NamedTuple):
    """Recorded clips: the context is the prompt, the frames after it are the truth.

    Attributes:
        frames: float32 ``[p t c h w]`` in [0, 1], context first.
        actions: float32 ``[p k+f a]`` in model units, or None; the k actions between context frames first, where the
            model reads them.
    """

    frames: Tensor
    actions: Tensor | None

    def other_actions(self) -> Tensor:
        """Return for each prompt the actions of another one, of the same shape.

        Raises:
            UserError: there is one prompt.
        """
        assert self.actions is not None
        if len(self.actions) < 2:
            raise UserError(
                "the reward following compares the actions of two clips, and there is one; give 2 or more prompts to "
                "each process, and 2 or more held-out clips"
            )
        return self.actions.roll(1, dims=0)


class PromptBatches(Protocol):
    """Endless batches of prompts with a position, from which an iteration continues."""

    def __iter__(self) -> Iterator[Prompts]:
        """Iterate from the next batch on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a position."""
        ...


class ClipPrompts:
    """Prompts from the clips of a loader."""

    def __init__(self, model: WorldModel, loader: ClipLoader) -> None:
        """Check that the clips fit the model.

        Raises:
            UserError: the clips have other actions or another context than the model.
        """
        self.model, self.loader = model, loader
        spec, width = loader.mixture.spec, loader.mixture.action_width
        if model.action_dim not in (0, width):
            raise UserError(f"the clips have actions of {width} numbers; this model needs {model.action_dim}")
        if spec.context_frames != model.context_frames:
            raise UserError(f"clips have {spec.context_frames} context frames, the model {model.context_frames}")

    def __iter__(self) -> Iterator[Prompts]:
        """Iterate from the position of the loader on."""
        for clip in self.loader:
            actions, _ = clip_transitions(self.model, clip)
            yield Prompts(clip.frames.to(self.model.device), actions)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the loader."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position of the loader."""
        self.loader.load_state_dict(state)


class Sample(NamedTuple):
    """Futures of p prompts, g of each, as the update needs them; b is p * g.

    Attributes:
        context: int64 ``[p length]``: its tokens.
        actions: ``[p k+f a]`` in model units, or None; see `Prompts`.
        ids: int64 ``[b f m]`` of the full vocabulary.
        log_probs: float32 ``[b f m]``, captured while sampling.
        entropies: float32 ``[b f m]`` in nats.
    """

    context: Tensor
    actions: Tensor | None
    ids: Tensor
    log_probs: Tensor
    entropies: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Sample]) -> Sample:
        """Join the prompts of several samples."""
        actions = [part.actions for part in parts if part.actions is not None]
        return cls(
            torch.cat([part.context for part in parts]),
            torch.cat(actions) if actions else None,
            torch.cat([part.ids for part in parts]),
            torch.cat([part.log_probs for part in parts]),
            torch.cat([part.entropies for part in parts]),
        )


@dataclass(frozen=True)
class FutureSampler:
    """Sample the futures of prompts; those of a group share one encoded context and one prefill.

    Attributes:
        model: the world model.
        sampling: the sampling rule.
        group: futures g of each prompt.
        rows_at_once: futures imagined together, at least one group; bounds the memory.
    """

    model: WorldModel
    sampling: Sampling
    group: int
    rows_at_once: int

    @torch.no_grad()
    def __call__(self, prompts: Prompts, seeds: Sequence[int]) -> Iterator[tuple[Sample, Rollouts]]:
        """Yield some prompts after the others, with their futures decoded.

        Args:
            prompts: the clips; the futures are as long as theirs.
            seeds: one a prompt: a prompt draws the same in every batch.
        """
        together = max(self.rows_at_once // self.group, 1)
        for start in range(0, len(prompts.frames), together):
            rows = slice(start, start + together)
            actions = None if prompts.actions is None else prompts.actions[rows]
            yield self._sample(prompts.frames[rows], actions, seeds[rows])

    def _sample(self, frames: Tensor, actions: Tensor | None, seeds: Sequence[int]) -> tuple[Sample, Rollouts]:
        model, count = self.model, self.model.context_frames
        context, real = frames[:, :count], frames[:, count:]
        horizon = real.shape[1]

        # 1) Encode and read each context once, and fork it into the group.
        past, applied = model.split_actions(actions)
        session = model.session(context, self.sampling, list(seeds), past_actions=past, reanchor_every=horizon)
        session = session.fork(self.group)

        # 2) Sample the tokens of all futures; the log-probabilities come with them.
        imagined = session.rollout(None if applied is None else repeat_rows(applied, self.group), horizon)

        # 3) Encode the recorded future, and decode the imagined one.
        ids, layout = model.tokenize(frames.to(model.dtype)), model.layout
        codes, future = layout.split(ids, count)
        first = layout.dynamics_ids.start
        previous = future[:, layout.lead_frames - 1] if layout.lead_frames else codes[:, -1]
        rollouts = Rollouts(
            imagined=imagined.frames,
            real=real,
            ids=imagined.ids,
            real_ids=future[:, layout.lead_frames :] + first,
            previous_ids=previous + first if layout.lead_frames or model.dynamics.shared_codebook else None,
        )
        return Sample(
            ids[:, : layout.context_length(count)], actions, imagined.ids, imagined.log_probs, imagined.entropies
        ), rollouts


@torch.no_grad()
def score_sample(dynamics: Dynamics, sample: Sample, temperature: float, rows_at_once: int) -> Tensor:
    """Return the log-probability float32 ``[b f m]`` of sampled tokens under a network, in one pass each."""
    group = len(sample.ids) // len(sample.context)
    parts = []
    for rows in torch.arange(len(sample.ids)).split(rows_at_once):
        prompts = torch.div(rows, group, rounding_mode="floor").to(sample.ids.device)
        actions = None if sample.actions is None else sample.actions[prompts]
        ids = sample.ids[rows.to(sample.ids.device)]
        parts.append(dynamics.log_prob(sample.context[prompts], ids, actions, temperature=temperature).float())
    return torch.cat(parts)


def following_reward(
    dynamics: Dynamics, sample: Sample, others: Tensor, log_probs: Tensor, temperature: float, rows_at_once: int
) -> Tensor:
    """Return by how much their own actions make tokens likelier than other actions, ``[b f]`` in nats a token.

    Args:
        dynamics: scores the tokens: the start model, which the policy cannot change.
        sample: the tokens.
        others: ``[p k+f a]``: actions of other prompts.
        log_probs: ``[b f m]`` of the tokens by ``dynamics`` under their own actions.
        temperature: of the scores.
        rows_at_once: rows scored together.
    """
    under_others = score_sample(dynamics, sample._replace(actions=others), temperature, rows_at_once)
    return (log_probs - under_others).mean(dim=-1)


def repeat_rows(x: Tensor, group: int) -> Tensor:
    """Repeat each row of ``[p ...]`` for its group: ``[p*g ...]``."""
    return repeat(x, "p ... -> (p g) ...", g=group)


def split_groups(x: Tensor, group: int) -> Tensor:
    """Split the rows of ``[p*g ...]`` into groups: ``[p g ...]``."""
    return rearrange(x, "(p g) ... -> p g ...", g=group)
