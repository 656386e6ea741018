"""Codebooks of a tokenizer in training: running means, usage, and freezing."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ivideogpt.core.distributed import Ranks
from ivideogpt.models.quantizer import CodebookAverage, VectorQuantizer
from ivideogpt.models.tokenizer import CompressiveTokenizer, Reconstruction

CodeKind = Literal["context", "dynamics"]
KINDS: tuple[CodeKind, ...] = ("context", "dynamics")


class CodebookAverages(nn.Module):
    """Running means of the vectors of all codebooks of a tokenizer, which the codes follow during training."""

    def __init__(self, tokenizer: CompressiveTokenizer, decay: float, ranks: Ranks) -> None:
        """Take the codebooks from the optimizer."""
        super().__init__()
        self.ranks = ranks
        self.conditional = tokenizer.config.conditional
        for quantizer in self._quantizers(tokenizer):
            quantizer.embedding.weight.requires_grad_(False)
        self.averages = nn.ModuleList(CodebookAverage(q, decay, total=ranks.sum) for q in self._quantizers(tokenizer))

    @torch.no_grad()
    def start(self, tokenizer: CompressiveTokenizer, batches: list[Tensor], generator: torch.Generator) -> None:
        """Place all codes by k-means on the vectors of ``batches`` of frames ``[b t c h w]``."""
        pairs = [self._vectors(tokenizer(frames, quantized=False)) for frames in batches]
        for index, quantizer in enumerate(self._quantizers(tokenizer)):
            vectors = torch.cat([kinds[index][0].flatten(0, -2) for kinds in pairs])
            self._codebooks[index].start(quantizer, vectors, generator)
        self._agree(tokenizer)

    def update(
        self, tokenizer: CompressiveTokenizer, reconstruction: Reconstruction, generator: torch.Generator
    ) -> int:
        """Follow the vectors of a whole batch; return the number of codes that restarted."""
        pairs = zip(self._codebooks, self._quantizers(tokenizer), self._vectors(reconstruction), strict=True)
        restarted = sum(average.update(q, vectors, codes, generator) for average, q, (vectors, codes) in pairs)
        if restarted:
            self._agree(tokenizer)
        return restarted

    def _agree(self, tokenizer: CompressiveTokenizer) -> None:
        """Copy the codes of the first rank, which were placed at random, to all ranks."""
        for average, quantizer in zip(self._codebooks, self._quantizers(tokenizer), strict=True):
            self.ranks.copy_from_first([quantizer.embedding.weight, average.counts, average.sums])

    @property
    def _codebooks(self) -> list[CodebookAverage]:
        return [average for average in self.averages if isinstance(average, CodebookAverage)]

    def _quantizers(self, tokenizer: CompressiveTokenizer) -> list[VectorQuantizer]:
        both = [tokenizer.quantize, tokenizer.dynamics_quantize] if self.conditional else [tokenizer.quantize]
        # fixed codes have nothing to average
        return [quantizer for quantizer in both if isinstance(quantizer, VectorQuantizer)]

    def _vectors(self, reconstruction: Reconstruction) -> list[tuple[Tensor, Tensor]]:
        context = (reconstruction.context_vectors, reconstruction.context_codes)
        dynamics = (reconstruction.dynamics_vectors, reconstruction.dynamics_codes)
        if self.conditional:
            return [context, dynamics]
        return [tuple(torch.cat(pair, dim=1) for pair in zip(context, dynamics, strict=True))]  # type: ignore[misc]


class CodebookUsage(nn.Module):
    """Counts of the context and dynamics codes since the last `reset`.

    Its buffers are training state and are saved with a run. Counting never waits for the device; `figures` does.
    """

    context: Tensor
    dynamics: Tensor

    def __init__(self, context_codes: int, dynamics_codes: int) -> None:
        """Make empty counts of two codebooks; a tokenizer with a shared codebook gives its size twice."""
        super().__init__()
        self.register_buffer("context", torch.zeros(context_codes, dtype=torch.int64))
        self.register_buffer("dynamics", torch.zeros(dynamics_codes, dtype=torch.int64))

    @torch.no_grad()
    def add(self, codes: Tensor, kind: CodeKind) -> None:
        """Count ``codes``, int64 of any shape, numbered from 0 within the codebook of ``kind``."""
        counts, flat = getattr(self, kind), codes.reshape(-1)
        counts.index_add_(0, flat, torch.ones_like(flat))

    def figures(self) -> dict[str, float]:
        """Return the usage of the codes since the last reset; a kind that was not counted is left out.

        Returns:
            ``context_usage``, ``dynamics_usage``: share of the codebook that was used, above 0 to 1.
            ``context_perplexity``, ``dynamics_perplexity``: exp of the entropy of the codes: 1 where all are the same,
            the size of the codebook where all are equally frequent.
        """
        figures: dict[str, float] = {}
        for kind in KINDS:
            counts = getattr(self, kind).float()
            if counts.any():
                share = counts / counts.sum()
                figures[f"{kind}_usage"] = (counts > 0).float().mean().item()
                figures[f"{kind}_perplexity"] = torch.special.entr(share).sum().exp().item()
        return figures

    def reset(self) -> None:
        """Set the counts to 0."""
        self.context.zero_()
        self.dynamics.zero_()


def freeze_codebooks(tokenizer: CompressiveTokenizer) -> None:
    """Exclude the codes from training, so that a transformer's ids keep their meaning.

    Source: official ``selected_params``. Differs: their gradients do not count when gradients are clipped either.
    """
    tokenizer.quantize.requires_grad_(False)
    if tokenizer.config.conditional:
        tokenizer.dynamics_quantize.requires_grad_(False)
