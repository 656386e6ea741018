"""What a tokenizer does to many frames, in pieces: memory is bounded, whatever the number of rows and frames.

A piece is as many frames as let the largest map inside the network stay within a bound. On a CPU that is what a core
keeps in its cache while the next layer reads it: larger pieces are slower there. A GPU needs maps large enough to keep
all of it busy, and no larger ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from einops import rearrange
from torch import Tensor

from ivideogpt.models.tokenizer import CompressiveTokenizer, ContextFeatures
from ivideogpt.models.tokenizer_config import TokenizerConfig

#: Bytes of the largest map of a piece: for each thread of a CPU, and for any other device.
CPU_MAP_BYTES = 4 * 2**20
DEVICE_MAP_BYTES = 256 * 2**20

#: Features of some rows of the context.
FeaturesOf = Callable[[slice], ContextFeatures]


def largest_map(config: TokenizerConfig) -> int:
    """Numbers in the largest map that encoder or decoder makes of one frame."""
    channels = config.block_channels[::-1]
    # What enters a level of the decoder has the width of the level before it, and already the larger size.
    widths = map(max, channels, [channels[0], *channels[:-1]])
    return max(width * (config.context_grid * 2**level) ** 2 for level, width in enumerate(widths))


def frames_at_once(tokenizer: CompressiveTokenizer) -> int:
    """Frames of a piece, at least 1."""
    weight = tokenizer.quantize.embedding.weight
    bound = CPU_MAP_BYTES * torch.get_num_threads() if weight.device.type == "cpu" else DEVICE_MAP_BYTES
    return max(1, bound // (largest_map(tokenizer.config) * weight.element_size()))


def rows_of(features: ContextFeatures) -> FeaturesOf:
    """Some rows of features that are known."""
    return lambda rows: some_rows(features, rows)


def some_rows(features: ContextFeatures, rows: slice | Tensor) -> ContextFeatures:
    """The features of some rows."""
    return ContextFeatures(tuple(level[rows] for level in features.levels))


def encode_context(tokenizer: CompressiveTokenizer, frames: Tensor) -> tuple[Tensor, ContextFeatures]:
    """`CompressiveTokenizer.encode_context` of ``[b c ch h w]``."""
    parts = [tokenizer.encode_context(frames[rows]) for rows in _row_pieces(tokenizer, frames)]
    return torch.cat([codes for codes, _ in parts]), _join([features for _, features in parts])


def decoder_features(tokenizer: CompressiveTokenizer, codes: Tensor) -> ContextFeatures:
    """`CompressiveTokenizer.decoder_features` of ``[b c n]``."""
    return _join([tokenizer.decoder_features(codes[rows]) for rows in _row_pieces(tokenizer, codes)])


def encode_future(tokenizer: CompressiveTokenizer, frames: Tensor, features: ContextFeatures) -> Tensor:
    """Codes of frames after the context.

    Args:
        tokenizer: makes them.
        frames: ``[b k f ch h w]`` in [0, 1]: k children of each row of the context.
        features: of the b rows of the context.

    Returns:
        int64 ``[b k f m]``.
    """
    codes = torch.empty(*frames.shape[:3], tokenizer.layout.dynamics_tokens, dtype=torch.long, device=frames.device)
    for rows, places in _pieces(frames, frames_at_once(tokenizer)):
        known = rows_of(features)(rows)
        for place in places:
            some = frames[place]
            found = tokenizer.encode_future(rearrange(some, "b k f ch h w -> b (k f) ch h w"), known)
            codes[place] = rearrange(found, "b (k f) m -> b k f m", k=some.shape[1])
    return codes


def decode_future(tokenizer: CompressiveTokenizer, codes: Tensor, features: FeaturesOf, out: Tensor) -> None:
    """Frames of codes.

    Args:
        tokenizer: makes them.
        codes: int64 ``[b k f m]``: k children of each row of the context.
        features: of rows of the context; children of a row share what is computed of it.
        out: float32 ``[b k f ch h w]`` that takes the frames, in [0, 1].
    """
    for rows, places in _pieces(codes, frames_at_once(tokenizer)):
        known = features(rows)
        for place in places:
            some = codes[place]
            frames = tokenizer.decode_future(rearrange(some, "b k f m -> b (k f) m"), known).clamp(0, 1)
            out[place] = rearrange(frames, "b (k f) ch h w -> b k f ch h w", k=some.shape[1])


def _pieces(block: Tensor, most: int) -> Iterator[tuple[slice, Iterator[tuple[slice, slice, slice]]]]:
    """Pieces of ``[b k f ...]``, at most ``most`` frames in each: rows, and all places that they have.

    A row's own frames come first, then those of its siblings, for they look at the same context.
    """
    rows, children, frames = block.shape[:3]
    width = min(frames, most)
    depth = min(children, most // width)
    for some in _slices(rows, most // (width * depth)):
        yield some, ((some, k, f) for k in _slices(children, depth) for f in _slices(frames, width))


def _row_pieces(tokenizer: CompressiveTokenizer, context: Tensor) -> Iterator[slice]:
    return _slices(len(context), max(1, frames_at_once(tokenizer) // context.shape[1]))


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _join(parts: list[ContextFeatures]) -> ContextFeatures:
    if len(parts) == 1:
        return parts[0]
    return ContextFeatures(tuple(torch.cat(level) for level in zip(*(part.levels for part in parts), strict=True)))
