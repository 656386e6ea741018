"""LLaMA-style decoder over embeddings, with an explicit static cache of keys and values.

Source: Touvron et al. 2023 (LLaMA) in the arrangement of Hugging Face's ``LlamaForCausalLM``; same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.models.cpu_linear import Projection
from ivideogpt.models.kv_cache import KVCache

#: Longest sequence of any configuration: the table of rotary positions is computed for all of them.
MOST_POSITIONS = 2**20


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of a transformer. The defaults are those of the official small one.

    Attributes:
        vocab_size: number of ids.
        hidden_size: width d.
        intermediate_size: width of the gated feed-forward layer.
        num_layers: depth.
        num_heads: attention heads; ``hidden_size`` is an even multiple of it.
        max_positions: longest sequence.
        rms_norm_eps: epsilon of the norms.
        rope_theta: base of the rotary position embedding.
        attention_dropout: share of the attention that is dropped while training.
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
        """Check the values.

        Raises:
            UserError: the heads do not divide the width, or a number is out of range.
        """
        check_at_least(
            self, vocab_size=1, hidden_size=1, intermediate_size=1, num_layers=1, num_heads=1, max_positions=1
        )
        if self.max_positions > MOST_POSITIONS:
            raise UserError(f"max_positions is {self.max_positions}; expected at most {MOST_POSITIONS}")
        for name in ("rms_norm_eps", "rope_theta"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; expected a finite number above 0")
        if self.hidden_size % (2 * self.num_heads):
            raise UserError(f"hidden_size {self.hidden_size} is not an even multiple of num_heads {self.num_heads}")
        if not 0 <= self.attention_dropout < 1:
            raise UserError(f"attention_dropout is {self.attention_dropout}; expected 0 to below 1")


class RMSNorm(nn.Module):
    """Division by the root mean square over the width, in float32."""

    def __init__(self, width: int, eps: float) -> None:
        """Create one gain for each channel."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[... d]``; same shape and dtype."""
        full = x.float()
        # Five plain operations: the library's rms_norm takes twice as long for one position on a CPU.
        full = full * torch.rsqrt(full.square().mean(dim=-1, keepdim=True) + self.eps)
        return full.to(x.dtype) * self.weight


class Attention(nn.Module):
    """Causal self-attention with rotary positions; one matrix computes queries, keys and values."""

    def __init__(self, config: TransformerConfig) -> None:
        """Create the projections; there are no biases."""
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.attention_dropout
        self.qkv = Projection(config.hidden_size, 3 * config.hidden_size)
        self.out = Projection(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        """Attend to the positions of ``x`` and to those of the cache.

        Args:
            x: ``[b n d]``.
            rope: cosines and sines ``[2 n head_dim]`` of the positions.
            mask: bool ``[n total]``, or None: causal without a cache, everything with one.
            cache: earlier positions, or None.
            layer: number of the layer in the cache.
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
    """SiLU-gated feed-forward layer; one matrix computes gate and value."""

    def __init__(self, config: TransformerConfig) -> None:
        """Create the projections; there are no biases."""
        super().__init__()
        self.gate_up = Projection(config.hidden_size, 2 * config.intermediate_size)
        self.down = Projection(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``[b n d]``; same shape."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and with a residual."""

    def __init__(self, config: TransformerConfig) -> None:
        """Create the parts."""
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        """Transform ``[b n d]``; arguments as in `Attention`."""
        x = x + self.attention(self.attention_norm(x), rope, mask, cache, layer)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Transformer(nn.Module):
    """A decoder from embeddings to hidden states, with the embedding `embed` of ids and the output layer `logits`.

    Attributes:
        gradient_checkpointing: while training, a layer stores its input alone and runs again for its gradients.
    """

    rope: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        """Create weights with standard deviation .02, as in LLaMA."""
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
        """Return the hidden states after the final norm.

        Args:
            x: embeddings ``[b n d]`` of the next n positions.
            cache: earlier positions, or None; the new ones are appended to it.

        Returns:
            ``[b n d]``.

        Raises:
            UserError: more positions than fit into the model or the cache.
        """
        count = x.shape[1]
        self._check_room(count, cache)
        if cache is None:
            rope, mask = self.rope[:, :count], None
        else:
            rope, mask = cache.rotary(self.rope, count), cache.causal_mask(count)
        for index, layer in enumerate(self.layers):
            if self.gradient_checkpointing and self.training and cache is None:
                x = checkpoint(layer, x, rope, mask, None, index, use_reentrant=False)
            else:
                x = layer(x, rope, mask, cache, index)
        if cache is not None:
            cache.advance(count)
        return self.norm(x)

    def logits(self, hidden: Tensor, ids: range | None = None) -> Tensor:
        """Return the logits in float32.

        Args:
            hidden: ``[... d]``.
            ids: ids of the vocabulary whose logits are returned; None: all.

        Returns:
            ``[... v]``, or ``[... len(ids)]``.
        """
        return self.head(hidden, ids).float()

    def _check_room(self, count: int, cache: KVCache | None) -> None:
        last, room = count, self.config.max_positions
        if cache is not None:
            last, room = cache.length + count, min(room, cache.positions)
        if last > room:
            raise UserError(f"position {last} lies beyond the {room} that this model has room for")


def _rope_table(config: TransformerConfig) -> Tensor:
    head_dim = config.hidden_size // config.num_heads
    frequencies = 1.0 / config.rope_theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(config.max_positions).float(), frequencies).repeat(1, 2)
    return torch.stack([angles.cos(), angles.sin()])


def _rotate(x: Tensor, rope: Tensor) -> Tensor:
    cosine, sine = rope.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine
