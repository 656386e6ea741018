"""Frames of an episode from video files and image files; JPEG files are kept unchanged where that is possible."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ivideogpt.core.errors import UserError
from ivideogpt.core.reading import check_unpacked_size, reading
from ivideogpt.data.convert.source_episode import Frames, JpegFrames
from ivideogpt.data.image_files import read_image
from ivideogpt.data.store.format import LARGEST_RAW_SIDE
from ivideogpt.data.store.shard import encode_frames
from ivideogpt.data.video_files import open_video, upright_frame

_ORIENTATION, _UPRIGHT = 0x0112, 1
_END_OF_JPEG = b"\xff\xd9"
# Seeking in a video goes this many frames too far back: a key frame may be stored before frames that are shown earlier.
_EARLIER = 16
# Part of a frame period that timestamps of parquet (float32) and of a video (ticks) may differ by.
_ROUNDING = 0.02
#: Frames of a video that take more bytes than this are encoded as they come.
LARGEST_ARRAY = 256 * 2**20


def first_frames(video: bytes, count: int, name: str, *, swap_colours: bool = False) -> Frames:
    """Return the first ``count`` frames of the content of a video file.

    Args:
        video: the content.
        count: at least 1.
        name: of the video, for errors.
        swap_colours: red and blue are exchanged in the file.

    Raises:
        UserError: it cannot be decoded, or has fewer frames.
    """
    gathered = _FrameList(name, "bgr24" if swap_colours else "rgb24")
    with open_video(io.BytesIO(video), name) as (container, stream):
        for picture in container.decode(stream):
            gathered.add(picture)
            if len(gathered) == count:
                return gathered.frames()
    raise UserError(f"{name} has {len(gathered)} frames; expected {count}: copy or record it again")


def whole_video(path: Path) -> tuple[Frames, float | None]:
    """Return all frames of a video, and its frames a second or None.

    Raises:
        UserError: the file cannot be decoded, or has no frames.
    """
    gathered = _FrameList(str(path))
    with open_video(path) as (container, stream):
        rate = float(stream.average_rate) if stream.average_rate else None
        for picture in container.decode(stream):
            gathered.add(picture)
    if not len(gathered):
        raise UserError(f"{path} has no frames; record or convert it again")
    return gathered.frames(), rate


def frames_at(path: Path, seconds: Sequence[float], rate: float) -> Frames:
    """Return the frames of a video that are shown nearest to given times.

    The video may have a higher rate than the recording.

    Args:
        path: the file.
        seconds: ascending times after the first frame of the video.
        rate: frames a second of the recording; a frame that is further away than half a period is not taken.

    Raises:
        UserError: the file cannot be decoded, lacks one of these frames, or has one frame for two times.
    """
    for early in (True, False):  # where seeking by the index misses frames, the file is read from its beginning
        gathered = _nearest(path, seconds, rate, early)
        if len(gathered) == len(seconds):
            return gathered.frames()
    raise UserError(
        f"{path} has no frame at {seconds[len(gathered)]:.3f} s ({len(gathered)} of {len(seconds)} frames were found, "
        f"{rate:g} a second); the video and the rows of the episode do not fit together"
    )


def _nearest(path: Path, seconds: Sequence[float], rate: float, early: bool) -> _FrameList:
    """Return the frames nearest to ``seconds``, up to the first time that has none; see ``frames_at``."""
    gathered, period = _FrameList(str(path)), 1 / rate
    with open_video(path) as (container, stream):
        # Many processes read clips; see also data/video_files.py about threads.
        stream.codec_context.thread_count = 1
        if stream.time_base is None:
            raise UserError(f"{path} does not say when its frames are shown; convert it again")
        start, tick = stream.start_time or 0, float(stream.time_base)
        early = early and seconds[0] > _EARLIER * period
        if early:
            container.seek(start + int((seconds[0] - _EARLIER * period) / tick), stream=stream)
        before: tuple[float, av.VideoFrame] | None = None
        is_taken = False  # whether the frame before is taken
        for picture in container.decode(stream):
            if picture.pts is None:
                raise UserError(f"{path} does not say when its frames are shown; convert it again")
            time = (picture.pts - start) * tick
            if before is None and early and time > seconds[0]:
                return gathered  # seeking went too far: an earlier frame may be nearer
            is_current_taken = False
            while len(gathered) < len(seconds) and seconds[len(gathered)] <= time:
                target = seconds[len(gathered)]
                is_before_nearer = before is not None and target - before[0] < time - target
                distance = target - before[0] if before is not None and is_before_nearer else time - target
                if distance > (0.5 + _ROUNDING) * period:
                    return gathered
                if is_taken if is_before_nearer else is_current_taken:
                    raise UserError(f"{path} has one frame for two rows of the episode at {target:.3f} s; correct fps")
                if before is not None and is_before_nearer:
                    gathered.add(before[1])
                    is_taken = True
                else:
                    gathered.add(picture)
                    is_current_taken = True
            if len(gathered) == len(seconds):
                return gathered
            before, is_taken = (time, picture), is_current_taken
        # The last frame of the video may be nearest to a time shortly after it.
        if before is not None and not is_taken and seconds[len(gathered)] - before[0] <= (0.5 + _ROUNDING) * period:
            gathered.add(before[1])
    return gathered


class _FrameList:
    """Frames of one size in order, as an array, or as the JPEG files of a store once the array becomes large."""

    def __init__(self, name: str, order: str = "rgb24") -> None:
        self.name, self.order = name, order
        self.pictures: list[np.ndarray] = []
        self.files: list[bytes] = []
        self.shape: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures) + len(self.files)

    def add(self, picture: av.VideoFrame) -> None:
        self.put(upright_frame(picture, self.name, self.order))

    def put(self, pixels: np.ndarray) -> None:
        self.shape = self.shape or pixels.shape
        if pixels.shape != self.shape:
            raise UserError(
                f"{self.name} changes its size from {list(self.shape[:2])} to {list(pixels.shape[:2])} pixels; "
                "make all frames the same size"
            )
        self.pictures.append(pixels)
        stays_raw = max(self.shape[:2]) <= LARGEST_RAW_SIDE
        if self.files or (not stays_raw and len(self.pictures) * pixels.nbytes > LARGEST_ARRAY):
            for waiting in self.pictures:
                self.files += encode_frames(waiting[None])
            self.pictures.clear()

    def frames(self) -> Frames:
        if self.files:
            return JpegFrames(files=self.files, height=self.shape[0], width=self.shape[1])
        return np.stack(self.pictures)


def image_frames(images: Iterable[tuple[str, bytes]], name: str, *, swap_colours: bool = False) -> Frames:
    """Return frames from one image file each.

    Args:
        images: name and content of each file, in order.
        name: of the images together, for errors.
        swap_colours: red and blue are exchanged in the files.

    Returns:
        The unchanged JPEG files where all are upright JPEGs of 8 bits; else their pixels.

    Raises:
        UserError: there are none, one is damaged or of another size or kind.
    """
    files, sizes, is_unchanged = [], [], not swap_colours
    for label, content in images:
        size, is_plain = _inspected(content, label)
        if sizes and size != sizes[0]:
            raise UserError(
                f"{label} has {size[1]} x {size[0]} pixels, but the first image has {sizes[0][1]} x {sizes[0][0]}; "
                "make all frames of an episode the same size"
            )
        files.append((label, content))
        sizes.append(size)
        is_unchanged = is_unchanged and is_plain
    if not files:
        raise UserError(f"{name} has no images; expected one a frame")
    height, width = sizes[0]
    if is_unchanged:
        return JpegFrames(files=[content for _, content in files], height=height, width=width)
    gathered = _FrameList(name)
    for label, content in files:
        pixels = read_image(content, label)
        gathered.put(pixels[..., ::-1] if swap_colours else pixels)
    return gathered.frames()


def _inspected(content: bytes, name: str) -> tuple[tuple[int, int], bool]:
    """Return height and width, and whether the file is a JPEG that can be kept unchanged."""
    with (
        reading(name, "copy or remove it", fault="is not a readable image"),
        Image.open(io.BytesIO(content)) as image,
    ):
        check_unpacked_size(name, unpacked=image.width * image.height * 3, stored=len(content))
        turned = image.getexif().get(_ORIENTATION, _UPRIGHT)
        is_plain = image.format == "JPEG" and image.mode in ("RGB", "L") and turned == _UPRIGHT
        if is_plain and not content.rstrip(b"\0").endswith(_END_OF_JPEG):
            image.load()  # an error where it is cut short
        width, height = image.size
        return ((width, height) if turned in (5, 6, 7, 8) else (height, width)), is_plain
