"""Speed of random 16-frame clips from a converted store, and from the LeRobot dataset that it was converted from.

    .venv/bin/python benchmarks/data_sources.py [--clips 100] [--side 256]

One process, one thread, files in the page cache; seconds are those of processor time. The dataset is of version 3.0,
as LeRobot writes it: AV1 with a key frame every second frame (libsvtav1, g=2, crf 30), many episodes a file. Frames are
resized to 64 px, as for training. Figures are medians of rounds taken in turns. A table, then one JSON line.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
import tyro
from dataloader import pictures

from ivideogpt.data.clips import ClipSpec
from ivideogpt.data.convert import lerobot
from ivideogpt.data.convert.smaller_frames import SMALL_FRAME_QUALITY, with_frame_size
from ivideogpt.data.loader import ClipLoader
from ivideogpt.data.mixtures import MixtureSource
from ivideogpt.data.store.reader import EpisodeStore
from ivideogpt.data.store.writer import convert_to_store

FPS, FRAMES, BATCH, ROUNDS, TRAINED = 30, 16, 4, 3, 64
CAMERA = "observation.images.top"


def write_lerobot(root: Path, *, episodes: int, length: int, side: int) -> None:
    """Write a dataset of version 3.0 with one camera."""
    feature = {"dtype": "video", "shape": [side, side, 3], "names": ["height", "width", "channels"]}
    template = "file-{file_index:03d}"
    info = {
        "codebase_version": "v3.0",
        "fps": FPS,
        "total_episodes": episodes,
        "splits": {"train": f"0:{episodes}"},
        "features": {
            CAMERA: feature,
            "action": {"dtype": "float32", "shape": [7], "names": None},
            "observation.state": {"dtype": "float32", "shape": [7], "names": None},
        },
        "data_path": "data/chunk-{chunk_index:03d}/" + template + ".parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/" + template + ".mp4",
    }
    for name in ("meta/episodes/chunk-000", "data/chunk-000", f"videos/{CAMERA}/chunk-000"):
        (root / name).mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    with av.open(str(root / f"videos/{CAMERA}/chunk-000/file-000.mp4"), "w") as container:
        stream = container.add_stream("libsvtav1", rate=FPS, options={"g": "2", "crf": "30", "preset": "12"})
        stream.height, stream.width, stream.pix_fmt = side, side, "yuv420p"
        for frame in (frame for number in range(episodes) for frame in pictures(length, side, number)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    if sys.platform == "linux":  # as root, this encoder gives the process real-time priority
        for thread in os.listdir("/proc/self/task"):
            os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))
    random, total = np.random.default_rng(0), episodes * length
    names = ("action", "observation.state")
    rows = {name: random.normal(size=(total, 7)).astype(np.float32).tolist() for name in names}
    rows |= {
        "episode_index": np.repeat(np.arange(episodes), length),
        "frame_index": np.tile(np.arange(length), episodes),
        "timestamp": np.tile(np.arange(length, dtype=np.float32) / FPS, episodes),
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), root / "data/chunk-000/file-000.parquet")
    starts = np.arange(episodes) * length
    lists = {"episode_index": np.arange(episodes), "length": [length] * episodes, "tasks": [["push"]] * episodes}
    for prefix in ("data", f"videos/{CAMERA}"):
        lists |= {f"{prefix}/{name}": [0] * episodes for name in ("chunk_index", "file_index")}
    lists[f"videos/{CAMERA}/from_timestamp"] = starts / FPS
    lists[f"videos/{CAMERA}/to_timestamp"] = (starts + length) / FPS
    pyarrow.parquet.write_table(pyarrow.table(lists), root / "meta/episodes/chunk-000/file-000.parquet")


def clips_per_second(path: str, clips: int) -> float:
    source = MixtureSource(path=path, split=None, stride=1)
    loader = ClipLoader(source, ClipSpec(frames=FRAMES, size=TRAINED), batch_size=BATCH)
    batches = iter(loader)
    next(batches)
    start = time.process_time()
    for _ in range(clips // BATCH):
        next(batches)
    return clips // BATCH * BATCH / (time.process_time() - start)


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(clips: int = 100, side: int = 256, episodes: int = 12, length: int = 150) -> None:
    """Compare the speeds.

    Args:
        clips: read in each round.
        side: of the recorded frames in pixels.
        episodes: recorded.
        length: frames of an episode.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = folder / "lerobot"
        write_lerobot(dataset, episodes=episodes, length=length, side=side)
        seconds, stores = {}, {"direct": (dataset, f"lerobot:{dataset}")}
        small = f"store, {TRAINED} px"
        for label, size, quality in (
            ("store, full size", None, 0),
            (small, TRAINED, SMALL_FRAME_QUALITY),
            (f"{small} raw", TRAINED, 0),
        ):
            tasks = lerobot.tasks(dataset)
            target = folder / label.replace(" ", "-").replace(",", "")
            start = time.process_time()
            tasks = tasks if size is None else with_frame_size(tasks, size, quality=quality)
            convert_to_store(tasks, target, facts=lerobot.facts(dataset), workers=0)
            seconds[label] = time.process_time() - start
            stores[label] = target, str(target)
        rounds = [{label: clips_per_second(path, clips) for label, (_, path) in stores.items()} for _ in range(ROUNDS)]
        medians = {label: statistics.median(speeds[label] for speeds in rounds) for label in stores}
        frames = episodes * length
        frames_of = [EpisodeStore(stores[label][0]) for label in (small, f"{small} raw")]
        mean_square = np.mean([(a.frames - b.frames.astype(float)) ** 2 for a, b in zip(*frames_of, strict=True)])
        print(f"JPEG files of {TRAINED} px: {10 * np.log10(255**2 / mean_square):.1f} dB to the raw frames")
        print(f"{episodes} episodes of {length} frames of {side} px; clips of {FRAMES} frames at {TRAINED} px")
        for label, (place, _) in stores.items():
            size = bytes_of(place) / 1e6
            rate = f"{frames / seconds[label]:8.0f} frames/s to convert" if label in seconds else ""
            print(f"{label:18} {size:8.1f} MB {medians[label]:8.1f} clips/s {rate}")
        megabytes = {label: bytes_of(place) / 1e6 for label, (place, _) in stores.items()}
        converting = {label: frames / value for label, value in seconds.items()}
        figures = {"clips_per_second": medians, "megabytes": megabytes, "frames_converted_per_second": converting}
        print(json.dumps(figures))


if __name__ == "__main__":
    tyro.cli(main)
