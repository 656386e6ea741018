"""Quantisation: the nearest code of a codebook, training of a codebook by moving averages, and finite scalars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class VectorQuantizer(nn.Module):
    """A codebook.

    Source: diffusers VectorQuantizer as used by thuml/iVideoGPT (``legacy=False``, beta 1); same.
    """

    def __init__(self, num_codes: int, dim: int) -> None:
        """Create ``num_codes`` codes of width ``dim``."""
        super().__init__()
        self.embedding = nn.Embedding(num_codes, dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / num_codes, 1.0 / num_codes)

    def encode(self, z: Tensor) -> Tensor:
        """Return the nearest codes int64 ``[...]`` of vectors ``[... dim]``, the first of equals, in float32."""
        flat = z.detach().reshape(-1, z.shape[-1]).float()
        return torch.cdist(flat, self.embedding.weight.float()).argmin(dim=1).reshape(z.shape[:-1])

    def decode(self, codes: Tensor) -> Tensor:
        """Return the vectors ``[... dim]`` of codes int64 ``[...]``."""
        return self.embedding(codes)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise for training.

        Args:
            z: ``[... dim]``.

        Returns:
            The quantised vectors with a straight-through gradient, the loss (codebook and commitment, mean squared)
            and the codes int64 ``[...]``.
        """
        codes = self.encode(z)
        quantized = self.decode(codes)
        loss = F.mse_loss(quantized.detach(), z) + F.mse_loss(quantized, z.detach())
        return z + (quantized - z).detach(), loss, codes


class FiniteScalarQuantizer(nn.Module):
    """A fixed codebook: each number of a vector is rounded to one of a few levels. It has no weights.

    A number is squashed by tanh and rounded to one of L levels, -1 to 1 (for an even L: -1 to 1 - 2 / L). Code
    numbers count the levels of the first number fastest.

    Source: Mentzer et al. 2023 (arXiv 2309.15505), appendix A.1; same, with its margin of .001 and in float32.
    """

    MARGIN = 1e-3
    levels: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        """Create the codebook of ``levels``, one number for each number of a vector."""
        super().__init__()
        basis = [math.prod(levels[:index]) for index in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def _bounded(self, z: Tensor) -> Tensor:
        """Return numbers ``[... d]`` between the lowest and the highest level, -L // 2 to (L - 1) // 2."""
        half = (self.levels - 1) * (1 + self.MARGIN) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return (z.float() + (offset / half).atanh()).tanh() * half - offset

    def encode(self, z: Tensor) -> Tensor:
        """Return the codes int64 ``[...]`` of vectors ``[... d]``."""
        numbers = self._bounded(z.detach()).round().long() + self.levels // 2
        return (numbers * self.basis).sum(dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the vectors float32 ``[... d]`` of codes int64 ``[...]``."""
        half = self.levels // 2
        return (codes[..., None] // self.basis % self.levels - half) / half

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise for training; see `VectorQuantizer.forward`. The gradient passes the rounding; the loss is 0."""
        bounded = self._bounded(z)
        rounded = bounded + (bounded.round() - bounded).detach()
        return (rounded / (self.levels // 2)).to(z.dtype), z.new_zeros(()), self.encode(z)


class CodebookAverage(nn.Module):
    """Codes as running means of the vectors that they quantise; codes that are not used restart.

    It replaces the gradient of the codebook while a tokenizer is trained; its buffers are training state.

    Source: van den Oord et al. 2017, appendix A.1; restarts as in Dhariwal et al. 2020 (Jukebox), section 3.1.
    """

    counts: Tensor
    sums: Tensor

    def __init__(
        self,
        quantizer: VectorQuantizer,
        decay: float = 0.99,
        dead_below: float = 0.05,
        total: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Start at the present codes.

        Args:
            quantizer: holds the codes.
            decay: of the running mean.
            dead_below: a code with fewer (averaged) uses a step than this is set to a random current vector.
            total: sums a tensor over all processes that train together; None: a single process.
        """
        super().__init__()
        self.decay, self.dead_below, self._total = decay, dead_below, total
        self.register_buffer("counts", torch.ones(len(quantizer.embedding.weight)))
        self.register_buffer("sums", quantizer.embedding.weight.detach().clone())

    @torch.no_grad()
    def start(self, quantizer: VectorQuantizer, vectors: Tensor, generator: torch.Generator, rounds: int = 10) -> None:
        """Initialise the codes by k-means on ``vectors`` ``[n dim]``, from distinct random ones."""
        vectors = vectors.float()
        weight = quantizer.embedding.weight
        # Equal vectors (an empty background) would take most codes, so near-copies count once.
        distinct = torch.unique((vectors * 16).round() / 16, dim=0)
        pool = distinct if len(distinct) >= len(weight) else vectors
        weight.copy_(pool[torch.randperm(len(pool), generator=generator)[: len(weight)].to(pool.device)])
        for _ in range(rounds):
            codes = quantizer.encode(pool)
            counts = torch.bincount(codes, minlength=len(weight)).to(weight)
            sums = torch.zeros_like(weight).index_add_(0, codes, pool)
            weight.copy_(torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], weight))
        self.counts.fill_(1.0)
        self.sums.copy_(weight)

    @torch.no_grad()
    def update(self, quantizer: VectorQuantizer, vectors: Tensor, codes: Tensor, generator: torch.Generator) -> int:
        """Update by ``vectors`` ``[... dim]`` of ``codes`` ``[...]``; return the number of codes that restarted."""
        vectors = vectors.detach().reshape(-1, vectors.shape[-1]).float()
        weight, codes = quantizer.embedding.weight, codes.reshape(-1)
        counts = torch.bincount(codes, minlength=len(weight)).to(weight)
        sums = torch.zeros_like(weight).index_add_(0, codes, vectors)
        if self._total is not None:
            counts, sums = self._total(counts), self._total(sums)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        weight.copy_(self.sums / self.counts.clamp(min=1e-6)[:, None])
        dead = (self.counts < self.dead_below).nonzero().flatten()
        if len(dead):
            # Restart at vectors with the largest error.
            error = (vectors - weight[codes]).pow(2).sum(dim=1)
            worst = error.topk(min(len(error), 4 * len(dead))).indices
            restarts = worst[torch.randperm(len(worst), generator=generator)[: len(dead)].to(worst.device)]
            dead = dead[: len(restarts)]
            weight[dead] = vectors[restarts]
            self.counts[dead] = 1.0
            self.sums[dead] = vectors[restarts]
        return len(dead)
