"""How much of its codebooks a tokenizer uses, the first thing to look at when a training goes wrong; freezing them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ivideogpt.models.tokenizer import CompressiveTokenizer

CodeKind = Literal["context", "dynamics"]
KINDS: tuple[CodeKind, ...] = ("context", "dynamics")


class CodebookUsage(nn.Module):
    """Counts codes, context and dynamics apart, since the last `reset`.

    Its buffers are training state: saved with a run, a window of updates goes on where it stopped. Counting never
    waits for the device; `figures` does.
    """

    context: Tensor
    dynamics: Tensor

    def __init__(self, context_codes: int, dynamics_codes: int) -> None:
        """Sizes of the two codebooks; a tokenizer with one for both gives its size twice."""
        super().__init__()
        self.register_buffer("context", torch.zeros(context_codes, dtype=torch.int64))
        self.register_buffer("dynamics", torch.zeros(dynamics_codes, dtype=torch.int64))

    @torch.no_grad()
    def add(self, codes: Tensor, kind: CodeKind) -> None:
        """Counts ``codes``, int64 of any shape, numbered from 0 within the codebook of ``kind``."""
        counts, flat = getattr(self, kind), codes.reshape(-1)
        counts.index_add_(0, flat, torch.ones_like(flat))

    def figures(self) -> dict[str, float]:
        """Return the usage of the codes since the last reset; a kind that was not counted is left out.

        Returns:
            ``context_usage``, ``dynamics_usage``: share of the codebook that was used, above 0 to 1.
            ``context_perplexity``, ``dynamics_perplexity``: exp of the entropy of the codes: 1 where all are the same,
            the size of the codebook where all are equally frequent.
        """
        found: dict[str, float] = {}
        for kind in KINDS:
            counts = getattr(self, kind).float()
            if counts.any():
                share = counts / counts.sum()
                found[f"{kind}_usage"] = (counts > 0).float().mean().item()
                found[f"{kind}_perplexity"] = torch.special.entr(share).sum().exp().item()
        return found

    def reset(self) -> None:
        """Starts a new window."""
        self.context.zero_()
        self.dynamics.zero_()


def freeze_codebooks(tokenizer: CompressiveTokenizer) -> None:
    """Leaves the codes as they are while a tokenizer is fine-tuned, so that a transformer's ids keep their meaning.

    Source: official ``selected_params``. Differs: their gradients do not count when gradients are clipped either.
    """
    tokenizer.quantize.embedding.weight.requires_grad_(False)
    if tokenizer.config.conditional:
        tokenizer.dynamics_quantize.embedding.weight.requires_grad_(False)
