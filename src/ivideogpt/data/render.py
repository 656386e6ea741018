"""Pictures of episodes and imaginations: videos, GIFs, and strips with the frames side by side.

Frames are uint8 ``[t h w 3]``. Small frames are enlarged by whole numbers without smoothing, so that each pixel of the
model stays visible. Files are written atomically.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from einops import repeat
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ivideogpt.core.errors import UserError
from ivideogpt.core.files import write_atomic

_PAPER, _INK, _FAINT = (250, 250, 248), (38, 40, 44), (138, 140, 145)
_CONTEXT, _IMAGINED = (190, 110, 20), (47, 111, 208)
# Tiles of a strip and panels of a video are enlarged to at least this many pixels on their shorter side.
_TILE, _PANEL = 128, 256
# A strip wider than this many pixels is broken into bands of at most 16 columns.
_STRIP_WIDTH, _MOST_COLUMNS = 2300, 16
# Around and between the panels of a video, and the size of its text, in pixels.
_MARGIN, _GAP, _TEXT = 20, 14, 18
# ITU-R BT.709: the code in H.264 files for primaries and transfer.
_BT709 = 1


def to_uint8(frames: Tensor) -> np.ndarray:
    """Convert frames ``[t c h w]`` in [0, 1], the format of models, to uint8 ``[t h w c]``, the format here."""
    return (frames.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def write_mp4(path: str | Path, frames: np.ndarray, *, fps: float = 4, shortest_side: int = 256) -> None:
    """Write an H.264 video that browsers play.

    Args:
        path: of the file; its folder is created.
        frames: uint8 ``[t h w 3]``. An odd side is made even by repeating its last row or column.
        fps: frames a second, above 0.
        shortest_side: smaller frames are enlarged by a whole number until their shorter side has this many pixels.

    Raises:
        UserError: frames or fps break these rules.
    """
    frames = _enlarged(_checked(frames, "the video"), shortest_side)
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    rate = Fraction(_checked_rate(fps)).limit_denominator(1000)

    def encode(temporary: Path) -> None:
        with av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=rate, options={"crf": "16"})
            stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
            # Players guess untagged colours differently.
            stream.codec_context.colorspace = Colorspace.ITU709
            stream.codec_context.color_range = ColorRange.MPEG
            stream.codec_context.color_primaries = stream.codec_context.color_trc = _BT709
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                picture = picture.reformat(
                    format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
                )
                container.mux(stream.encode(picture))
            container.mux(stream.encode())

    write_atomic(path, encode)


def write_gif(path: str | Path, frames: np.ndarray, *, fps: float = 4, shortest_side: int = 256) -> None:
    """Write an endless GIF; equal frames in a row become one that is shown longer.

    Args:
        path: of the file; its folder is created.
        frames: uint8 ``[t h w 3]``; each has its own palette of 256 colours.
        fps: frames a second; GIF rounds the time of a frame to 10 ms and players refuse less than 20 ms.
        shortest_side: as in ``write_mp4``.

    Raises:
        UserError: frames or fps break these rules.
    """
    frames = _enlarged(_checked(frames, "the GIF"), shortest_side)
    duration = max(round(100 / _checked_rate(fps)) * 10, 20)
    # The default palette spends its colours on background and text, and loses small colourful objects.
    palette = {"method": Image.Quantize.MAXCOVERAGE, "kmeans": 3, "dither": Image.Dither.NONE}
    images = [Image.fromarray(frame).quantize(256, **palette) for frame in frames]
    options = {"save_all": True, "append_images": images[1:], "duration": duration, "loop": 0}
    write_atomic(path, lambda temporary: images[0].save(temporary, "GIF", **options))


def write_strip(path: str | Path, rows: Mapping[str, np.ndarray], *, context_frames: int = 0, title: str = "") -> None:
    """Write a PNG: one row of pictures for each entry, time from left to right, context frames marked.

    Args:
        path: of the file; its folder is created.
        rows: label (such as "true", "imagined") -> frames uint8 ``[t h w 3]``, all of one shape.
        context_frames: number of first frames that are context; later frames are numbered +1, +2, ...
        title: above the rows; "": none.

    Raises:
        UserError: rows or context_frames break these rules.
    """
    sheets = {label: _enlarged(frames, _TILE) for label, frames in _checked_rows(rows, context_frames).items()}
    length, height, width, _ = next(iter(sheets.values())).shape
    font, gap, margin, header, band_gap = _font(17), 4, 28, 34, 30
    labels = [_shortened(label, font, 2 * _TILE) for label in sheets]
    gutter = max(round(font.getlength(label)) for label in labels) + 22
    columns = min(max((_STRIP_WIDTH - gutter) // (width + gap), 1), _MOST_COLUMNS, length)
    bands, band = -(-length // columns), header + len(sheets) * (height + gap) - gap
    # A wider gap marks the first imagined frame; on several bands it would break the columns.
    extra_gap = 8 if bands == 1 and 0 < context_frames < length else 0
    top = margin + (40 if title else 0)
    canvas_width = 2 * margin + gutter + columns * (width + gap) - gap + extra_gap
    canvas = Image.new("RGB", (canvas_width, top + bands * (band + band_gap) - band_gap + margin), _PAPER)
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((margin, margin - 4), _shortened(title, _font(22), canvas_width - 2 * margin), _INK, _font(22))
    for index in range(length):
        line, column = divmod(index, columns)
        left = margin + gutter + column * (width + gap) + (extra_gap if index >= context_frames else 0)
        upper = top + line * (band + band_gap)
        caption, colour = _caption(index, context_frames)
        draw.text((left + width / 2, upper + 10), caption, colour, font, anchor="mm")
        draw.rectangle((left, upper + 23, left + width - 1, upper + 26), colour)
        for row, (label, frames) in enumerate(zip(labels, sheets.values(), strict=True)):
            y = upper + header + row * (height + gap)
            canvas.paste(Image.fromarray(frames[index]), (left, y))
            if column == 0:
                draw.text((margin, y + height / 2), label, _INK, font, anchor="lm")
    write_atomic(path, lambda temporary: canvas.save(temporary, "PNG"))


def side_by_side(rows: Mapping[str, np.ndarray], *, context_frames: int = 0) -> np.ndarray:
    """Return frames of a video that shows the entries next to each other, with labels, and the time below.

    Args:
        rows: label -> frames uint8 ``[t h w 3]``, all of one shape; the first is on the left.
        context_frames: as in ``write_strip``.

    Returns:
        uint8 ``[t height width 3]``, both sides even.

    Raises:
        UserError: rows or context_frames break these rules.
    """
    panels = [_enlarged(frames, _PANEL) for frames in _checked_rows(rows, context_frames).values()]
    _, height, width, _ = panels[0].shape
    lefts = [_MARGIN + place * (width + _GAP) for place in range(len(panels))]
    top = _MARGIN + 34
    texts = [
        _Text(left, _MARGIN + 8, _shortened(label, _font(_TEXT), width))
        for left, label in zip(lefts, rows, strict=True)
    ]
    panes = [_Pane(left, top, frames) for left, frames in zip(lefts, panels, strict=True)]
    return _video_frames(panes, texts, lefts[-1] + width, top + height, context_frames)


def grid(rows: Mapping[str, Sequence[np.ndarray]], *, context_frames: int = 0) -> np.ndarray:
    """Return frames of a video of several clips next to each other, one row for each entry, and the time below.

    Args:
        rows: label -> clips, each uint8 ``[t h w 3]``, all of one shape and equally many for each label; the first
            label is at the top.
        context_frames: as in ``write_strip``.

    Returns:
        uint8 ``[t height width 3]``, both sides even.

    Raises:
        UserError: rows or context_frames break these rules.
    """
    counts = {label: len(clips) for label, clips in rows.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise UserError(f"the rows have {counts} clips; expected equally many in each, at least one")
    flat = {f"{label}, clip {k}": frames for label, clips in rows.items() for k, frames in enumerate(clips)}
    panels = [_enlarged(frames, _PANEL) for frames in _checked_rows(flat, context_frames).values()]
    _, height, width, _ = panels[0].shape
    labels = [_shortened(label, _font(_TEXT), width) for label in rows]
    across, first = len(panels) // len(rows), _MARGIN + round(max(map(_font(_TEXT).getlength, labels))) + _GAP
    panes = [
        _Pane(first + column * (width + _GAP), _MARGIN + row * (height + _GAP), panels[row * across + column])
        for row in range(len(rows))
        for column in range(across)
    ]
    texts = [_Text(_MARGIN, _MARGIN + row * (height + _GAP) + height // 2, label) for row, label in enumerate(labels)]
    return _video_frames(panes, texts, panes[-1].left + width, panes[-1].top + height, context_frames)


class _Pane(NamedTuple):
    """The enlarged frames ``[t h w 3]`` of a clip and their position."""

    left: int
    top: int
    frames: np.ndarray


class _Text(NamedTuple):
    """A label in all frames; ``y`` is its middle."""

    left: int
    y: int
    text: str


def _video_frames(
    panes: Sequence[_Pane], texts: Sequence[_Text], right: int, bottom: int, context_frames: int
) -> np.ndarray:
    """Return frames of a video: panes and labels that end at ``right`` and ``bottom``, and the time below them."""
    length, font = len(panes[0].frames), _font(_TEXT)
    width, height = right + _MARGIN, bottom + 46 + _MARGIN
    pictures = []
    for index in range(length):
        canvas = Image.new("RGB", (width + width % 2, height + height % 2), _PAPER)
        draw = ImageDraw.Draw(canvas)
        for left, y, text in texts:
            draw.text((left, y), text, _INK, font, anchor="lm")
        for left, top, frames in panes:
            canvas.paste(Image.fromarray(frames[index]), (left, top))
        caption, colour = _caption(index, context_frames)
        draw.text((_MARGIN, bottom + 22), caption, colour, font, anchor="lm")
        draw.text((canvas.width - _MARGIN, bottom + 22), f"{index + 1} / {length}", _FAINT, font, anchor="rm")
        _draw_progress(draw, (_MARGIN, bottom + 42, canvas.width - _MARGIN), index, length, context_frames)
        pictures.append(np.asarray(canvas))
    return np.stack(pictures)


def _draw_progress(
    draw: ImageDraw.ImageDraw, line: tuple[int, int, int], index: int, length: int, context_frames: int
) -> None:
    """Draw a segment for each frame on ``line`` (left, y, right), coloured by its kind up to ``index``."""
    left, y, right = line
    for frame in range(length):
        start = left + (right - left) * frame / length
        stop = left + (right - left) * (frame + 1) / length - 2
        colour = _caption(frame, context_frames)[1] if frame <= index else (226, 226, 222)
        draw.rectangle((round(start), y, max(round(stop), round(start)), y + 4), colour)


def _caption(index: int, context_frames: int) -> tuple[str, tuple[int, int, int]]:
    if index < context_frames:
        return "context", _CONTEXT
    return (f"+{index - context_frames + 1}", _IMAGINED) if context_frames else (str(index), _FAINT)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _enlarged(frames: np.ndarray, shortest_side: int) -> np.ndarray:
    factor = max(-(-shortest_side // min(frames.shape[1:3])), 1)
    return repeat(frames, "t h w c -> t (h y) (w x) c", y=factor, x=factor)


def _checked(frames: np.ndarray, name: str) -> np.ndarray:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise UserError(
            f"{name} has frames of type {frames.dtype} and shape {list(frames.shape)}; "
            "expected uint8 [t h w 3] with at least one frame"
        )
    return frames


def _checked_rate(fps: float) -> float:
    if not 0.01 <= fps <= 1000:
        raise UserError(f"fps is {fps}; expected 0.01 to 1000 frames a second")
    return fps


def _checked_rows(rows: Mapping[str, np.ndarray], context_frames: int) -> Mapping[str, np.ndarray]:
    if not rows:
        raise UserError("there are no rows to draw; give at least one, for example {'true': frames}")
    shapes = {label: _checked(frames, f"row {label!r}").shape for label, frames in rows.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{label} {list(shape)}" for label, shape in shapes.items())
        raise UserError(f"the rows differ in shape: {listed}; resize or cut them to one shape")
    length = next(iter(shapes.values()))[0]
    if not 0 <= context_frames <= length:
        raise UserError(f"context_frames is {context_frames}; expected 0 to {length}, the number of frames")
    return rows
