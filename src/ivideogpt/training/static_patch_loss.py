"""What does not change keeps its vector: else codes carry news of the whole picture, and nobody can guess them."""

from __future__ import annotations

import math

import torch
from einops import reduce
from torch import Tensor

#: A pixel that moves by less has not changed.
TOLERANCE = 4 / 255


def unrest(vectors: Tensor, frames: Tensor) -> Tensor:
    """Return the movement of the vectors of unchanged patches from one frame to the next.

    Patches with a vector of zeros (background) do not count, nor does a sequence in which every patch changes.

    Args:
        vectors: ``[b t n d]`` before they become codes, of n patches on a square grid.
        frames: ``[b t c h w]`` in [0, 1], that they were made of, in the order of their numbers.

    Returns:
        Scalar float32: the mean squared move, over twice the variance of all vectors (no gradient of that): 0 where
        nothing moves, 1 where a patch knows nothing of the one before it.
    """
    assert vectors.shape[:2] == frames.shape[:2]
    vectors, side = vectors.float(), math.isqrt(vectors.shape[2])
    changed = (frames[:, 1:] - frames[:, :-1]).abs() > TOLERANCE
    counts = 1 - reduce(changed.float(), "b t c (h p) (w q) -> b t (h w) 1", "max", h=side, w=side)
    counts = counts * vectors[:, 1:].detach().ne(0).any(dim=-1, keepdim=True)
    moved = (vectors[:, 1:] - vectors[:, :-1]).square() * counts
    spread = vectors.detach().var(dim=(0, 1, 2), correction=0).sum()
    return moved.sum() / (2 * spread * counts.sum()).clamp(min=torch.finfo(torch.float32).tiny)
