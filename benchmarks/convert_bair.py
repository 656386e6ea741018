"""Speed of the conversion of BAIR's TFRecord files, beside the official converter.

    .venv/bin/python benchmarks/convert_bair.py [--trajectories 64] [--official-trajectories 8]

In one process and one run, on files written here: our conversion into an episode store, written to disk with its index;
and a re-creation of the official way (a picture becomes a list of pixels with ``Image.getdata``, then an int64 array;
``np.savez_compressed``), which reads the records with our parser, as TensorFlow need not be installed. Pictures are
smooth with some noise, so that they compress about as camera pictures do. The official way is slow, so it does some
trajectories only; figures are for a trajectory of 30 frames of two cameras. A table, then one JSON line.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tyro
from PIL import Image

from ivideogpt.data.convert import bair
from ivideogpt.data.convert.rlds.tfrecord import read_records
from ivideogpt.data.store.reader import EpisodeStore
from ivideogpt.data.store.writer import convert_to_store

WRITERS = Path(__file__).parents[1] / "tests" / "data" / "convert" / "tfrecord_files.py"
GOAL = 30


def writers() -> ModuleType:
    """Import the writers of the tests."""
    spec = importlib.util.spec_from_file_location("tfrecord_files", WRITERS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trajectory(seed: int) -> dict[str, np.ndarray]:
    """Make two cameras: coarse colours that drift, and noise."""
    random = np.random.default_rng(seed)

    def pictures() -> np.ndarray:
        coarse = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        wide = np.asarray(coarse.resize((124, 124), Image.Resampling.BICUBIC), np.int16)
        moved = np.stack([wide[t : t + 64, 2 * t : 2 * t + 64] for t in range(30)])
        return (moved + random.integers(-3, 4, moved.shape)).clip(0, 255).astype(np.uint8)

    rows = {"action": random.normal(size=(30, 4)), "position": random.normal(size=(30, 3))}
    return {"image": pictures(), "aux1_image": pictures()} | rows


def official(file: bair.BairFile, target: Path, most: int) -> int:
    """Convert ``most`` trajectories of a file as the official converter does; return their number."""
    done = 0
    for number, record in enumerate(read_records(file.path), file.first):
        if done == most:
            break
        values: dict[str, Any] = record.values()
        held: dict[str, list[np.ndarray]] = {"image": [], "aux1_image": [], "action": []}
        for t in range(30):
            for name, key in (("image", "image_main"), ("aux1_image", "image_aux1")):
                picture = Image.frombytes("RGB", (64, 64), bytes(values[f"{t}/{key}/encoded"][0]))
                held[name].append(np.array(picture.getdata()).reshape(64, 64, 3))
            held["action"].append(np.array([values[f"{t}/action"][i] for i in range(4)]))
        np.savez_compressed(target / f"traj_{number:05d}.npz", **{name: np.stack(v) for name, v in held.items()})
        done += 1
    return done


def seconds(action: Callable[[], object]) -> np.ndarray:
    """On the clock, and of the processor: beside other work, the latter are the ones to compare."""
    start = np.array([time.perf_counter(), time.process_time()])
    action()
    return np.array([time.perf_counter(), time.process_time()]) - start


def main(trajectories: int = 64, official_trajectories: int = 8, repeats: int = 3) -> None:
    """Compares the two.

    Args:
        trajectories: for our way.
        official_trajectories: for the official way.
        repeats: our way is timed so often, each into a new folder; the median counts.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = writers()
        made.write_bair(folder / "source", [trajectory(seed) for seed in range(trajectories)])
        made.write_bair(folder / "source", [trajectory(trajectories)], split="test")
        train = bair.find_files(folder / "source")[0]

        reading = [seconds(lambda: sum(1 for _ in bair.read_file(train))) for _ in range(repeats)]
        stores = [folder / f"store-{index}" for index in range(repeats)]
        ours = [
            seconds(lambda s=s: convert_to_store(bair.tasks(folder / "source"), s, facts=bair.FACTS, workers=0))
            for s in stores
        ]
        target = folder / "official"
        target.mkdir()
        count = min(official_trajectories, trajectories)
        slow = seconds(lambda: official(train, target, count)) / count
        fast = np.median(ours, axis=0) / (trajectories + 1)
        read = np.median(reading, axis=0) / trajectories

        store = EpisodeStore(stores[0])
        with np.load(target / "traj_00000.npz") as first:
            same = np.array_equal(store[store.find("traj_00000", "train")].frames, first["aux1_image"])
        sizes = (sum(f.stat().st_size for f in target.iterdir()) / count, store.num_bytes / (trajectories + 1))
    rows = [
        ("official way", slow, sizes[0]),
        ("into a store", fast, sizes[1]),
        ("reading alone", read, 0.0),
    ]
    print(f"{'a trajectory':<14}  {'ms':>9}  {'CPU ms':>9}  {'frames/s':>9}  {'kB':>7}  times official, by CPU")
    for label, (spent, cpu), size in rows:
        times = f"{slow[0] / spent:14.1f}  {slow[1] / cpu:6.1f}"
        print(f"{label:<14}  {1e3 * spent:9.2f}  {1e3 * cpu:9.2f}  {30 / spent:9.0f}  {size / 1e3:7.0f}  {times}")
    print(f"goal: {GOAL} times; frames equal: {same}")
    values = {"official_ms": 1e3 * slow[0], "store_ms": 1e3 * fast[0], "read_ms": 1e3 * read[0]}
    values |= {"ratio": slow[0] / fast[0], "cpu_ratio": slow[1] / fast[1]}
    print(json.dumps({key: round(value, 3) for key, value in values.items()} | {"goal": GOAL, "equal": bool(same)}))


if __name__ == "__main__":
    tyro.cli(main)
