"""Frames of a session: decoded when somebody looks at them, and shared between a row and its children."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ivideogpt.models.tokenizer import CompressiveTokenizer, ContextFeatures
from ivideogpt.worldmodel import chunked_tokenizer


class SegmentDecoder:
    """Decodes the frames of a segment; it holds the codes of the context and no cache.

    The features of the context are computed when something is decoded, and kept from then on only where more frames of
    the segment will follow one by one.
    """

    def __init__(self, tokenizer: CompressiveTokenizer, context: Tensor) -> None:
        """Keeps the context's codes, int64 ``[b c n]``."""
        self.tokenizer, self._context = tokenizer, context
        self._features: ContextFeatures | None = None

    @property
    def rows(self) -> int:
        """Rows b of the context."""
        return len(self._context)

    def select(self, rows: Tensor) -> SegmentDecoder:
        """The decoder of some rows: int64 ``[b]``."""
        return SegmentDecoder(self.tokenizer, self._context[rows.to(self._context.device)])

    def decode(self, codes: Tensor, out: Tensor, keep: bool) -> None:
        """Frames of codes, by the weights as they are now and where they are now.

        Args:
            codes: int64 ``[b k f m]``: k children of each row of the context.
            out: float32 ``[b k f c h w]`` that takes the frames, in [0, 1].
            keep: the features of the context.
        """
        weight = self.tokenizer.quantize.embedding.weight
        context, known = self._context.to(weight.device), self._features
        if known is not None and any((x.device, x.dtype) != (weight.device, weight.dtype) for x in known.levels):
            known = None
        if keep and known is None:
            known = self._features = chunked_tokenizer.decoder_features(self.tokenizer, context)
        some = (
            chunked_tokenizer.rows_of(known) if known else lambda rows: self.tokenizer.decoder_features(context[rows])
        )
        chunked_tokenizer.decode_future(self.tokenizer, codes.to(weight.device), some, out)

    def forget(self) -> None:
        """The segment is over: what is still to be decoded computes the features again."""
        self._features = None


class _Coded(NamedTuple):
    """A picture that waits: int64 codes ``[b m]``, b a multiple of the rows of their decoder."""

    codes: Tensor
    decoder: SegmentDecoder


@dataclass(eq=False)
class _Picture:
    """Pixels float32 ``[b c h w]``, or what they will be decoded from."""

    content: Tensor | _Coded


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of each row: b pictures, each of which stands for ``share`` rows that follow one another."""

    picture: _Picture
    share: int = 1

    @classmethod
    def shown(cls, pixels: Tensor) -> Frame:
        """A frame that is known: float32 ``[b c h w]``."""
        return cls(_Picture(pixels))

    @classmethod
    def waiting(cls, codes: Tensor, decoder: SegmentDecoder) -> Frame:
        """A frame that is decoded when somebody looks: int64 ``[b m]``, b a multiple of the decoder's rows."""
        return cls(_Picture(_Coded(codes, decoder)))

    def repeat(self, k: int) -> Frame:
        """Each row k times, without a copy."""
        return Frame(self.picture, self.share * k)


def decode(frames: Sequence[Frame], *, keep: bool) -> None:
    """Decodes those frames that nobody has looked at yet, for all who share them.

    Args:
        frames: in their order.
        keep: the features of their contexts too, for frames that follow.
    """
    waiting = dict.fromkeys(frame.picture for frame in frames if isinstance(frame.picture.content, _Coded))
    with torch.inference_mode():
        for _, group in groupby(waiting, lambda picture: _origin(picture.content)):
            pictures = list(group)
            block = _empty([picture.content for picture in pictures])
            _write([picture.content for picture in pictures], block, keep)
            for picture, pixels in zip(pictures, block.unbind(dim=1), strict=True):
                picture.content = pixels


def stacked(blocks: Sequence[Sequence[Frame]]) -> Tensor:
    """Frames float32 ``[b t c h w]`` in memory of their own; what is decoded for them is kept nowhere else.

    Args:
        blocks: rows that stand one below the other, of t frames each.
    """
    contents = [[(frame.picture.content, frame.share) for frame in frames] for frames in blocks]
    rows = [_rows(first) * share for (first, share), *_ in contents]
    with torch.inference_mode(False):  # networks can be trained on them, whoever looks first
        out = _empty([content for content, _ in contents[0]], sum(rows))
    with torch.inference_mode():
        for frames, place in zip(contents, out.split(rows), strict=True):
            _fill(frames, place)
    return out


def _fill(frames: Sequence[tuple[Tensor | _Coded, int]], out: Tensor) -> None:
    """Writes contents and their shares into ``[b t c h w]``: those of one origin together."""
    start = 0
    for (_, share), group in groupby(frames, lambda frame: (_origin(frame[0]), frame[1])):
        some = [content for content, _ in group]
        families = out[:, start : start + len(some)].unflatten(0, (-1, share))
        start += len(some)
        _write(some, families[:, 0], keep=False)
        families[:, 1:] = families[:, :1]


def _write(contents: Sequence[Tensor | _Coded], out: Tensor, keep: bool) -> None:
    """Writes contents of one origin into ``[b t c h w]``."""
    coded = [content for content in contents if isinstance(content, _Coded)]
    if coded:
        decoder = coded[0].decoder
        codes = torch.stack([content.codes for content in coded], dim=1)
        children = (decoder.rows, -1)
        decoder.decode(codes.unflatten(0, children), out.unflatten(0, children), keep)
        return
    for place, pixels in zip(out.unbind(dim=1), contents, strict=True):
        assert isinstance(pixels, Tensor)
        place.copy_(pixels)


def _origin(content: Tensor | _Coded) -> tuple[SegmentDecoder | None, int]:
    """Contents of one origin are written together."""
    return (None if isinstance(content, Tensor) else content.decoder), _rows(content)


def _rows(content: Tensor | _Coded) -> int:
    return len(content) if isinstance(content, Tensor) else len(content.codes)


def _empty(contents: Sequence[Tensor | _Coded], rows: int | None = None) -> Tensor:
    """Memory for so many frames of so many rows, by default as many as they have: ``[b t c h w]``."""
    first = contents[0]
    if isinstance(first, Tensor):
        shape, device = first.shape[1:], first.device
    else:
        size, device = first.decoder.tokenizer.config.resolution, first.codes.device
        shape = (3, size, size)
    return torch.empty(rows or _rows(first), len(contents), *shape, dtype=torch.float32, device=device)
