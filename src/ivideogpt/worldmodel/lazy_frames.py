"""Frames of a session: decoded when they are read, and shared between a row and its children."""

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
    """Decoder of the frames of a segment; it holds the codes of the context and no cache.

    The features of the context are computed when a frame is decoded, and kept only where more frames of the segment
    follow one by one.
    """

    def __init__(self, tokenizer: CompressiveTokenizer, context: Tensor) -> None:
        """Hold the codes of the context, int64 ``[b c n]``."""
        self.tokenizer, self._context = tokenizer, context
        self._features: ContextFeatures | None = None

    @property
    def rows(self) -> int:
        """Rows b of the context."""
        return len(self._context)

    def select(self, rows: Tensor) -> SegmentDecoder:
        """Return the decoder of the rows int64 ``[k]``."""
        return SegmentDecoder(self.tokenizer, self._context[rows.to(self._context.device)])

    def decode(self, codes: Tensor, out: Tensor, keep: bool) -> None:
        """Decode frames, with the present weights and on their present device.

        Args:
            codes: int64 ``[b k f m]``: k children of each row of the context.
            out: float32 ``[b k f c h w]``, filled with the frames, in [0, 1].
            keep: keep the features of the context.
        """
        device, dtype = self.tokenizer.device, self.tokenizer.dtype
        context, kept = self._context.to(device), self._features
        if kept is not None and any((x.device, x.dtype) != (device, dtype) for x in kept.levels):
            kept = None
        if keep and kept is None:
            kept = self._features = chunked_tokenizer.decoder_features(self.tokenizer, context)
        if kept is not None:
            features = chunked_tokenizer.row_selector(kept)
        else:
            features = lambda rows: self.tokenizer.decoder_features(context[rows])  # noqa: E731
        chunked_tokenizer.decode_future(self.tokenizer, codes.to(device), features, out)

    def forget(self) -> None:
        """Free the features; frames that are still to be decoded compute them again."""
        self._features = None


class _Coded(NamedTuple):
    """A frame that is not decoded yet: int64 codes ``[b m]``; b is a multiple of the rows of the decoder."""

    codes: Tensor
    decoder: SegmentDecoder


@dataclass(eq=False)
class _Picture:
    """Pixels float32 ``[b c h w]``, or the codes that they are decoded from; replaced when it is decoded."""

    content: Tensor | _Coded


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of each row: b pictures, each shared by ``share`` consecutive rows."""

    picture: _Picture
    share: int = 1

    @classmethod
    def shown(cls, pixels: Tensor) -> Frame:
        """Wrap pixels float32 ``[b c h w]``."""
        return cls(_Picture(pixels))

    @classmethod
    def waiting(cls, codes: Tensor, decoder: SegmentDecoder) -> Frame:
        """Wrap codes int64 ``[b m]``, decoded when the frame is read; b is a multiple of the decoder's rows."""
        return cls(_Picture(_Coded(codes, decoder)))

    def repeat(self, k: int) -> Frame:
        """Return the frame with each row k times, without a copy."""
        return Frame(self.picture, self.share * k)


def decode(frames: Sequence[Frame], *, keep: bool) -> None:
    """Decode the frames that are not decoded yet, for all rows that share them.

    Args:
        frames: in their order.
        keep: keep the features of their contexts, for the next frames.
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
    """Return frames float32 ``[b t c h w]`` in new memory; those that are decoded for it are kept nowhere else.

    Args:
        blocks: t frames each of some rows; the rows of all blocks one below the other.
    """
    contents = [[(frame.picture.content, frame.share) for frame in frames] for frames in blocks]
    rows = [_rows(first) * share for (first, share), *_ in contents]
    with torch.inference_mode(False):  # networks can be trained on them, even if they are first read in inference mode
        out = _empty([content for content, _ in contents[0]], sum(rows))
    with torch.inference_mode():
        for frames, block in zip(contents, out.split(rows), strict=True):
            _fill(frames, block)
    return out


def _fill(frames: Sequence[tuple[Tensor | _Coded, int]], out: Tensor) -> None:
    """Write contents and their shares into ``[b t c h w]``: those of one origin together."""
    start = 0
    for (_, share), group in groupby(frames, lambda frame: (_origin(frame[0]), frame[1])):
        contents = [content for content, _ in group]
        families = out[:, start : start + len(contents)].unflatten(0, (-1, share))
        start += len(contents)
        _write(contents, families[:, 0], keep=False)
        families[:, 1:] = families[:, :1]


def _write(contents: Sequence[Tensor | _Coded], out: Tensor, keep: bool) -> None:
    """Write contents of one origin into ``[b t c h w]``."""
    coded = [content for content in contents if isinstance(content, _Coded)]
    if coded:
        decoder = coded[0].decoder
        codes = torch.stack([content.codes for content in coded], dim=1)
        children = (decoder.rows, -1)
        decoder.decode(codes.unflatten(0, children), out.unflatten(0, children), keep)
        return
    for frame, pixels in zip(out.unbind(dim=1), contents, strict=True):
        assert isinstance(pixels, Tensor)
        frame.copy_(pixels)


def _origin(content: Tensor | _Coded) -> tuple[SegmentDecoder | None, int]:
    """Return the decoder and the number of rows of a content; contents of one origin are written together."""
    return (None if isinstance(content, Tensor) else content.decoder), _rows(content)


def _rows(content: Tensor | _Coded) -> int:
    return len(content) if isinstance(content, Tensor) else len(content.codes)


def _empty(contents: Sequence[Tensor | _Coded], rows: int | None = None) -> Tensor:
    """Allocate ``[b t c h w]`` for the contents, of ``rows`` rows, by default as many as they have."""
    first = contents[0]
    if isinstance(first, Tensor):
        shape, device = first.shape[1:], first.device
    else:
        shape, device = (3, *first.decoder.tokenizer.config.frame_size), first.codes.device
    return torch.empty(rows or _rows(first), len(contents), *shape, dtype=torch.float32, device=device)
