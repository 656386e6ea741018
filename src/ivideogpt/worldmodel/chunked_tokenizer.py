"""Encoding and decoding of many frames in chunks, with bounded memory for any number of rows and frames.

The size of a chunk bounds the largest feature map inside the network. On a CPU the bound is what stays in a core's
cache until the next layer reads it: larger chunks are slower. A GPU needs maps large enough to keep all of it busy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from einops import rearrange
from torch import Tensor

from ivideogpt.models.tokenizer import CompressiveTokenizer, ContextFeatures
from ivideogpt.models.tokenizer_config import TokenizerConfig

#: Bytes of the largest map of a chunk: for each thread of a CPU, and for any other device.
CPU_MAP_BYTES = 4 * 2**20
DEVICE_MAP_BYTES = 256 * 2**20

#: Function from rows of the context to their features.
RowFeatures = Callable[[slice], ContextFeatures]


def largest_map(config: TokenizerConfig) -> int:
    """Return the size of the largest map inside encoder or decoder, in numbers for one frame."""
    channels = config.block_channels[::-1]
    # The input of a level of the decoder has the width of the level before it, and already the larger size.
    widths = map(max, channels, [channels[0], *channels[:-1]])
    return max(width * math.prod(config.context_shape) * 4**level for level, width in enumerate(widths))


def frames_at_once(tokenizer: CompressiveTokenizer) -> int:
    """Return the number of frames of a chunk, at least 1."""
    bound = CPU_MAP_BYTES * torch.get_num_threads() if tokenizer.device.type == "cpu" else DEVICE_MAP_BYTES
    return max(1, bound // (largest_map(tokenizer.config) * tokenizer.dtype.itemsize))


def row_selector(features: ContextFeatures) -> RowFeatures:
    """Return a function that selects rows of ``features``."""
    return lambda rows: select_rows(features, rows)


def select_rows(features: ContextFeatures, rows: slice | Tensor) -> ContextFeatures:
    """Return the features of some rows."""
    return ContextFeatures(tuple(level[rows] for level in features.levels))


def encode_context(tokenizer: CompressiveTokenizer, frames: Tensor) -> tuple[Tensor, ContextFeatures]:
    """Encode context frames ``[b c ch h w]``; see `CompressiveTokenizer.encode_context`."""
    parts = [tokenizer.encode_context(frames[rows]) for rows in _row_chunks(tokenizer, frames)]
    return torch.cat([codes for codes, _ in parts]), _join([features for _, features in parts])


def decoder_features(tokenizer: CompressiveTokenizer, codes: Tensor) -> ContextFeatures:
    """Return the decoder's features of codes ``[b c n]``; see `CompressiveTokenizer.decoder_features`."""
    return _join([tokenizer.decoder_features(codes[rows]) for rows in _row_chunks(tokenizer, codes)])


def encode_future(tokenizer: CompressiveTokenizer, frames: Tensor, features: ContextFeatures) -> Tensor:
    """Encode frames after the context.

    Args:
        tokenizer: encodes them.
        frames: ``[b k f ch h w]`` in [0, 1]: k children of each row of the context.
        features: of the b rows of the context.

    Returns:
        int64 ``[b k f m]``.
    """
    codes = torch.empty(*frames.shape[:3], tokenizer.layout.dynamics_tokens, dtype=torch.long, device=frames.device)
    for rows, chunks in _chunks(frames, frames_at_once(tokenizer)):
        row_features = select_rows(features, rows)
        for chunk in chunks:
            pixels = frames[chunk]
            encoded = tokenizer.encode_future(rearrange(pixels, "b k f ch h w -> b (k f) ch h w"), row_features)
            codes[chunk] = rearrange(encoded, "b (k f) m -> b k f m", k=pixels.shape[1])
    return codes


def decode_future(tokenizer: CompressiveTokenizer, codes: Tensor, features: RowFeatures, out: Tensor) -> None:
    """Decode frames after the context.

    Args:
        tokenizer: decodes them.
        codes: int64 ``[b k f m]``: k children of each row of the context.
        features: of rows of the context; the children of a row share them.
        out: float32 ``[b k f ch h w]``, filled with the frames, in [0, 1].
    """
    for rows, chunks in _chunks(codes, frames_at_once(tokenizer)):
        row_features = features(rows)
        for chunk in chunks:
            ids = codes[chunk]
            frames = tokenizer.decode_future(rearrange(ids, "b k f m -> b (k f) m"), row_features).clamp(0, 1)
            out[chunk] = rearrange(frames, "b (k f) ch h w -> b k f ch h w", k=ids.shape[1])


def _chunks(block: Tensor, most: int) -> Iterator[tuple[slice, Iterator[tuple[slice, slice, slice]]]]:
    """Yield the rows and the chunks of ``[b k f ...]`` in them, of at most ``most`` frames each.

    A row's own frames come first, then those of its siblings, which have the same context.
    """
    rows, children, frames = block.shape[:3]
    width = min(frames, most)
    depth = min(children, most // width)
    for chunk in _slices(rows, most // (width * depth)):
        yield chunk, ((chunk, k, f) for k in _slices(children, depth) for f in _slices(frames, width))


def _row_chunks(tokenizer: CompressiveTokenizer, context: Tensor) -> Iterator[slice]:
    return _slices(len(context), max(1, frames_at_once(tokenizer) // context.shape[1]))


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _join(parts: list[ContextFeatures]) -> ContextFeatures:
    if len(parts) == 1:
        return parts[0]
    return ContextFeatures(tuple(torch.cat(level) for level in zip(*(part.levels for part in parts), strict=True)))
