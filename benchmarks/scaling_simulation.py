"""Simulate conversion and tokenizing of a large dataset with 1 to 1,000 workers, from task times measured here.

    .venv/bin/python benchmarks/scaling_simulation.py [--trajectories 1400000] [--bandwidth-gb 2]

Measured on this machine, in seconds of processor time, so that other work on it does not count: the conversion of JPEG
episodes to a store of 64 px, the encoder of the published 64 px tokenizer (random weights), reading clips as training
does, and the start of a worker. Simulated: workers that take one shard after the other; storage that all of them share;
tasks that die and run again. A table for each stage, then one JSON line.
"""

from __future__ import annotations

import heapq
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from dataloader import pictures

from ivideogpt.data.augment import Augmentation
from ivideogpt.data.clips import ClipSpec
from ivideogpt.data.convert.smaller_frames import SMALL_FRAME_QUALITY, with_frame_size
from ivideogpt.data.convert.source_episode import JpegFrames, SourceEpisode
from ivideogpt.data.loader import ClipLoader
from ivideogpt.data.mixtures import MixtureSource
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.shard import encode_frames
from ivideogpt.data.store.writer import ShardTask, ShardTasks, convert_to_store
from ivideogpt.models.tokenizer import CompressiveTokenizer
from ivideogpt.models.tokenizer_config import TokenizerConfig

SIZE, SOURCE, EPISODE, CLIP = 64, 256, 50, 16
WORKERS = (1, 2, 8, 32, 100, 300, 1000)


@dataclass(frozen=True)
class Rates:
    """Figures measured on this machine.

    Attributes:
        convert, tokenize: frames per second of processor time; lists: of each part of the measurement.
        clips: clips of 16 frames per second of processor time, with augmentation.
        bytes_in, bytes_out: of a frame, before and after the conversion.
        start: seconds until a worker has imported its packages.
    """

    convert: list[float]
    tokenize: list[float]
    clips: float
    bytes_in: float
    bytes_out: float
    start: float


def per_second(work: Callable[[], object], amount: float) -> float:
    """Amount of work a second of processor time."""
    start = time.process_time()
    work()
    return amount / (time.process_time() - start)


def episodes(numbers: range) -> Iterator[SourceEpisode]:
    for number in numbers:
        files = encode_frames(pictures(EPISODE, SOURCE, number))
        actions = np.random.default_rng(number).normal(size=(EPISODE, 7)).astype(np.float32)
        frames = JpegFrames(files=files, height=SOURCE, width=SOURCE)
        yield SourceEpisode(key=f"e{number}", cameras={"image": frames}, actions=actions)


def measure(parts: int) -> Rates:
    torch.set_num_threads(1)
    recorded = [list(episodes(range(4 * part, 4 * part + 4))) for part in range(parts)]
    frames = 4 * EPISODE
    sizes = [len(file) for part in recorded for episode in part for file in episode.cameras["image"].files]  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as name:
        convert = []
        for number, part in enumerate(recorded):
            tasks = ShardTasks([ShardTask("part", partial(iter, part))])
            tasks = with_frame_size(tasks, SIZE, quality=SMALL_FRAME_QUALITY)
            folder = Path(name) / f"store-{number}"
            work = partial(convert_to_store, tasks, folder, facts=StoreFacts(name="mine"), workers=0)
            convert.append(per_second(work, frames))
        written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        source = MixtureSource(path=str(folder), stride=1)
        loader = ClipLoader(source, ClipSpec(size=SIZE, frames=CLIP), batch_size=16, augmentation=Augmentation())
        batches = iter(loader)
        next(batches)
        clips = per_second(lambda: [next(batches) for _ in range(parts)], 16 * parts)
        tokenizer = CompressiveTokenizer(TokenizerConfig()).eval()
        clip = torch.rand(1, CLIP, 3, SIZE, SIZE)
        with torch.inference_mode():
            tokenizer.tokenize(clip)
            tokenize = [per_second(lambda: tokenizer.tokenize(clip), CLIP) for _ in range(parts)]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, ivideogpt.training.tokenize_store"], check=True)
    return Rates(convert, tokenize, clips, float(np.mean(sizes)), written / frames, time.perf_counter() - start)


def simulate(
    workers: int, tasks: int, seconds: list[float], *, bytes_a_task: float, bandwidth: float, start: float, died: float
) -> float:
    """Hours until the last task is done.

    Args:
        workers: processes that take one task after the other.
        tasks: number of them.
        seconds: processor time of a task; each task draws one of them.
        bytes_a_task: read and written through the shared storage.
        bandwidth: of the storage in bytes a second, shared equally by the workers.
        start: seconds until a worker begins.
        died: probability that a task dies, on average half way, and runs again.
    """
    random = np.random.default_rng(0)
    ready = [start] * workers
    heapq.heapify(ready)
    through_storage = bytes_a_task * min(workers, tasks) / bandwidth
    for _ in range(tasks):
        duration = max(float(random.choice(seconds)), through_storage)
        while random.random() < died:
            duration += 0.5 * duration + start
        heapq.heappush(ready, heapq.heappop(ready) + duration)
    return max(ready) / 3600


def main(
    trajectories: int = 1_400_000,
    length: int = 100,
    shard_frames: int = 16_384,
    bandwidth_gb: float = 2.0,
    died: float = 0.001,
    parts: int = 5,
) -> None:
    """Measure and simulate.

    Args:
        trajectories: of the dataset; default: those of Open X-Embodiment.
        length: frames of one, an assumption.
        shard_frames: frames of a task.
        bandwidth_gb: of the shared storage in GB a second.
        died: probability that a task dies.
        parts: repetitions of a measurement.
    """
    rates, frames = measure(parts), trajectories * length
    tasks = -(-frames // shard_frames)
    print(f"{trajectories:,} trajectories, {frames / 1e6:,.0f} million frames, {tasks:,} tasks")
    print(
        f"source {frames * rates.bytes_in / 1e12:.2f} TB, store of {SIZE} px {frames * rates.bytes_out / 1e12:.2f} TB"
    )
    print(f"clips for training: {rates.clips:.0f} a second of processor time; a worker starts in {rates.start:.1f} s")
    results: dict[str, dict[int, float]] = {}
    stages = {
        "convert": (rates.convert, rates.bytes_in + rates.bytes_out),
        "tokenize": (rates.tokenize, rates.bytes_out),
    }
    for stage, (speeds, bytes_a_frame) in stages.items():
        seconds = [shard_frames / speed for speed in speeds]
        options = {"bytes_a_task": bytes_a_frame * shard_frames, "bandwidth": bandwidth_gb * 1e9}
        hours = {n: simulate(n, tasks, seconds, start=rates.start, died=died, **options) for n in WORKERS}
        results[stage] = hours
        total = float(np.mean(seconds)) * tasks / 3600
        print(f"\n{stage}: {np.median(speeds):.0f} frames a second of processor time, {total:,.0f} processor hours")
        for n, value in hours.items():
            print(f"{n:6} workers {value:10.2f} hours   {total / n / value:6.1%} of the workers' time is work")
    print(json.dumps({"rates": asdict(rates), "tasks": tasks, "hours": results}))


if __name__ == "__main__":
    tyro.cli(main)
