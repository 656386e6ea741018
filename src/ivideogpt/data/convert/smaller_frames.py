"""Makes the frames of a conversion smaller: a store of 64 px takes a fraction of one at the size of its source.

tasks = with_frame_size(lerobot.tasks(folder), 64)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from einops import rearrange

from ivideogpt.core.errors import UserError
from ivideogpt.data.augment import centre_square, resize, whole_frame
from ivideogpt.data.convert.jpeg import decode_jpeg
from ivideogpt.data.convert.source_episode import Frames, JpegFrames, Omission, SourceEpisode
from ivideogpt.data.store.shard import encode_frames
from ivideogpt.data.store.writer import ShardTask, ShardTasks

#: Largest side of frames that can be asked for, in pixels.
LARGEST_SIDE = 4096
#: JPEG quality that the command stores small frames with: 29 to 47 % of their bytes, 44 to 47 dB to their pixels.
SMALL_FRAME_QUALITY = 98


def with_frame_size(tasks: ShardTasks, size: int, *, centre_crop: bool = False, quality: int = 0) -> ShardTasks:
    """Return tasks whose episodes have frames of ``size`` x ``size`` pixels.

    The filter is that of training (bilinear, antialiased), so a model of this size is trained on the same pixels, up to
    the error of the encoding.

    Args:
        tasks: of an importer.
        size: side of the frames of every camera, in pixels.
        centre_crop: crop the frames to a square first, as training does for some datasets; False: the aspect ratio
            changes, as in training.
        quality: of JPEG files of the resized frames, 1 to 100; 0: as a store encodes any frames, raw where small.

    Raises:
        UserError: ``size`` or ``quality`` is out of range.
    """
    if not 0 <= quality <= 100:
        raise UserError(f"quality is {quality}; expected 1 to 100, or 0 for the pixels of small frames")
    if not 1 <= size <= LARGEST_SIDE:
        raise UserError(f"size is {size}; expected 1 to {LARGEST_SIDE} pixels")
    smaller = [ShardTask(task.name, partial(_episodes, task, size, centre_crop, quality)) for task in tasks]
    return ShardTasks(smaller, tasks.omissions, sources=tasks.sources)


def _episodes(task: ShardTask, size: int, centre_crop: bool, quality: int) -> Iterator[SourceEpisode | Omission]:
    for episode in task.read():
        if isinstance(episode, Omission):
            yield episode
            continue
        cameras = {
            name: _encoded(
                _resized(frames, size, centre_crop, f"camera {name!r} of episode {episode.key!r}"), size, quality
            )
            for name, frames in episode.cameras.items()
        }
        yield replace(episode, cameras=cameras)


def _encoded(frames: Frames, size: int, quality: int) -> Frames:
    """Return frames as JPEG files of a quality; files of the source stay as they are."""
    if not quality:
        return frames
    if isinstance(frames, JpegFrames):
        return replace(frames, keep_small=True)
    return JpegFrames(files=encode_frames(frames, quality), height=size, width=size, keep_small=True)


def _resized(frames: Frames, size: int, centre_crop: bool, label: str) -> Frames:
    """Return frames uint8 ``[t size size 3]``; frames of this size stay as they are."""
    height, width = (frames.height, frames.width) if isinstance(frames, JpegFrames) else frames.shape[1:3]
    if (height, width) == (size, size):
        return frames
    resized = np.empty((len(frames), size, size, 3), np.uint8)
    whole = np.empty((height, width, 3), np.uint8)
    square = centre_square(height, width) if centre_crop else whole_frame(height, width)
    for index in range(len(frames)):  # all JPEG files of a long episode may not fit into memory when decoded
        if isinstance(frames, JpegFrames):
            try:
                decode_jpeg(frames.files[index], fast=frames.fast, out=whole)
            except UserError as error:
                raise UserError(f"frame {index} of {label}: {error}; repair or remove the episode") from error
        else:
            whole[:] = frames[index]
        part = whole[square.top : square.top + square.height, square.left : square.left + square.width]
        pixels = resize(torch.from_numpy(np.ascontiguousarray(part))[None], size)
        resized[index] = rearrange(pixels, "1 c h w -> h w c").numpy()
    return resized
