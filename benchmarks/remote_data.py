"""Speed of clips from storage that answers late, beside the local disk.

    .venv/bin/python benchmarks/remote_data.py [--latency-ms 50] [--clips 320]

The storage is a folder of this machine behind fsspec; each request waits first, as one to a distant server does. "step"
is a pause between batches in which a network would train: a loader keeps ahead if it adds no time to it. One run each,
one thread. The cache of remote files is empty at the start of a row, except for "again". A table, then one JSON line.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
import tyro
from dataloader import pictures
from fsspec.implementations.local import LocalFileSystem

from ivideogpt.data.clips import ClipSpec
from ivideogpt.data.convert.source_episode import SourceEpisode
from ivideogpt.data.loader import ClipLoader
from ivideogpt.data.mixtures import MixtureSource
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, convert_to_store

BATCH, FRAMES, SIDE = 16, 16, 64


class LateFiles(LocalFileSystem):
    """Local files of which each request takes a while."""

    protocol = "late"
    seconds = 0.05

    def cat_ranges(self, *args: Any, **options: Any) -> Any:
        time.sleep(self.seconds)
        return super().cat_ranges(*args, **options)

    def info(self, path: str, **options: Any) -> Any:
        time.sleep(self.seconds)
        return super().info(path, **options)


def write(folder: Path, *, episodes: int, length: int) -> None:
    def read(first: int) -> Iterator[SourceEpisode]:
        for number in range(first, first + 20):
            actions = np.zeros((length, 7), np.float32)
            yield SourceEpisode(key=f"e{number}", cameras={"image": pictures(length, SIDE, number)}, actions=actions)

    tasks = [ShardTask(f"part-{first:03d}", partial(read, first)) for first in range(0, episodes, 20)]
    convert_to_store(tasks, folder, facts=StoreFacts(name="mine"), workers=0)


def seconds_a_batch(path: str, workers: int, batches: int, step: float) -> float:
    source = MixtureSource(path=path, stride=1)
    loader = ClipLoader(source, ClipSpec(frames=FRAMES, size=SIDE), batch_size=BATCH, workers=workers, prefetch=4)
    stream = iter(loader)
    next(stream)  # the start of the workers
    start = time.perf_counter()
    for _ in range(batches):
        next(stream)
        time.sleep(step)
    seconds = (time.perf_counter() - start) / batches
    del stream, loader
    gc.collect()  # ends the workers before those of the next row are forked
    return seconds


def main(
    latency_ms: float = 50, clips: int = 320, step_ms: float = 200, episodes: int = 100, length: int = 100
) -> None:
    """Compare the speeds.

    Args:
        latency_ms: of a request.
        clips: of each row.
        step_ms: pause between batches.
        episodes: in the store.
        length: frames of an episode.
    """
    torch.set_num_threads(1)
    LateFiles.seconds = latency_ms / 1000
    fsspec.register_implementation("late", LateFiles)
    with tempfile.TemporaryDirectory() as name:
        store = Path(name) / "store"
        write(store, episodes=episodes, length=length)
        rows = {
            "local disk": (str(store), 0, "local"),
            "local disk, 2 workers": (str(store), 2, "local"),
            "remote": (f"late://{store}", 0, "a"),
            "remote, again": (f"late://{store}", 0, "a"),
            "remote, 2 workers": (f"late://{store}", 2, "b"),
        }
        figures: dict[str, dict[str, float]] = {}
        for label, (path, workers, cache) in rows.items():
            figures[label] = {}
            for kind, step in (("no step", 0.0), ("step", step_ms / 1000)):
                os.environ["IVIDEOGPT_CACHE"] = str(Path(name) / f"cache-{cache}-{kind}")
                figures[label][kind] = seconds_a_batch(path, workers, clips // BATCH, step)
            plain, added = figures[label]["no step"], figures[label]["step"] - step_ms / 1000
            print(
                f"{label:22} {BATCH / plain:8.0f} clips/s {1000 * plain:7.0f} ms a batch, "
                f"adds {1000 * added:6.0f} ms to a step"
            )
    print(json.dumps({"latency_ms": latency_ms, "step_ms": step_ms, "seconds_a_batch": figures}))


if __name__ == "__main__":
    tyro.cli(main)
