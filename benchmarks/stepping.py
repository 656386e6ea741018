"""How fast a person can step a model: one row, one frame at a time, decoded and looked at.

    .venv/bin/python benchmarks/stepping.py [CHECKPOINT] [--frames 30] [--threads 2]

Compares, in one process: our session; and a rollout that reads its whole prefix again for each frame, as the official
action-conditioned generation does (with our transformer, so that only the kept cache differs). The limit is reading the
weights once a token at the speed at which this machine reads that much memory. A table, then one JSON line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Annotated

import torch
import tyro

from ivideogpt import Sampling, WorldModel
from ivideogpt.worldmodel import engine


def seconds_a_frame(action: Callable[[], object], frames: int) -> float:
    """Median seconds of ``frames`` calls, after two that do not count."""
    times = []
    for _ in range(frames + 2):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return sorted(times[2:])[frames // 2]


def read_bytes_per_second(size: int) -> float:
    """Speed at which ``size`` bytes are read again and again by one sum."""
    block = torch.ones(size // 4)
    return 4 * block.numel() / seconds_a_frame(lambda: block.sum(), 50)


@torch.inference_mode()
def main(
    checkpoint: Annotated[str, tyro.conf.Positional] = "pusht-64", *, frames: int = 30, threads: int = 2, seed: int = 0
) -> None:
    """Measures a checkpoint at batch 1 on the CPU."""
    torch.set_num_threads(threads)
    model = WorldModel.from_pretrained(checkpoint)
    size = model.tokenizer.config.resolution
    context = torch.rand(1, model.context_frames, 3, size, size, generator=torch.Generator().manual_seed(seed))
    action = torch.zeros(1, model.action_dim) if model.action_dim else None
    sampling = Sampling()

    session = model.session(context, sampling=sampling, seed=seed)
    whole = seconds_a_frame(lambda: session.step(action), frames)
    tokens = seconds_a_frame(lambda: session.advance(action), frames)

    codes, _ = model.tokenizer.encode_context(context)
    separators = torch.full((1,), model.layout.dynamics_separator)
    ids = torch.full((1, model.layout.dynamics_tokens), model.layout.dynamics_ids.start)
    uniforms = torch.rand(1, model.layout.dynamics_tokens)
    past = iter(range(10**9))

    def again() -> None:
        cache = engine.prefill(model, codes, model.segment_frames())
        for _ in range(next(past) % model.segment_frames()):
            engine.read_frame(model, cache, separators, ids, action, sampling)
        engine.decode_frame(model, cache, separators, action, sampling, uniforms)

    reread = seconds_a_frame(again, frames)
    weights = sum(p.numel() * p.element_size() for p in model.transformer.layers.parameters())
    limit = model.layout.frame_length * weights / read_bytes_per_second(weights)
    rows = (("session.step", whole), ("of it: tokens", tokens), ("reading the prefix again, tokens", reread))
    print(f"{checkpoint}, batch 1, {threads} threads, {model.layout.frame_length} positions a frame")
    for name, value in (*rows, ("limit: weights read once a token", limit)):
        print(f"{name:34s} {1000 * value:8.1f} ms a frame {1 / value:8.1f} frames/s")
    figures = {
        "frames_per_second": 1 / whole,
        "ratio_to_rereading": reread / tokens,
        "share_of_limit": limit / tokens,
        "threads": threads,
    }
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    tyro.cli(main)
