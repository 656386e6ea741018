"""The film in a video file or GIF: the right stream, upright frames, and their rate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.stream import VideoStream
from PIL import Image, ImageSequence

from ivideogpt.core.errors import UserError
from ivideogpt.core.reading import check_is_file, check_unpacked_size, reading
from ivideogpt.data.image_files import upright_rgb

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
# Containers of one file: a playlist, which names other files, is never followed.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
_STILL = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
_LARGEST_FRAME = 100_000_000  # pixels
_GIF_ADVICE, _GIF_FAULT = "copy or convert it again", "is not a readable GIF"
_GIF_TICK = 10  # milliseconds: GIF rounds the time of a frame to this
_MOST_REPEATS = 100  # of the pictures of a GIF, on average
# Decoders and scalers wait for the garbage collector; a process that was forked meanwhile and frees one with threads of
# its own would wait for these threads for ever. PyAV scales in threads since version 17.
_ONE_THREAD: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


@contextmanager
def open_video(source: Path | IO[bytes], name: str = "") -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video file, for a ``with`` block that decodes it; every error in the block names the file.

    Args:
        source: the file, or its content.
        name: for errors; default: the path.

    Raises:
        UserError: the file is missing or cannot be decoded, or has no film, or more than one.
    """
    name = name or str(source)
    if isinstance(source, Path):
        check_is_file(source, "video file")
    with reading(name, "convert or copy it again", fault="cannot be decoded as a video"):
        file = str(source) if isinstance(source, Path) else source
        options = {"format_whitelist": _FORMATS}
        with av.open(file, options=options, metadata_errors="replace") as container:
            stream = _film(container, name)
            if stream.width * stream.height > _LARGEST_FRAME:
                raise UserError(f"{name} has frames of {stream.width} x {stream.height} pixels; make them smaller")
            # The size may change later: the decoder refuses then. Threads stay as they are by default: with threads
            # for frames, a truncated file ends early without an error.
            stream.codec_context.options = {"max_pixels": str(_LARGEST_FRAME)}
            yield container, stream


def _film(container: InputContainer, name: str) -> VideoStream:
    """Return the one stream that is a film: neither a cover picture nor a thumbnail."""
    if not container.streams.video:
        raise UserError(f"{name} has no pictures, only sound; give a file with a video stream")
    streams = [stream for stream in container.streams.video if not stream.disposition & _STILL]
    if len(streams) > 1:
        streams = [stream for stream in streams if stream.frames != 1]
    if not streams:
        raise UserError(f"{name} has a cover picture, but no film; give a file with a video stream")
    if len(streams) > 1:
        places = ", ".join(str(stream.index) for stream in streams)
        raise UserError(f"{name} has {len(streams)} films (streams {places}); save the one that is meant as a file")
    (stream,) = streams
    if not getattr(stream, "width", 0) or not stream.height:
        raise UserError(f"{name} has a video stream without pictures; convert or copy it again")
    if stream.metadata.get("alpha_mode") == "1":
        raise UserError(f"{name} is partly transparent; put it on a background and save it as RGB")
    return stream


def upright_frame(frame: av.VideoFrame, name: str, order: str = "rgb24") -> np.ndarray:
    """Return the pixels of a decoded frame, uint8 ``[h w 3]``, rotated and mirrored as the file says.

    Args:
        frame: the frame.
        name: of the file, for errors.
        order: "rgb24"; "bgr24" where red and blue are exchanged in the file.

    Raises:
        UserError: the frame is transparent, or is turned by another angle than quarters.
    """
    has_alpha = any(component.is_alpha for component in frame.format.components)
    if has_alpha and frame.to_ndarray(format="rgba", **_ONE_THREAD)[..., 3].min() < 255:
        raise UserError(f"{name} is partly transparent; put it on a background and save it as RGB")
    pixels = frame.to_ndarray(format=order, **_ONE_THREAD)
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)  # pyright: ignore[reportCallIssue, reportArgumentType]
    if matrix is None:
        return pixels
    # A pixel at (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(bytes(matrix), "<i4")[:5].tolist()
    largest = max(map(abs, (a, b, c, d)))
    x_to_x, x_to_y, y_to_x, y_to_y = (0 if abs(entry) * 100 < largest else np.sign(entry) for entry in (a, b, c, d))
    if x_to_x and y_to_y and not x_to_y and not y_to_x:
        return pixels[::y_to_y, ::x_to_x]
    if x_to_y and y_to_x and not x_to_x and not y_to_y:
        return pixels.transpose(1, 0, 2)[::x_to_y, ::y_to_x]
    raise UserError(f"{name} is turned by an angle that is no multiple of 90 degrees; convert it")


def gif_frames(path: Path) -> tuple[Iterator[np.ndarray], float | None]:
    """Return the frames of a GIF, uint8 ``[h w 3]`` each, and the frames a second, or None where it does not say.

    GIF writers merge equal frames in a row into one that is shown longer. Such a frame is repeated here, so that all
    frames are shown for the same time again.

    Raises:
        UserError: the file is missing or damaged, is partly transparent, or its frames have times of no common rate.
    """
    repeats, rate = _gif_timing(path)
    return _gif_frames(path, repeats), rate


def _gif_frames(path: Path, repeats: list[int]) -> Iterator[np.ndarray]:
    with reading(path, _GIF_ADVICE, fault=_GIF_FAULT), Image.open(path, formats=["GIF"]) as image:
        for index, frame in enumerate(ImageSequence.Iterator(image)):
            pixels = upright_rgb(frame, f"frame {index} of {path}")
            for _ in range(repeats[index]):
                yield pixels


def _gif_timing(path: Path) -> tuple[list[int], float | None]:
    """Return how many times each stored frame is shown, and the frames a second."""
    check_is_file(path, "GIF file")
    with reading(path, _GIF_ADVICE, fault=_GIF_FAULT):
        stored = path.stat().st_size
        with Image.open(path, formats=["GIF"]) as image:
            check_unpacked_size(path, unpacked=3 * image.width * image.height, stored=stored)
            durations = []
            for frame in ImageSequence.Iterator(image):
                durations.append(float(frame.info.get("duration", 0)))
    if len(durations) == 1 or not any(durations):
        return [1] * len(durations), 1000 / durations[0] if durations[0] else None
    shortest = min(durations)
    if shortest <= 0:
        raise UserError(f"{path} has frames without a time beside frames with one; save it at a constant rate")
    # Times of one frame, which differ by rounding: 30 and 40 ms at 30 frames a second.
    single = [duration for duration in durations if duration <= shortest + _GIF_TICK and duration < 1.75 * shortest]
    period = sum(single) / len(single)
    repeats = [max(round(duration / period), 1) for duration in durations]
    for index, (duration, count) in enumerate(zip(durations, repeats, strict=True)):
        if abs(duration - count * period) > _GIF_TICK:
            raise UserError(
                f"frame {index} of {path} is shown for {duration:g} ms, which is no multiple of the {period:g} ms of "
                "other frames; save it at a constant rate"
            )
    if sum(repeats) > _MOST_REPEATS * len(durations):
        raise UserError(f"{path} shows {len(durations)} pictures for {sum(durations) / 1000:g} s; save it as a video")
    return repeats, 1000 * sum(repeats) / sum(durations)
