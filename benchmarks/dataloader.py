"""Speed of random 16-frame clips from an episode store, beside the official loader.

    .venv/bin/python benchmarks/dataloader.py [--clips 200] [--official-clips 20] [--memory-clips 10000]

One process, one run, one thread, on files written here that lie in the page cache: our stores (raw at 64 px, JPEG at
256 px), and ``.npz`` files as the official converters write them. The official loader is re-created: it decompresses
the whole episode, and crops, resizes and jitters each frame on its own (torch's bilinear resize, Pillow's colours;
torchvision is not needed for either). Pictures are smooth with some noise, so that they compress about as camera
pictures do. Each figure is the median of some rounds, taken in turns so that other work on the machine meets both.

"augmented" is the default augmentation in the process that reads. "left to the device" is what is left to do for a
processor when frames travel as 8-bit numbers and a GPU crops, resizes and jitters. BAIR's pictures come as int64 from
its official converter. "memory copy" copies the bytes of one clip from place to place in memory: nothing is faster.
A table, then one JSON line.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image, ImageEnhance

from ivideogpt.data.augment import Augmentation, draw_augmentation
from ivideogpt.data.clips import ClipSpec
from ivideogpt.data.convert.source_episode import SourceEpisode
from ivideogpt.data.loader import ClipLoader
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, convert_to_store

FRAMES = 16
BATCH = 8
ROUNDS = 5
ENHANCE = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@dataclass(frozen=True)
class Files:
    """One dataset, written both ways."""

    store: str
    archives: list[Path]
    side: int


def pictures(length: int, side: int, seed: int) -> np.ndarray:
    """Coarse colours that drift, and noise: uint8 ``[t side side 3]``."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    wide = np.asarray(coarse.resize((side + length, side + length), Image.Resampling.BICUBIC), np.int16)
    moved = np.stack([wide[t : t + side, t : t + side] for t in range(length)])
    return (moved + random.integers(-3, 4, moved.shape)).clip(0, 255).astype(np.uint8)


def write(folder: Path, *, episodes: int, length: int, side: int, dtype: type) -> Files:
    """A store, and the official files."""
    archives = [folder / f"train_eps_{i:08d}.npz" for i in range(episodes)]

    def read() -> Iterator[SourceEpisode]:
        for number, path in enumerate(archives):
            frames = pictures(length, side, number)
            actions = np.random.default_rng(number).normal(size=(length, 7)).astype(np.float32)
            np.savez_compressed(path, image=frames.astype(dtype), action=actions)
            yield SourceEpisode(key=path.stem, cameras={"image": frames}, actions=actions)

    folder.mkdir()
    task = ShardTask("train-00000", read)
    convert_to_store([task], folder / "store", facts=StoreFacts(name=folder.name), workers=0)
    return Files(str(folder / "store"), archives, side)


def official_clip(files: Files, size: int, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One clip as the official loader makes it: float32 ``[t 3 size size]``, and its actions."""
    path = files.archives[random.integers(len(files.archives))]
    episode, actions = np.load(path)["image"], np.load(path)["action"]
    start = random.integers(max(len(episode) - FRAMES + 1, 1))
    actions = torch.Tensor(np.array(list(actions[start : start + FRAMES])))
    images = torch.Tensor(np.array(list(episode[start : start + FRAMES]))).permute(0, 3, 1, 2)
    drawn = draw_augmentation(Augmentation(), *images.shape[2:], random)
    changed = []
    for image in images:
        cropped = image[:, drawn.top : drawn.top + drawn.height, drawn.left : drawn.left + drawn.width]
        resized = torch.nn.functional.interpolate(cropped[None], (size, size), mode="bilinear", antialias=True)[0]
        picture = Image.fromarray((resized / 255).mul(255).byte().permute(1, 2, 0).numpy())
        for kind in drawn.order:
            factor = drawn.factors[kind]
            picture = hued(picture, factor) if kind == 3 else ENHANCE[kind](picture).enhance(factor)
        changed.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div(255))
    return torch.stack(changed), actions


def hued(picture: Image.Image, turns: float) -> Image.Image:
    """The hue turned, as torchvision turns it for Pillow."""
    hue, saturation, value = picture.convert("HSV").split()
    shifted = np.array(hue, np.uint8) + np.array(int(turns * 255) % 256, np.uint8)
    return Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")


def timed(action: Callable[[int], object], batches: int) -> float:
    """Seconds of the processor for a clip."""
    start = time.process_time()
    for number in range(batches):
        action(number)
    return (time.process_time() - start) / (batches * BATCH)


def rates(ways: dict[str, tuple[Callable[[int], object], int]]) -> dict[str, float]:
    """Clips a second of each way, all ways in turns."""
    for action, _ in ways.values():
        action(0)
    rounds = [{name: timed(action, batches) for name, (action, batches) in ways.items()} for _ in range(ROUNDS)]
    return {name: 1 / statistics.median(one[name] for one in rounds) for name in ways}


def copy(target: np.ndarray, source: np.ndarray, first: int) -> None:
    """Copies a batch of clips."""
    target[first : first + BATCH] = source[first : first + BATCH]


def compare(files: Files, size: int, clips: int, official_clips: int) -> dict[str, float]:
    """Clips a second: the official way, ours, ours with the device's share left out, and a copy in memory."""
    spec, random = ClipSpec(frames=FRAMES, stride=1, size=size), np.random.default_rng(0)
    batches, official_batches = max(clips // BATCH, 1), max(official_clips // BATCH, 1)

    def official(_: int) -> list[torch.Tensor]:
        clips = [official_clip(files, size, random) for _ in range(BATCH)]
        return [torch.stack(parts) for parts in zip(*clips, strict=True)]

    augmented = ClipLoader(files.store, spec, batch_size=BATCH, augmentation=Augmentation())
    plain = ClipLoader(files.store, spec, batch_size=BATCH)
    left = ClipLoader(files.store, spec, batch_size=BATCH, augmentation=Augmentation()).dataset
    left.on_device = True
    block = np.zeros((64, FRAMES, files.side, files.side, 3), np.uint8)  # more than the caches hold
    target = np.zeros_like(block)
    streams = iter(augmented), iter(plain)
    ways: dict[str, tuple[Callable[[int], object], int]] = {
        "official": (official, official_batches),
        "plain": (lambda _: next(streams[1]), batches),
        "augmented": (lambda _: next(streams[0]), batches),
        "left to the device": (lambda k: left.__getitems__([(1, BATCH * k + i) for i in range(BATCH)]), batches),
        "memory copy": (lambda k: copy(target, block, BATCH * k % 64), 8),
    }
    return rates(ways)


def memory() -> dict[str, int]:
    """MiB that this process holds: all, and without the pages of mapped files, which the system takes back at will."""
    with open("/proc/self/status", encoding="ascii") as status:
        held = dict(line.split(":", 1) for line in status)
    return {name: int(held[label].split()[0]) // 1024 for name, label in (("rss", "VmRSS"), ("own", "RssAnon"))}


def memory_over(files: Files, clips: int) -> list[dict[str, int]]:
    """Memory at the start, in the middle and at the end; the start is after 100 clips."""
    loader = ClipLoader(
        files.store, ClipSpec(frames=FRAMES, size=files.side), batch_size=1, augmentation=Augmentation()
    )
    marks, held = (min(100, clips), clips // 2, clips), []
    for number, _ in enumerate(loader, 1):
        held += [memory()] * marks.count(number)
        if number == clips:
            return held
    raise AssertionError("a loader has no end")


def main(
    clips: int = 200, official_clips: int = 20, memory_clips: int = 10_000, episodes: int = 20, length: int = 60
) -> None:
    """Prints the table and the JSON line.

    Args:
        clips: of ours, a round.
        official_clips: of the official way, a round: it is slow.
        memory_clips: clips to read while memory is watched.
        episodes: of each dataset.
        length: frames of an episode.
    """
    torch.set_num_threads(1)
    cases = {
        "64 px, raw": (64, 64, length, np.uint8),
        "256 px, JPEG": (256, 256, length, np.uint8),
        "256 px JPEG to 64 px": (256, 64, length, np.uint8),
        "BAIR (64 px, 30 frames)": (64, 64, 30, np.int64),
    }
    goals = {
        ("64 px, raw", "augmented"): 15,
        ("256 px, JPEG", "augmented"): 6,
        ("64 px, raw", "left to the device"): 20,
    }
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        kept: dict[str, Files] = {}
        for number, (name, (side, size, frames, dtype)) in enumerate(cases.items()):
            make = partial(write, episodes=episodes, length=frames, side=side, dtype=dtype)
            kept[name] = make(Path(folder) / f"set-{number}")
            few = official_clips if size == 64 else official_clips // 4
            results[name] = compare(kept[name], size, clips if side == 64 else clips // 8, few)
            show(name, results[name], goals)
        held = memory_over(kept["64 px, raw"], memory_clips)
    print(f"\nmemory over {memory_clips} clips at 64 px (start, middle, end):")
    print(f"  all {[one['rss'] for one in held]} MiB, without mapped files {[one['own'] for one in held]} MiB")
    print(json.dumps(summary(results, goals, held) | {"processors": os.cpu_count(), "load": os.getloadavg()[0]}))


def show(name: str, rates: dict[str, float], goals: dict[tuple[str, str], int]) -> None:
    """Print one part of the table."""
    print(f"\n{name}\n  {'way':20s} {'clips/s':>10s} {'x official':>11s} {'goal':>5s} {'x copy time':>12s}")
    for way, rate in sorted(rates.items(), key=lambda item: item[1]):
        goal = goals.get((name, way), "")
        print(
            f"  {way:20s} {rate:10.1f} {rate / rates['official']:11.1f} {goal:>5} {rates['memory copy'] / rate:12.1f}"
        )


def summary(
    results: dict[str, dict[str, float]], goals: dict[tuple[str, str], int], held: list[dict[str, int]]
) -> dict[str, object]:
    """Return the values of the JSON line."""
    rounded = {name: {way: round(rate, 1) for way, rate in rates.items()} for name, rates in results.items()}
    reached = {
        f"{name}, {way}": {"times": round(results[name][way] / results[name]["official"], 1), "goal": goal}
        for (name, way), goal in goals.items()
    }
    return {"benchmark": "dataloader", "clips_per_cpu_second": rounded, "goals": reached, "memory_mib": held}


if __name__ == "__main__":
    tyro.cli(main)
