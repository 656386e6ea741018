"""Decoding of JPEG files, with the fast inverse transform bit for bit as in TensorFlow.

TensorFlow's default inverse transform is the fast one of libjpeg; Pillow, OpenCV and simplejpeg use the accurate one,
which differs by up to 16 of 255. Pictures of TensorFlow Datasets are decoded fast, those that this package encodes
accurately.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.source_episode import Frames, JpegFrames
from ivideogpt.data.store.format import simplejpeg

_START = b"\xff\xd8\xff"


def is_jpeg(data: bytes | memoryview) -> bool:
    """Return whether a file begins as JPEG files do."""
    return bytes(data[:3]) == _START


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Return height and width of a JPEG file in pixels.

    Raises:
        UserError: it is not one.
    """
    library = simplejpeg()
    try:
        return library.decode_jpeg_header(data, strict=False)[:2]
    except ValueError as error:
        raise UserError(f"a picture is no readable JPEG file ({error})") from error


def decode_jpeg(data: bytes, *, fast: bool = False, out: np.ndarray | None = None) -> np.ndarray:
    """Decode a JPEG file into uint8 ``[h w 3]`` RGB.

    Args:
        data: the file.
        fast: with the fast inverse transform, as TensorFlow does.
        out: array for the pixels, uint8 ``[h w 3]`` and contiguous; default: a new array.

    Raises:
        UserError: the file cannot be decoded or is not of the size of ``out``.
    """
    if out is not None and jpeg_size(data) != out.shape[:2]:
        height, width = jpeg_size(data)
        raise UserError(f"a picture has {height} x {width} pixels; expected {out.shape[0]} x {out.shape[1]}")
    library = simplejpeg()
    try:
        return library.decode_jpeg(data, "RGB", fastdct=fast, buffer=out)
    except ValueError as error:
        raise UserError(f"a picture is no readable JPEG file ({error})") from error


def decode_frames(frames: Frames, which: Iterable[int] | None = None) -> np.ndarray:
    """Return frames, JPEG files or an array, as uint8 ``[t h w 3]``.

    Args:
        frames: of one camera.
        which: numbers of the frames to return; default: all.

    Raises:
        UserError: a file cannot be decoded; the message has its number.
    """
    numbers = list(range(len(frames)) if which is None else which)
    if not isinstance(frames, JpegFrames):
        return frames[numbers]
    decoded = np.empty((len(numbers), frames.height, frames.width, 3), np.uint8)
    for picture, number in zip(decoded, numbers, strict=True):
        try:
            decode_jpeg(frames.files[number], fast=frames.fast, out=picture)
        except UserError as error:
            raise UserError(f"frame {number}: {error}") from error
    return decoded
