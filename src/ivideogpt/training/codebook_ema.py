"""Codes that follow the running means of what they stand for, while a tokenizer is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ivideogpt.core.distributed import Ranks
from ivideogpt.models.quantizer import CodebookAverage, VectorQuantizer
from ivideogpt.models.tokenizer import CompressiveTokenizer, Reconstruction


class Codebooks(nn.Module):
    """The running means of all codebooks of a tokenizer."""

    def __init__(self, tokenizer: CompressiveTokenizer, decay: float, ranks: Ranks) -> None:
        """Takes the codebooks out of the optimizer's hands."""
        super().__init__()
        self.ranks = ranks
        self.conditional = tokenizer.config.conditional
        for quantizer in self._quantizers(tokenizer):
            quantizer.embedding.weight.requires_grad_(False)
        self.averages = nn.ModuleList(CodebookAverage(q, decay, total=ranks.sum) for q in self._quantizers(tokenizer))

    @torch.no_grad()
    def start(self, tokenizer: CompressiveTokenizer, batches: list[Tensor], generator: torch.Generator) -> None:
        """Places all codes by k-means on the vectors of some ``batches`` of frames ``[b t c h w]``."""
        found = [self._vectors(tokenizer(frames, quantized=False)) for frames in batches]
        for index, quantizer in enumerate(self._quantizers(tokenizer)):
            vectors = torch.cat([vectors[index][0].flatten(0, -2) for vectors in found])
            self._codebooks[index].start(quantizer, vectors, generator)
        self._agree(tokenizer)

    def update(self, tokenizer: CompressiveTokenizer, found: Reconstruction, generator: torch.Generator) -> int:
        """Follows the vectors of one batch, all of its parts together; returns how many codes restarted."""
        pairs = zip(self._codebooks, self._quantizers(tokenizer), self._vectors(found), strict=True)
        restarted = sum(average.update(q, vectors, codes, generator) for average, q, (vectors, codes) in pairs)
        if restarted:
            self._agree(tokenizer)
        return restarted

    def _agree(self, tokenizer: CompressiveTokenizer) -> None:
        """Codes that were placed at random are those of the first rank."""
        for average, quantizer in zip(self._codebooks, self._quantizers(tokenizer), strict=True):
            self.ranks.copy_from_first([quantizer.embedding.weight, average.counts, average.sums])

    @property
    def _codebooks(self) -> list[CodebookAverage]:
        return [average for average in self.averages if isinstance(average, CodebookAverage)]

    def _quantizers(self, tokenizer: CompressiveTokenizer) -> list[VectorQuantizer]:
        return [tokenizer.quantize, tokenizer.dynamics_quantize] if self.conditional else [tokenizer.quantize]

    def _vectors(self, found: Reconstruction) -> list[tuple[Tensor, Tensor]]:
        context = (found.context_vectors, found.context_codes)
        dynamics = (found.dynamics_vectors, found.dynamics_codes)
        if self.conditional:
            return [context, dynamics]
        return [tuple(torch.cat(pair, dim=1) for pair in zip(context, dynamics, strict=True))]  # type: ignore[misc]
