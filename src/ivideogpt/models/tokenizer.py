"""Frames to tokens and back: many codes for context frames, few conditional codes for the frames after them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.core.checkpoint import load_tensors, save_tensors
from ivideogpt.core.config import load_json
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import write_text_atomic
from ivideogpt.core.layout import TokenLayout
from ivideogpt.models.autoencoder import CrossAttentionBlock, Decoder, Encoder
from ivideogpt.models.loading import load_module
from ivideogpt.models.quantizer import FiniteScalarQuantizer, VectorQuantizer
from ivideogpt.models.tokenizer_config import TokenizerConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
BACKGROUND_TOLERANCE = 4 / 255


@dataclass(frozen=True)
class ContextFeatures:
    """Features of the context frames for the conditional networks; computed once for all future frames.

    Attributes:
        levels: features ``[b c ch h w]`` of each level at which future frames attend to the context; empty for a
            tokenizer that is not conditional.
    """

    levels: tuple[Tensor, ...]


@dataclass(frozen=True)
class Reconstruction:
    """Outputs of a training pass.

    Attributes:
        context: reconstructed context frames ``[b c ch h w]``, not clamped.
        future: reconstructed future frames ``[b f ch h w]``, not clamped.
        context_loss, dynamics_loss: scalars, codebook and commitment loss of the two codebooks.
        context_codes, dynamics_codes: int64 ``[b c n]`` and ``[b f m]``.
        context_vectors, dynamics_vectors: vectors before quantisation, ``[b c n d]`` and ``[b f m d]``.
    """

    context: Tensor
    future: Tensor
    context_loss: Tensor
    dynamics_loss: Tensor
    context_codes: Tensor
    dynamics_codes: Tensor
    context_vectors: Tensor
    dynamics_vectors: Tensor


class CompressiveTokenizer(nn.Module):
    """Compressive VQGAN of iVideoGPT.

    Source: paper section 3.1 and thuml/iVideoGPT ivideogpt/ctx_tokenizer/compressive_vqgan; same numbers.
    """

    background: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        """Create random weights in the shape of ``config``."""
        super().__init__()
        self.config = config
        side = config.pixel_unshuffle
        shape = {
            "latent_channels": config.latent_channels,
            "block_channels": config.block_channels,
            "num_layers": config.layers_per_block,
            "groups": config.norm_groups,
        }
        condition = {
            "context_frames": config.context_frames,
            "max_attention_resolution": config.max_attention_resolution,
            "dropout": config.dropout,
            "mid_attention": True,
        }
        height, columns = config.frame_size
        encoder = {"in_channels": 3 * side**2, "size": (height // side, columns // side), **shape}
        decoder = {
            "out_channels": (4 if config.background else 3) * side**2,
            "size": config.context_shape,
            **shape,
        }
        width, latent = config.code_width, config.latent_channels
        self.encoder = Encoder(**encoder, mid_attention=config.mid_attention)
        self.decoder = Decoder(**decoder, mid_attention=config.mid_attention)
        self.quantize = _quantizer(config, config.context_codes)
        self.quant_conv = nn.Conv2d(latent, width, 1)
        self.post_quant_conv = nn.Conv2d(width, latent, 1)
        if config.conditional:
            self.cond_encoder = Encoder(**encoder, **condition)
            self.cond_decoder = Decoder(**decoder, **condition)
            self.dynamics_quantize = _quantizer(config, config.dynamics_codes)
            self.quant_linear = nn.Linear(config.patch_size**2 * latent, width)
            self.post_quant_linear = nn.Linear(width, config.patch_size**2 * latent)
        if config.background:
            self.register_buffer("background", torch.ones(3, *config.frame_size))

    @property
    def layout(self) -> TokenLayout:
        """The layout of the token sequence; a model whose actions are tokens has one of its own."""
        return self.config.layout

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.quant_conv.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.quant_conv.weight.dtype

    # Files

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> CompressiveTokenizer:
        """Load a ``tokenizer/`` folder (official or ours) in evaluation mode.

        Raises:
            UserError: a file is missing or damaged, or holds another kind of model.
        """
        folder = Path(folder)
        if not (folder / CONFIG_FILE).is_file():
            raise UserError(
                f"{folder} has no {CONFIG_FILE}; expected a tokenizer folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
            )
        config = TokenizerConfig.from_official(load_json(folder / CONFIG_FILE))
        weights = folder / WEIGHTS_FILE
        tensors = {_our_name(name, config): value for name, value in load_tensors(weights).items()}
        return load_module(lambda: cls(config), tensors, weights).eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a ``tokenizer/`` folder: weights (as ``dtype``, or as they are) and the official ``config.json``."""
        tensors = {_official_name(name, self.config): value for name, value in self.state_dict().items()}
        state = {name: value.to(dtype) if dtype else value for name, value in tensors.items()}
        save_tensors(Path(folder) / WEIGHTS_FILE, state)
        write_text_atomic(Path(folder) / CONFIG_FILE, json.dumps(self.config.to_official(), indent=2) + "\n")

    def fingerprint(self) -> str:
        """Return the SHA-256 of shape and weights (as float32): equal for tokenizers that give the same tokens."""
        digest = hashlib.sha256(json.dumps(self.config.to_official(), sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def set_context_frames(self, context_frames: int) -> None:
        """Attend to fewer context frames from now on; the position embeddings of the last ones are kept.

        Source: thuml/iVideoGPT ``set_context_length``; same, but growing is refused.

        Raises:
            UserError: more frames than the weights were trained for.
        """
        if context_frames == self.config.context_frames:
            return
        if not 1 <= context_frames <= self.config.context_frames:
            raise UserError(
                f"context_frames is {context_frames}; expected 1 to {self.config.context_frames}, "
                "the number this tokenizer was trained with"
            )
        self.config = replace(self.config, context_frames=context_frames)
        if self.config.conditional:
            for block in [*self.cond_encoder.modules(), *self.cond_decoder.modules()]:
                if isinstance(block, CrossAttentionBlock):
                    block.keep_last(context_frames)

    # Frames to codes

    def encode_context(self, frames: Tensor) -> tuple[Tensor, ContextFeatures]:
        """Encode context frames; return their codes and their features for `encode_future`.

        Args:
            frames: ``[b c ch h w]`` in [0, 1].

        Returns:
            int64 ``[b c n]`` context codes and the encoder's features.
        """
        vectors, features = self._context_vectors(frames)
        return self.quantize.encode(vectors), features

    def encode_future(self, frames: Tensor, features: ContextFeatures) -> Tensor:
        """Encode frames after the context.

        Args:
            frames: ``[b f ch h w]`` in [0, 1].
            features: from `encode_context` for the same rows.

        Returns:
            int64 ``[b f m]`` dynamics codes, from 0.
        """
        return self._dynamics_quantizer.encode(self._dynamics_vectors(frames, features))

    def decode_context(self, codes: Tensor) -> tuple[Tensor, ContextFeatures]:
        """Decode context codes; return the frames and the decoder's features for `decode_future`.

        Args:
            codes: int64 ``[b c n]``.

        Returns:
            Frames ``[b c ch h w]``, not clamped, and the features.
        """
        return self._decode_context(self.quantize.decode(codes))

    def decoder_features(self, codes: Tensor) -> ContextFeatures:
        """Return the features of `decode_context` without decoding frames, which skips most of the decoder.

        Args:
            codes: int64 ``[b c n]``.
        """
        if not self.config.conditional:
            return ContextFeatures(())
        levels = [level for level, used in enumerate(self.cond_decoder.conditioned) if used]
        maps = self.decoder.features(self._context_latents(self.quantize.decode(codes)), 1 + max(levels, default=-1))
        return self._features(maps, len(codes), self.cond_decoder)

    def decode_future(self, codes: Tensor, features: ContextFeatures) -> Tensor:
        """Decode dynamics codes.

        Args:
            codes: int64 ``[b f m]``, from 0.
            features: from `decode_context` or `decoder_features` for the same rows.

        Returns:
            ``[b f ch h w]``, not clamped.
        """
        return self._decode_future(self._dynamics_quantizer.decode(codes), features)

    # Whole sequences

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Encode clips.

        Args:
            frames: float ``[b t c h w]`` in [0, 1]; the first ``context_frames`` of them are the context.

        Returns:
            int64 ``[b c n]`` context codes and ``[b t-c m]`` dynamics codes.

        Raises:
            UserError: wrong size, channels or fewer frames than the context.
        """
        count = self.config.context_frames
        self.check_frames(frames, at_least=count)
        context, features = self.encode_context(frames[:, :count])
        if frames.shape[1] == count:
            return context, context.new_empty(len(frames), 0, self.layout.dynamics_tokens)
        return context, self.encode_future(frames[:, count:], features)

    def decode(self, context_codes: Tensor, dynamics_codes: Tensor) -> Tensor:
        """Decode the codes of `encode` to frames ``[b t c h w]``, not clamped."""
        context, features = self.decode_context(context_codes)
        if not dynamics_codes.shape[1]:
            return context
        return torch.cat([context, self.decode_future(dynamics_codes, features)], dim=1)

    def tokenize(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Encode frames as one sequence of tokens in the official order.

        Args:
            frames: float ``[b t c h w]`` in [0, 1]; the first ``context_frames`` of them are the context.

        Returns:
            ids int64 ``[b length]`` and labels of the same shape (-100: not in the loss).

        Raises:
            UserError: wrong size, channels or fewer frames than the context.
        """
        ids = self.layout.join(*self.encode(frames))
        return ids, self.layout.labels(ids, self.config.context_frames)

    def detokenize(self, ids: Tensor) -> Tensor:
        """Decode one sequence of tokens to frames ``[b t c h w]``, not clamped; the ids of separators are ignored.

        Raises:
            UserError: the length holds no whole number of frames.
        """
        return self.decode(*self.layout.split(ids, self.config.context_frames))

    def forward(self, frames: Tensor, context_frames: int | None = None, quantized: bool = True) -> Reconstruction:
        """Encode, quantise with straight-through gradients and decode.

        Args:
            frames: ``[b t ch h w]`` in [0, 1]; more than the context.
            context_frames: number of context frames among them (default: that of the tokenizer).
            quantized: False: decode the vectors without quantisation, for a first phase of training without codes.
        """
        count = context_frames or self.config.context_frames
        context_z, features = self._context_vectors(frames[:, :count])
        dynamics_z = self._dynamics_vectors(frames[:, count:], features)
        context_q, context_loss, context_codes = self.quantize(context_z)
        dynamics_q, dynamics_loss, dynamics_codes = self._dynamics_quantizer(dynamics_z)
        context, decoded = self._decode_context(context_q if quantized else context_z)
        future = self._decode_future(dynamics_q if quantized else dynamics_z, decoded)
        return Reconstruction(
            context, future, context_loss, dynamics_loss, context_codes, dynamics_codes, context_z, dynamics_z
        )

    def check_frames(self, frames: Tensor, at_least: int = 1) -> None:
        """Check that ``frames`` are float ``[b t 3 h w]`` of this tokenizer's resolution.

        Raises:
            UserError: they are not, or there are too few.
        """
        height, width = self.config.frame_size
        if frames.ndim != 5 or frames.shape[2:] != (3, height, width):
            raise UserError(
                f"frames have shape {list(frames.shape)}; expected [b t 3 {height} {width}]; resize them first"
            )
        if frames.shape[1] < at_least:
            raise UserError(f"{frames.shape[1]} frames were given; expected at least {at_least}")
        if not frames.is_floating_point():
            raise UserError(f"frames have type {frames.dtype}; expected floating point in [0, 1]; divide uint8 by 255")

    # Parts

    @property
    def _dynamics_quantizer(self) -> VectorQuantizer | FiniteScalarQuantizer:
        return self.dynamics_quantize if self.config.conditional else self.quantize

    def _context_vectors(self, frames: Tensor) -> tuple[Tensor, ContextFeatures]:
        z, features = self.encoder(self._from_pixels(frames))
        vectors = rearrange(self.quant_conv(z), "(b c) d h w -> b c (h w) d", b=len(frames))
        if self.config.background:
            vectors = vectors * self._foreground(frames)
        return vectors, self._features(features, len(frames), self.cond_encoder if self.config.conditional else None)

    def _dynamics_vectors(self, frames: Tensor, features: ContextFeatures) -> Tensor:
        if not self.config.conditional:
            return self._context_vectors(frames)[0]
        z, _ = self.cond_encoder(self._from_pixels(frames), features.levels)
        side = self.config.patch_size
        patches = rearrange(z, "(b f) d (h p) (w q) -> b f (h w) (p q d)", b=len(frames), p=side, q=side)
        return self.quant_linear(patches)

    def _decode_context(self, vectors: Tensor) -> tuple[Tensor, ContextFeatures]:
        frames, maps = self.decoder(self._context_latents(vectors))
        features = self._features(maps, len(vectors), self.cond_decoder if self.config.conditional else None)
        return self._to_pixels(frames, len(vectors)), features

    def _context_latents(self, vectors: Tensor) -> Tensor:
        """Return the decoder's input ``[(b c) latent h w]`` of quantised vectors ``[b c n d]``."""
        z = rearrange(vectors.to(self.dtype), "b c (h w) d -> (b c) d h w", h=self.config.context_grid)
        return self.post_quant_conv(z.contiguous(memory_format=torch.channels_last))

    def _decode_future(self, vectors: Tensor, features: ContextFeatures) -> Tensor:
        if not self.config.conditional:
            return self._decode_context(vectors)[0]
        grid, side = self.config.dynamics_grid, self.config.patch_size
        patches = self.post_quant_linear(vectors.to(self.dtype))
        z = rearrange(patches, "b f (h w) (p q d) -> (b f) d (h p) (w q)", h=grid, p=side, q=side)
        z = z.contiguous(memory_format=torch.channels_last)
        return self._to_pixels(self.cond_decoder(z, features.levels)[0], len(vectors))

    def _features(self, maps: Sequence[Tensor], rows: int, network: Encoder | Decoder | None) -> ContextFeatures:
        """Select those of ``maps`` that the conditional ``network`` attends to."""
        if network is None:
            return ContextFeatures(())
        used = (x for x, on in zip(maps, network.conditioned, strict=False) if on)
        return ContextFeatures(tuple(rearrange(x, "(b c) d h w -> b c d h w", b=rows) for x in used))

    def _foreground(self, frames: Tensor) -> Tensor:
        """Return 1 for patches ``[b c n 1]`` that differ from the background by more than rounding, else 0."""
        differs = (frames - self.background).abs() > BACKGROUND_TOLERANCE
        rows, columns = self.config.context_shape
        return reduce(differs.float(), "b c ch (h p) (w q) -> b c (h w) 1", "max", h=rows, w=columns)

    def _from_pixels(self, frames: Tensor) -> Tensor:
        if self.config.background:
            frames = frames - self.background
        x = F.pixel_unshuffle(rearrange(frames, "b t c h w -> (b t) c h w"), self.config.pixel_unshuffle)
        return x.contiguous(memory_format=torch.channels_last)

    def _to_pixels(self, x: Tensor, rows: int) -> Tensor:
        x = F.pixel_shuffle(x, self.config.pixel_unshuffle)
        if self.config.background:
            mask = torch.sigmoid(x[:, 3:])
            x = x[:, :3] * mask + self.background * (1 - mask)
        return rearrange(x, "(b t) c h w -> b t c h w", b=rows)


def _quantizer(config: TokenizerConfig, codes: int) -> VectorQuantizer | FiniteScalarQuantizer:
    return FiniteScalarQuantizer(config.levels) if config.levels else VectorQuantizer(codes, config.code_width)


#: Names in official files of a plain network with finite scalars, and ours.
_PLAIN_FSQ_NAMES = {"quant_linear.": "quant_conv.", "post_quant_linear.": "post_quant_conv."}


def _our_name(name: str, config: TokenizerConfig) -> str:
    for official, ours in _PLAIN_FSQ_NAMES.items() if config.levels and not config.conditional else ():
        if name.startswith(official):
            return ours + name.removeprefix(official)
    return name


def _official_name(name: str, config: TokenizerConfig) -> str:
    for official, ours in _PLAIN_FSQ_NAMES.items() if config.levels and not config.conditional else ():
        if name.startswith(ours):
            return official + name.removeprefix(ours)
    return name
