"""How fast a person can step a model: one row, one frame at a time, decoded and looked at.

    .venv/bin/python benchmarks/stepping.py [CHECKPOINT] [--frames 30] [--threads 2]

Compares, in one process, on an episode that ships with the checkpoint (noise without one, on which drafts fail): our
session with and without drafts, and a rollout that reads its whole prefix again for each frame, as the official
action-conditioned generation does (with our transformer, token by token, so that only the kept cache differs). The
limit is the multiplications of one frame's positions in a product as large as this machine likes them. A table, then
one JSON line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Annotated

import torch
import tyro

from ivideogpt import Sampling, WorldModel
from ivideogpt.core.checkpoint import resolve_checkpoint
from ivideogpt.data.episodes import load_episodes
from ivideogpt.worldmodel import engine
from ivideogpt.worldmodel.shipped import EPISODES_FILE, SHIPPED


def seconds_a_frame(action: Callable[[], object], frames: int) -> float:
    """Median seconds of ``frames`` calls, after two that do not count."""
    times = []
    for _ in range(frames + 2):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return sorted(times[2:])[frames // 2]


def products_per_second(size: int = 1024) -> float:
    """Multiplications a second in a large float32 matrix product."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    return size**3 / seconds_a_frame(lambda: a @ b, 20)


def start_of_an_episode(checkpoint: str, model: WorldModel, seed: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Context ``[1 c 3 h w]`` and, with actions, those that follow ``[1 t a]`` in model units."""
    file = resolve_checkpoint(checkpoint, shipped=SHIPPED) / EPISODES_FILE
    count, size = model.context_frames, model.tokenizer.config.resolution
    if not file.is_file():
        context = torch.rand(1, count, 3, size, size, generator=torch.Generator().manual_seed(seed))
        return context, torch.zeros(1, 1, model.action_dim) if model.action_dim else None
    episode = load_episodes(file)[0]
    context = torch.from_numpy(episode.frames[:count].copy()).permute(0, 3, 1, 2)[None]
    if episode.actions is None:
        return context, None
    return context, model.normalize_actions(torch.from_numpy(episode.actions[count - 1 : -1].copy()))[None]


@torch.inference_mode()
def main(
    checkpoint: Annotated[str, tyro.conf.Positional] = "pusht-64", *, frames: int = 30, threads: int = 2, seed: int = 0
) -> None:
    """Measures a checkpoint at batch 1 on the CPU."""
    torch.set_num_threads(threads)
    model = WorldModel.from_pretrained(checkpoint)
    context, actions = start_of_an_episode(checkpoint, model, seed)
    action = None if actions is None else actions[:, 0]
    sampling = Sampling()

    def play(advance: str) -> float:
        session = model.session(context, sampling=sampling, seed=seed)
        count = 1 if actions is None else actions.shape[1]

        def step() -> None:
            getattr(session, advance)(None if actions is None else actions[:, session.steps % count])

        return seconds_a_frame(step, frames)

    whole, tokens = play("step"), play("advance")
    rows, engine.DRAFT_ROWS = engine.DRAFT_ROWS, 0
    single = play("advance")

    codes, _ = model.tokenizer.encode_context(context.float() / 255 if context.dtype == torch.uint8 else context)
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
    engine.DRAFT_ROWS = rows
    weights = sum(p.numel() for p in model.transformer.layers.parameters())
    limit = model.layout.frame_length * weights / products_per_second()
    table = {
        "session.step": whole,
        "of it: tokens": tokens,
        "tokens one by one": single,
        "reading the prefix again, tokens": reread,
        "limit: the multiplications alone": limit,
    }
    print(f"{checkpoint}, batch 1, {threads} threads, {model.layout.frame_length} positions a frame")
    for name, value in table.items():
        print(f"{name:34s} {1000 * value:8.1f} ms a frame {1 / value:8.1f} frames/s")
    figures = {
        "frames_per_second": 1 / whole,
        "ratio_to_one_by_one": single / tokens,
        "ratio_to_rereading": reread / tokens,
        "share_of_limit": limit / tokens,
        "threads": threads,
    }
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    tyro.cli(main)
