"""Accuracy of the transformer on the true tokens, and the repetition of imagined tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ivideogpt.worldmodel.world_model import WorldModel


@dataclass(frozen=True)
class TokenScores:
    """Scores of n clips under teacher forcing.

    Attributes:
        loss: float32 ``[n]``: cross-entropy of a token in nats, separators included; exp of its mean is the perplexity.
        accuracy: float32 ``[n]``: share of true dynamics tokens that are the likeliest, 0 to 1.
        frames: scored future frames: as many as fit into one segment.
    """

    loss: Tensor
    accuracy: Tensor
    frames: int

    @classmethod
    def joined(cls, parts: Sequence[TokenScores]) -> TokenScores:
        """Join the scores of batches of clips."""
        loss, accuracy = (torch.cat([getattr(part, name) for part in parts]) for name in ("loss", "accuracy"))
        return cls(loss, accuracy, parts[0].frames)


@torch.inference_mode()
def score_tokens(model: WorldModel, ids: Tensor, actions: Tensor | None) -> TokenScores:
    """Score the true tokens of some clips, one clip at a time.

    Args:
        model: the world model.
        ids: int64 ``[n length]``, as `WorldModel.tokenize` gives them.
        actions: ``[n p+f a]`` in model units, past ones first, or None.

    Source: thuml/iVideoGPT train_gpt.py, evaluation: loss and perplexity over dynamics tokens and separators; same.
    """
    layout, count = model.layout, model.context_frames
    frames = min(layout.future_frames(count, ids.shape[1]), model.segment_limit)
    ids = ids[:, : layout.length(count, frames)]
    losses = [
        model.dynamics.losses(
            row[None], None if actions is None else actions[index : index + 1, : model.past_actions + frames]
        )
        for index, row in enumerate(ids)
    ]
    return TokenScores(
        torch.stack([x.tokens for x in losses]).float().cpu(),
        torch.stack([x.accuracy for x in losses]).float().cpu(),
        frames,
    )


def repetition(ids: Tensor) -> Tensor:
    """Return the share of tokens that stood at the same position of the frame before, 0 to 1.

    Args:
        ids: int64 ``[... f m]`` of future frames.

    Returns:
        float32 ``[...]``, over the second to the last frame; NaN for a single frame.
    """
    return (ids[..., 1:, :] == ids[..., :-1, :]).float().mean(dim=(-2, -1))


def frozen_frames(ids: Tensor) -> Tensor:
    """Return the share of frames whose tokens are all those of the frame before, 0 to 1; see `repetition`."""
    return (ids[..., 1:, :] == ids[..., :-1, :]).all(dim=-1).float().mean(dim=-1)
