"""What the transformer makes of the true tokens, and how often imagined tokens only repeat the frame before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ivideogpt.worldmodel.world_model import WorldModel


@dataclass(frozen=True)
class TokenScores:
    """Of n clips, the true tokens before each one given (teacher forcing).

    Attributes:
        loss: float32 ``[n]``: cross-entropy of a token in nats, separators included; exp of its mean is the perplexity.
        accuracy: float32 ``[n]``: share of dynamics tokens that were the likeliest, 0 to 1.
        frames: future frames that were scored: as many as fit into one segment.
    """

    loss: Tensor
    accuracy: Tensor
    frames: int


@torch.inference_mode()
def score_tokens(model: WorldModel, ids: Tensor, actions: Tensor | None) -> TokenScores:
    """Scores the true tokens of some clips, one clip at a time.

    Args:
        model: the world model.
        ids: int64 ``[n length]``, as `CompressiveTokenizer.tokenize` gives them.
        actions: ``[n f a]`` in model units, or None.

    Source: thuml/iVideoGPT train_gpt.py, evaluation: loss and perplexity over dynamics tokens and separators; same.
    """
    layout, count = model.layout, model.context_frames
    frames = min(layout.future_frames(count, ids.shape[1]), model.segment_limit)
    ids = ids[:, : layout.length(count, frames)]
    found = [
        model.dynamics.losses(row[None], None if actions is None else actions[index : index + 1, :frames])
        for index, row in enumerate(ids)
    ]
    return TokenScores(
        torch.stack([losses.tokens for losses in found]).float().cpu(),
        torch.stack([losses.accuracy for losses in found]).float().cpu(),
        frames,
    )


def repetition(ids: Tensor) -> Tensor:
    """The share of tokens that stood in the same place of the frame before, 0 to 1.

    Args:
        ids: int64 ``[... f m]`` of future frames.

    Returns:
        float32 ``[...]``, over the second to the last frame; NaN for a single frame.
    """
    return (ids[..., 1:, :] == ids[..., :-1, :]).float().mean(dim=(-2, -1))


def frozen_frames(ids: Tensor) -> Tensor:
    """The share of frames whose tokens are all those of the frame before, 0 to 1; as `repetition`."""
    return (ids[..., 1:, :] == ids[..., :-1, :]).all(dim=-1).float().mean(dim=-1)
