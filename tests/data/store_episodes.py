"""Episodes for the tests of the store; a module of its own, so that worker processes can import it."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg

from ivideogpt.data.convert.source_episode import ActionField, JpegFrames, SourceEpisode

FIELDS = (ActionField(name="action/open", size=1), ActionField(name="action/world_vector", size=2))


def pictures(length: int, height: int, width: int, seed: int) -> np.ndarray:
    """Smooth noise that moves, uint8 ``[t h w 3]``."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    picture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width]
    return np.stack([np.roll(picture, t, axis=1) for t in range(length)])


def jpegs(frames: np.ndarray, fast: bool = True) -> JpegFrames:
    files = [simplejpeg.encode_jpeg(np.ascontiguousarray(frame), 80, "RGB", "420") for frame in frames]
    return JpegFrames(files=files, height=frames.shape[1], width=frames.shape[2], fast=fast)


def episode(index: int, *, length: int = 6, height: int = 16, width: int = 24, **changes) -> SourceEpisode:
    random = np.random.default_rng(index)
    actions = random.normal(size=(length, 3)).astype(np.float32)
    actions[-1] = 0
    fields = {
        "key": f"train_eps_{index:08d}",
        "cameras": {"image": pictures(length, height, width, index)},
        "actions": actions,
        "action_fields": FIELDS,
        "rewards": random.normal(size=length).astype(np.float32),
        "state": random.normal(size=(length, 4)).astype(np.float32),
        "text": f"push {index}",
        "fps": 5.0,
        "meta": {"file": "tests", "place": index},
    }
    return SourceEpisode(**(fields | changes))


def read(first: int, count: int, **changes) -> Iterator[SourceEpisode]:
    for index in range(first, first + count):
        yield episode(index, length=3 + index % 5, **changes)


def read_large(first: int, count: int) -> Iterator[SourceEpisode]:
    yield from read(first, count, height=128, width=112)


def read_until_stopped(first: int, count: int, stop: str) -> Iterator[SourceEpisode]:
    """Half of the episodes; then, where the file ``stop`` is not there yet, makes it and waits to be killed."""
    for index, one in enumerate(read(first, count)):
        if index == count // 2 and not Path(stop).exists():
            Path(stop).write_text(str(os.getpid()))
            time.sleep(3000)
        yield one


def read_and_die(stop: str) -> Iterator[SourceEpisode]:
    """Kills its process the first time."""
    if not Path(stop).exists():
        Path(stop).touch()
        os.abort()
    yield from read(0, 2)
