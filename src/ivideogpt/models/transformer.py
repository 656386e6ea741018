"""LLaMA-style decoder over embeddings, with an explicit static cache of keys and values.

Source: Touvron et al. 2023 (LLaMA) in the arrangement of Hugging Face's ``LlamaForCausalLM``; same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ivideogpt.core.errors import UserError
from ivideogpt.models.cpu_linear import Projection
from ivideogpt.models.kv_cache import KVCache


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of a transformer. The defaults are the official small one.

    Attributes:
        vocab_size: number of ids.
        hidden_size: width d.
        intermediate_size: width of the gated feed-forward layer.
        num_layers: depth.
        num_heads: attention heads; they divide ``hidden_size``.
        max_positions: longest sequence.
        rms_norm_eps: epsilon of the norms.
        rope_theta: base of the rotary position embedding.
        attention_dropout: while training.
    """

    vocab_size: int = 16386
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    max_positions: int = 1024
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        """Raises UserError where the heads do not divide the width, or the dropout is no share."""
        if self.hidden_size % (2 * self.num_heads):
            raise UserError(f"hidden_size {self.hidden_size} is not an even multiple of num_heads {self.num_heads}")
        if not 0 <= self.attention_dropout < 1:
            raise UserError(f"attention_dropout is {self.attention_dropout}; expected 0 to below 1")


class RMSNorm(nn.Module):
    """Divides by the root mean square over the width, in float32."""

    def __init__(self, width: int, eps: float) -> None:
        """One gain for each channel."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``[... d]`` to the same shape and dtype."""
        full = x.float()
        # Five plain operations: the library's rms_norm takes twice as long for one position on a CPU.
        full = full * torch.rsqrt(full.square().mean(dim=-1, keepdim=True) + self.eps)
        return full.to(x.dtype) * self.weight


class Attention(nn.Module):
    """Causal self-attention with rotary positions; one matrix makes queries, keys and values."""

    def __init__(self, config: TransformerConfig) -> None:
        """No biases."""
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.attention_dropout
        self.qkv = Projection(config.hidden_size, 3 * config.hidden_size)
        self.out = Projection(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        """Attends to itself and to what the cache holds.

        Args:
            x: ``[b n d]``.
            rope: cosines and sines ``[2 n head_dim]`` of the positions.
            mask: bool ``[n total]``, or None: causal without a cache, everything with one.
            cache: holds earlier positions, or None.
            layer: which part of the cache is this layer's.
        """
        # Views, not einops: this runs once a token and layer, and a pattern costs as much as a small product.
        rows, count, width = x.shape
        qkv = self.qkv(x).view(rows, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys = _rotate(qkv[:2], rope)
        values = qkv[2]
        dropout = self.dropout if self.training else 0.0
        if cache is not None:
            dropped = {"dropout": dropout} if dropout else {}
            y = cache.attend(layer, queries, keys, values, mask, **dropped)
        else:
            y = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, dropout_p=dropout)
        return self.out(y.transpose(1, 2).reshape(rows, count, width))


class FeedForward(nn.Module):
    """SiLU-gated feed-forward layer; one matrix makes gate and value."""

    def __init__(self, config: TransformerConfig) -> None:
        """No biases."""
        super().__init__()
        self.gate_up = Projection(config.hidden_size, 2 * config.intermediate_size)
        self.down = Projection(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """``[b n d]`` to the same shape."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and with a residual."""

    def __init__(self, config: TransformerConfig) -> None:
        """One of ``num_layers``."""
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        """``[b n d]`` to the same shape; arguments as in `Attention`."""
        x = x + self.attention(self.attention_norm(x), rope, mask, cache, layer)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Transformer(nn.Module):
    """Embeddings in, hidden states out; `embed` and `logits` are the two ends.

    Attributes:
        gradient_checkpointing: while training, a layer keeps its input alone and runs again for its gradients.
    """

    rope: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        """Weights drawn with standard deviation .02, as LLaMA's."""
        super().__init__()
        self.config, self.gradient_checkpointing = config, False
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = Projection(config.hidden_size, config.vocab_size)
        self.register_buffer("rope", _rope_table(config), persistent=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """Hidden states after the final norm.

        Args:
            x: embeddings ``[b n d]`` of the next n positions.
            cache: earlier positions; the new ones are added to it.

        Returns:
            ``[b n d]``.

        Raises:
            UserError: more positions than the model, or the cache, has room for.
        """
        start, count = (cache.length if cache else 0), x.shape[1]
        room = min(self.config.max_positions, cache.positions if cache else self.config.max_positions)
        if start + count > room:
            raise UserError(f"position {start + count} lies beyond the {room} that this model has room for")
        mask = None
        if cache is not None and count > 1:
            mask = torch.ones(count, start + count, dtype=torch.bool, device=x.device).tril(start)
        rope = self.rope[:, start : start + count]
        for index, layer in enumerate(self.layers):
            if self.gradient_checkpointing and self.training and cache is None:
                x = checkpoint(layer, x, rope, mask, None, index, use_reentrant=False)
            else:
                x = layer(x, rope, mask, cache, index)
        if cache is not None:
            cache.advance(count)
        return self.norm(x)

    def guess_logits(self, x: Tensor, ids: range) -> Tensor:
        """Scores ``[... len(ids)]`` of vectors ``[... d]`` that skip the layers."""
        return self.logits(self.norm(x), ids)

    def logits(self, hidden: Tensor, ids: range | None = None) -> Tensor:
        """Scores in float32.

        Args:
            hidden: ``[... d]``.
            ids: only these ids of the vocabulary; None: all.

        Returns:
            ``[... v]``, or ``[... len(ids)]``.
        """
        return self.head(hidden, ids).float()


def _rope_table(config: TransformerConfig) -> Tensor:
    head_dim = config.hidden_size // config.num_heads
    frequencies = 1.0 / config.rope_theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(config.max_positions).float(), frequencies).repeat(1, 2)
    return torch.stack([angles.cos(), angles.sin()])


def _rotate(x: Tensor, rope: Tensor) -> Tensor:
    cosine, sine = rope.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine
