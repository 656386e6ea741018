"""Encoder and decoder of single frames, with or without attention to the features of context frames.

Source: thuml/iVideoGPT ivideogpt/ctx_tokenizer (same arithmetic; one class is used for both the plain and the
conditional network, which are copies of each other there).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.core.errors import UserError
from ivideogpt.models.blocks import DownBlock, MidBlock, UpBlock, make_norm

CROSS_ATTENTION_HEADS = 4
CROSS_ATTENTION_GROUPS = 32  # the official blocks ignore norm_num_groups


class CrossAttentionBlock(nn.Module):
    """Cross-attention from the pixels of future frames to the pixels of all context frames."""

    def __init__(self, channels: int, size: tuple[int, int], context_frames: int, dropout: float) -> None:
        """Create position embeddings for ``context_frames`` maps of ``size`` (height, width), and attention."""
        super().__init__()
        if channels % CROSS_ATTENTION_GROUPS:
            raise UserError(
                f"a level of {channels} channels attends to the context; expected "
                f"a multiple of {CROSS_ATTENTION_GROUPS}"
            )
        self.q_norm = nn.GroupNorm(CROSS_ATTENTION_GROUPS, channels, eps=1e-5)
        self.kv_norm = nn.GroupNorm(CROSS_ATTENTION_GROUPS, channels, eps=1e-5)
        pixels = size[0] * size[1]
        self.q_pos_emb = nn.Parameter(torch.randn(pixels, channels) * 0.02)
        self.kv_pos_emb = nn.Parameter(torch.randn(context_frames * pixels, channels) * 0.02)
        self.att = nn.MultiheadAttention(channels, CROSS_ATTENTION_HEADS, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def keep_last(self, context_frames: int) -> None:
        """Attend to ``context_frames`` frames from now on, with the position embeddings of the last ones."""
        rows = len(self.q_pos_emb) * context_frames
        self.kv_pos_emb = nn.Parameter(self.kv_pos_emb.detach()[-rows:].clone())

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Add attention to the context to the features of future frames.

        Args:
            x: ``[(b f) ch h w]`` features of future frames.
            context: ``[b c ch h w]`` features of the context frames of each of b clips.

        Returns:
            The same shape as ``x``.
        """
        clips, height = context.shape[0], x.shape[2]
        # Stack the frames along the height, so that the norm takes its statistics over all of them.
        stacked = rearrange(context, "b c ch h w -> b ch (c h) w")
        keys = rearrange(self.kv_norm(stacked), "b ch h w -> b (h w) ch") + self.kv_pos_emb
        queries = rearrange(self.q_norm(x), "n ch h w -> n (h w) ch") + self.q_pos_emb
        # All future frames of a clip have the same keys: one long query instead of repeated keys.
        queries = rearrange(queries, "(b f) p ch -> b (f p) ch", b=clips)
        mixed, _ = self.att(queries, keys, keys, need_weights=False)
        mixed = rearrange(mixed, "b (f h w) ch -> (b f) ch h w", h=height, w=x.shape[3])
        return F.silu(x + self.dropout(mixed))


class Encoder(nn.Module):
    """Network from a frame to a latent map; conditional where ``context_frames`` is not 0."""

    cross_att_blocks: nn.ModuleList

    def __init__(
        self,
        *,
        in_channels: int,
        latent_channels: int,
        block_channels: Sequence[int],
        num_layers: int,
        groups: int,
        size: tuple[int, int],
        mid_attention: bool,
        context_frames: int = 0,
        max_attention_resolution: int = 0,
        dropout: float = 0.0,
    ) -> None:
        """Create the layers; ``size``: height and width of the input, which each level but the last halves."""
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, block_channels[0], 3, padding=1)
        widths = [block_channels[0], *block_channels]
        last = len(block_channels) - 1
        self.down_blocks = nn.ModuleList(
            DownBlock(widths[i], widths[i + 1], num_layers, groups, downsample=i < last) for i in range(last + 1)
        )
        self.mid_block = MidBlock(block_channels[-1], groups, mid_attention)
        self.conv_norm_out = make_norm(block_channels[-1], groups)
        self.conv_out = nn.Conv2d(block_channels[-1], latent_channels, 3, padding=1)
        sizes = [(size[0] // 2 ** min(i + 1, last), size[1] // 2 ** min(i + 1, last)) for i in range(last + 1)]
        self.conditioned = [bool(context_frames) and height <= max_attention_resolution for height, _ in sizes]
        if context_frames:
            self.cross_att_blocks = nn.ModuleList(
                CrossAttentionBlock(width, pixels, context_frames, dropout)
                for width, pixels, on in zip(block_channels, sizes, self.conditioned, strict=True)
                if on
            )

    def forward(self, x: Tensor, context: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Encode frames.

        Args:
            x: ``[b ch h w]``.
            context: features ``[b c ch h w]`` of the context frames at each conditioned level, for a conditional
                encoder.

        Returns:
            Latents ``[b latent h' w']`` and the features after each level.
        """
        x = self.conv_in(x)
        features = []
        pairs = zip(self.cross_att_blocks, context, strict=True) if context is not None else iter(())
        for level, block in enumerate(self.down_blocks):
            x = block(x)
            if context is not None and self.conditioned[level]:
                attention, context_map = next(pairs)
                x = attention(x, context_map)
            features.append(x)
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x))), features


class Decoder(nn.Module):
    """Network from a latent map to a frame; conditional where ``context_frames`` is not 0."""

    cross_att_blocks: nn.ModuleList

    def __init__(
        self,
        *,
        out_channels: int,
        latent_channels: int,
        block_channels: Sequence[int],
        num_layers: int,
        groups: int,
        size: tuple[int, int],
        mid_attention: bool,
        context_frames: int = 0,
        max_attention_resolution: int = 0,
        dropout: float = 0.0,
    ) -> None:
        """Create the layers; ``block_channels`` as in the encoder, ``size``: height and width of the latent map."""
        super().__init__()
        channels = list(reversed(block_channels))
        last = len(channels) - 1
        self.conv_in = nn.Conv2d(latent_channels, channels[0], 3, padding=1)
        self.mid_block = MidBlock(channels[0], groups, mid_attention)
        widths = [channels[0], *channels]
        self.up_blocks = nn.ModuleList(
            UpBlock(widths[i], widths[i + 1], num_layers + 1, groups, upsample=i < last) for i in range(last + 1)
        )
        self.conv_norm_out = make_norm(channels[-1], groups)
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)
        # The levels are after the middle, then after each block that upsamples.
        sizes = [(size[0] * 2**i, size[1] * 2**i) for i in range(last + 1)]
        self.conditioned = [bool(context_frames) and height <= max_attention_resolution for height, _ in sizes]
        if context_frames:
            self.cross_att_blocks = nn.ModuleList(
                CrossAttentionBlock(width, pixels, context_frames, dropout)
                for width, pixels, on in zip(widths, sizes, self.conditioned, strict=False)
                if on
            )

    def forward(self, z: Tensor, context: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Decode latent maps.

        Args:
            z: ``[b latent h w]``.
            context: features ``[b c ch h w]`` of the decoded context frames at each conditioned level, for a
                conditional decoder.

        Returns:
            Frames ``[b ch h' w']`` (not clamped) and the features after the middle and each upsampling block.
        """
        x = self.mid_block(self.conv_in(z))
        features = []
        pairs = zip(self.cross_att_blocks, context, strict=True) if context is not None else iter(())
        for level, block in enumerate(self.up_blocks):
            if context is not None and self.conditioned[level]:
                attention, context_map = next(pairs)
                x = attention(x, context_map)
            features.append(x)
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x))), features

    def features(self, z: Tensor, levels: int) -> list[Tensor]:
        """Return the first ``levels`` features of `forward` without a context, without decoding frames."""
        x = self.mid_block(self.conv_in(z))
        features = [x]
        for block in self.up_blocks[: levels - 1]:  # type: ignore[union-attr]
            features.append(block(features[-1]))
        return features[:levels]
