"""Batches of tokens for a transformer: from clips through the tokenizer as they come, or from tokens kept on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from ivideogpt.core.episode import Clip
from ivideogpt.core.errors import UserError
from ivideogpt.data.clip_order import ClipCursor
from ivideogpt.data.loader import ClipLoader
from ivideogpt.data.tokens import TokenClip, TokenLoader
from ivideogpt.worldmodel.world_model import WorldModel


class TokenBatch(NamedTuple):
    """Batch of tokens that a transformer trains on, on its device.

    Attributes:
        ids: int64 ``[b length]``, as `WorldModel.tokenize` gives them.
        actions: float32 ``[b p+f a]`` in model units, past ones first, or None.
        rewards: float32 ``[b f]``, or None.
        terminated: bool ``[b f]``, or None.
    """

    ids: Tensor
    actions: Tensor | None
    rewards: Tensor | None
    terminated: Tensor | None = None


class TokenBatches(Protocol):
    """Endless batches with a position, from which an iteration continues."""

    def __iter__(self) -> Iterator[TokenBatch]:
        """Iterate from the next batch on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the batches."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        ...


LoaderT = TypeVar("LoaderT", bound=ClipCursor)


class _FromLoader(Generic[LoaderT]):
    """Batches that stand where their loader stands."""

    loader: LoaderT

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the loader."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self.loader.load_state_dict(state)


class LiveTokens(_FromLoader[ClipLoader]):
    """Clips, tokenised when they are drawn."""

    def __init__(self, model: WorldModel, loader: ClipLoader) -> None:
        """Check that the clips fit the model.

        Raises:
            UserError: the clips lack what it needs, or have other actions than it.
        """
        self.model, self.loader = model, loader
        _check_actions(model, loader.mixture.action_width)
        if loader.mixture.spec.context_frames != model.context_frames:
            raise UserError(
                f"clips have {loader.mixture.spec.context_frames} context frames, the model {model.context_frames}"
            )

    def __iter__(self) -> Iterator[TokenBatch]:
        """Batches from where the loader stands."""
        return (self._tokens(clip) for clip in self.loader)

    def batch(self, numbers: Sequence[int]) -> TokenBatch:
        """Return the clips of these numbers as a batch."""
        return self._tokens(self.loader.clips(numbers))

    def _tokens(self, clip: Clip) -> TokenBatch:
        with torch.inference_mode():
            ids = self.model.tokenize(clip.frames.to(self.model.device))
        return TokenBatch(ids.clone(), *clip_transitions(self.model, clip))  # a clone has left inference mode


class StoredTokens(_FromLoader[TokenLoader]):
    """Clips that were tokenised before."""

    def __init__(self, model: WorldModel, loader: TokenLoader) -> None:
        """Check that the tokens are those of the model's tokenizer.

        Raises:
            UserError: another tokenizer made them, or the clips have other actions or another context than the model.
        """
        self.model, self.loader = model, loader
        facts = loader.store.facts
        if facts.tokenizer != (mine := model.tokenizer.fingerprint()):
            raise UserError(
                f"{loader.store.folder} holds the tokens of another tokenizer ({facts.tokenizer[:12]}, this one is "
                f"{mine[:12]}); tokenize again with this one"
            )
        if facts.context_frames != (coded := model.context_frames - model.layout.lead_frames):
            raise UserError(f"{loader.store.folder} has {facts.context_frames} context frames, the model {coded}")
        if facts.goal_first != model.config.goal_conditioned:
            raise UserError(
                f"{loader.store.folder} was made {'with' if facts.goal_first else 'without'} goal_first, which this "
                "model is not trained on; tokenize again"
            )
        _check_actions(model, facts.action_width)

    def __iter__(self) -> Iterator[TokenBatch]:
        """Batches from where the loader stands."""
        for clip in self.loader:
            ids = self.model.layout.join(clip.context, clip.dynamics).to(self.model.device)
            yield TokenBatch(ids, *clip_transitions(self.model, clip))


def _check_actions(model: WorldModel, width: int) -> None:
    if model.action_dim not in (0, width):
        raise UserError(f"the clips have actions of {width} numbers; this model needs {model.action_dim}")


def clip_transitions(model: WorldModel, clip: Clip | TokenClip) -> tuple[Tensor | None, Tensor | None]:
    """Return actions in model units, past ones first, and rewards of the future frames; what is no action is zero."""
    first, actions, rewards = model.context_frames - 1, None, None
    if model.action_dim:
        assert clip.actions is not None and clip.action_mask is not None
        used = slice(first - model.past_actions, -1)
        mask = clip.action_mask[:, used].to(model.device)
        actions = model.normalize_actions(clip.actions[:, used].to(model.device)).where(mask, 0.0)
    if clip.rewards is not None:
        rewards = clip.rewards[:, first:-1].to(model.device)
    return actions, rewards
