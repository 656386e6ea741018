"""Reader of uploaded files, in limited memory: sizes are checked before reading and counted while reading.

Nothing is unpickled, nothing is written under a name from the file, and no file makes the reader open another.
"""

from __future__ import annotations

import io
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from av.error import FFmpegError
from numpy.lib import format as npy
from PIL import Image

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.source_files import natural_key
from ivideogpt.data.image_files import upright_rgb
from ivideogpt.data.media import read_episode
from ivideogpt.serve.guard import Limits
from ivideogpt.serve.protocol import Refused

KINDS = (".npz", ".mp4", ".gif", ".zip")
# How far behind these names in an MP4 a number of samples stands, and how large it may be: FFmpeg takes 70 bytes each.
_SAMPLE_COUNTS, _MOST_SAMPLES = {b"stsz": 8, b"stz2": 8, b"trun": 4}, 2_000_000
_PICTURES = (".png", ".jpg", ".jpeg")
# Exceptions of the libraries on damaged files, collected from thousands of damaged files.
_DAMAGED = (
    *(OSError, ValueError, EOFError, SyntaxError, RuntimeError, TypeError, LookupError, ArithmeticError, MemoryError),
    *(struct.error, zlib.error, zipfile.BadZipFile, tokenize.TokenError),
)
# Where a zip ends: signature, numbers of disks and entries, size and place of the directory, length of a comment.
_END, _END_64, _END_LENGTH, _MOST_COMMENT = b"PK\x05\x06", b"PK\x06\x07", 22, 2**16
# Room for a directory entry of 100 bytes for each frame, and for other entries.
_DIRECTORY_BYTES = 2**20


def kind_of(name: str) -> str:
    """Return the ending of an uploaded file's name.

    Raises:
        Refused: with status 415; this kind of file is not read.
    """
    kind = Path(name).suffix.lower()
    if kind not in KINDS:
        raise Refused(415, f"{name} ends in {kind!r}; expected {', '.join(KINDS)} (a zip of png or jpg pictures)")
    return kind


def read_upload(path: Path, name: str, size: int, limits: Limits, *, crop: bool = False) -> Episode:
    """Read one uploaded file.

    Args:
        path: file with its bytes.
        name: given by the user; its ending tells the kind.
        size: side of the frames in pixels, as the model takes them.
        limits: of its content.
        crop: cut frames to the square in their centre, which keeps the aspect ratio; False: squeeze them.

    Returns:
        The episode; ``meta["is_square"]`` is False where ``crop`` makes a difference.

    Raises:
        UserError: it is damaged, too large, or no recording.
    """
    kind = kind_of(name)
    if kind == ".npz":
        return _read_npz(path, name, size, limits, crop)
    readers = {".mp4": _video, ".gif": _gif, ".zip": _zip}
    with path.open("rb") as file:
        try:
            return _gathered(readers[kind](file, name, limits), name, size, limits, crop)
        except UserError:
            raise
        except (*_DAMAGED, FFmpegError) as error:
            raise UserError(f"{name} cannot be read ({_short(error)}); copy or convert it again") from error
        except Image.DecompressionBombError as error:
            raise UserError(f"{name} has pictures of far too many pixels; make them smaller") from error


def resized_upload(frame: np.ndarray, size: int) -> np.ndarray:
    """Resize a frame uint8 ``[h w 3]`` to ``[size size 3]``, antialiased like frames of ``predict``, up to rounding.

    Pillow, not PyTorch: uploads are read beside the thread that computes.
    """
    if frame.shape[:2] == (size, size):
        return frame
    return np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR))


def _centre(frame: np.ndarray) -> np.ndarray:
    """Return the largest square in the centre of a frame ``[h w 3]``."""
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(frame[top : top + side, left : left + side])


def _gathered(pictures: Iterable[np.ndarray], name: str, size: int, limits: Limits, crop: bool) -> Episode:
    frames, shape = [], None
    for picture in pictures:
        shape = shape or picture.shape
        if picture.shape != shape:
            raise UserError(
                f"frame {len(frames)} of {name} is {picture.shape[1]} x {picture.shape[0]} pixels, but the first is "
                f"{shape[1]} x {shape[0]}; make all frames the same size"
            )
        _check_amount(len(frames) + 1, shape[1], shape[0], name, limits)
        frames.append(resized_upload(_centre(picture) if crop else picture, size))
    if shape is None:
        raise UserError(f"{name} has no frames; record or convert it again")
    return Episode(frames=np.stack(frames), meta={"is_square": shape[0] == shape[1]})


def _check_amount(frames: int, width: int, height: int, name: str, limits: Limits) -> None:
    if frames > limits.upload_frames:
        raise UserError(f"{name} has more than {limits.upload_frames} frames; upload a part of it")
    if width * height > limits.picture_pixels:
        raise UserError(
            f"{name} has pictures of {width} x {height} pixels; expected at most {limits.picture_pixels:,} pixels: "
            "make them smaller"
        )
    if frames * width * height > limits.total_pixels:
        raise UserError(f"{name} has more than {limits.total_pixels:,} pixels in all; make it smaller or shorter")


# Videos and GIFs


def _video(file: IO[bytes], name: str, limits: Limits) -> Iterator[np.ndarray]:
    _check_boxes(file, name)
    # The format is given: a guess could take a playlist, which names other files, for a video. A list of edits, which
    # could show the same frames any number of times, is not followed.
    options = {"advanced_editlist": "0"}
    with av.open(file, format="mp4", options=options, metadata_errors="ignore") as container:
        if not container.streams.video:
            raise UserError(f"{name} has no pictures, only sound; give a file with a video stream")
        stream = container.streams.video[0]
        if not getattr(stream, "width", 0) or not stream.height:
            raise UserError(f"{name} has a video stream without pictures; copy or convert it again")
        _check_amount(max(stream.frames, 1), stream.width, stream.height, name, limits)
        # The size may change on the way; the decoder itself refuses then.
        stream.codec_context.options = {"max_pixels": str(limits.picture_pixels)}
        for frame in container.decode(stream):
            yield np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


def _check_boxes(file: IO[bytes], name: str) -> None:
    """Refuse an MP4 that states so many samples that opening it would take much memory, whatever its length."""
    length, place = file.seek(0, io.SEEK_END), 0
    while place < length:
        file.seek(place)
        head = file.read(16)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        size = int.from_bytes(head[8:], "big") if size == 1 else size or length - place
        if len(head) < 8 or size < 8 or place + size > length:
            raise UserError(f"{name} cannot be read as a video, or is only a part of one; copy or convert it again")
        if kind != b"mdat":
            file.seek(place)
            _check_samples(file.read(size), name)
        place += size
    file.seek(0)


def _check_samples(box: bytes, name: str) -> None:
    if b"cmov" in box:
        raise UserError(f"{name} has a packed header, which is not read here; convert it again")
    for mark, offset in _SAMPLE_COUNTS.items():
        for match in re.finditer(mark, box):
            count = int.from_bytes(box[match.end() + offset : match.end() + offset + 4], "big")
            if count > _MOST_SAMPLES:
                raise UserError(f"{name} states {count} samples in one track; upload a part of it")


def _gif(file: IO[bytes], name: str, limits: Limits) -> Iterator[np.ndarray]:
    with Image.open(file, formats=["GIF"]) as image:
        index = 0
        while True:
            _check_amount(index + 1, image.width, image.height, name, limits)
            yield np.asarray(image.convert("RGB"))
            index += 1
            try:
                image.seek(index)
            except EOFError:
                return


# Pictures in a zip


def _zip(file: IO[bytes], name: str, limits: Limits) -> Iterator[np.ndarray]:
    with _opened_zip(file, name, limits) as archive:
        entries = [entry for entry in archive.infolist() if _is_picture(entry.filename)]
        if not entries:
            raise UserError(f"{name} has no png or jpg pictures; zip one picture a frame")
        if len(entries) > limits.upload_frames:
            raise UserError(f"{name} has {len(entries)} pictures; expected at most {limits.upload_frames}")
        # Split into text and numbers, so that 2 comes before 10.
        entries.sort(key=lambda entry: natural_key(entry.filename))
        for entry in entries:
            if entry.file_size > limits.upload_bytes:
                raise UserError(
                    f"{name} has a picture of {entry.file_size} bytes; expected at most {limits.upload_bytes}"
                )
            with archive.open(entry) as packed:
                yield _picture(packed.read(entry.file_size + 1), f"picture {entry.filename[-60:]!r} of {name}", limits)


def _picture(content: bytes, name: str, limits: Limits) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content), formats=["PNG", "JPEG"]) as image:
            _check_amount(1, image.width, image.height, name, limits)
            return upright_rgb(image, name)
    except UserError:
        raise
    except _DAMAGED as error:
        raise UserError(f"{name} is not a readable picture ({_short(error)}); copy or remove it") from error


def _is_picture(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower() in _PICTURES and not path.name.startswith(".") and "__MACOSX" not in path.parts


def _opened_zip(file: IO[bytes], name: str, limits: Limits) -> zipfile.ZipFile:
    """Open the archive if its stated sizes are within the limits; an entry never gives more than it states."""
    _check_directory(file, name)
    archive = zipfile.ZipFile(file)
    total = 0
    for entry in archive.infolist():
        # Others unpack without a limit.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
            raise UserError(f"{name} is encrypted or packed in an unusual way; pack it as an ordinary zip")
        total += entry.file_size
    if total > limits.decoded_bytes:
        raise UserError(f"{name} holds {total} bytes unpacked; expected at most {limits.decoded_bytes}")
    return archive


def _check_directory(file: IO[bytes], name: str) -> None:
    """Refuse a zip with a directory so long that reading it would take much memory."""
    length = file.seek(0, io.SEEK_END)
    file.seek(max(length - _END_LENGTH - _MOST_COMMENT - 20, 0))
    tail = file.read()
    file.seek(0)
    # The same place where zipfile looks.
    place = len(tail) - _END_LENGTH
    if tail[place : place + 4] != _END or tail[-2:] != b"\0\0":
        place = tail.rfind(_END)
    if place < 0 or len(tail) < place + _END_LENGTH:
        raise UserError(f"{name} is no zip archive, or only a part of one; save it again")
    (directory,) = struct.unpack_from("<I", tail, place + 12)
    if directory > _DIRECTORY_BYTES or tail[max(place - 20, 0) : place].startswith(_END_64):
        raise UserError(f"{name} has too many entries; upload fewer frames")


# npz


def _read_npz(path: Path, name: str, size: int, limits: Limits, crop: bool) -> Episode:
    with path.open("rb") as file:
        try:
            with _opened_zip(file, name, limits) as archive:
                for entry in archive.infolist():
                    _check_array(archive, entry, name, limits)
        except UserError:
            raise
        except _DAMAGED as error:
            raise UserError(
                f"{name} is not a readable .npz file ({_short(error)}); save it again with numpy"
            ) from error
    try:
        episode = read_episode(path)
    except UserError as error:
        raise UserError(str(error).replace(str(path), name)) from error
    return replace(_gathered(iter(episode.frames), name, size, limits, crop), actions=episode.actions)


def _check_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str, limits: Limits) -> None:
    """Refuse an array that claims to be larger than its stored bytes, and Python objects."""
    with archive.open(entry) as packed:
        readers: dict[tuple[int, int], Any] = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        version = npy.read_magic(packed)
        if version not in readers:
            raise UserError(f"{name} has an array of an unknown version; save it again with numpy")
        shape, _, dtype = readers[version](packed)
    if dtype.hasobject:
        raise UserError(f"{name} holds Python objects, which are never unpickled; save plain numbers")
    count = 1
    for side in shape:
        count *= side
    if count * dtype.itemsize > entry.file_size:
        raise UserError(f"{name} has an array of shape {list(shape)[:8]}, but not as many numbers; save it again")
    if len(shape) == 4 and shape[0] > limits.upload_frames:
        raise UserError(f"{name} has more than {limits.upload_frames} frames; upload a part of it")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
