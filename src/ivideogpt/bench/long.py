"""Long imaginations beside what really happened: time and memory of a step, and how far it has drifted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ivideogpt.bench.measuring import process_memory, use_threads, wait
from ivideogpt.bench.subject import DEMO
from ivideogpt.core.config import check_at_least
from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.data.episodes import open_episodes, resized
from ivideogpt.evaluation.pusht import locate_agent
from ivideogpt.metrics.image import psnr
from ivideogpt.worldmodel.world_model import WorldModel

#: Steps of a block: speed and memory are told for each.
BLOCK = 100
#: Drift is told for these stretches: steps up to each of them, from the one before.
STRETCHES = (14, 100, 500)
#: Seed of the first recorded episode: none was trained on, and no other measurement uses them.
FIRST_SEED = 30_000
#: How far from the true agent, in px, an imagined one counts as right.
NEAR = 2.0


@dataclass(frozen=True, kw_only=True)
class LongOptions:
    """What is imagined.

    Attributes:
        source: a checkpoint.
        data: episodes of at least context and steps; None: recorded now, for the shipped model.
        steps: to imagine.
        periods: imagined frames between two encodings of the context, one run each; empty: what the model was trained
            on, its half and a quarter.
        episodes: imagined as one batch.
        device: "auto", "cpu", "cuda", ...
        threads: of the CPU; None: as PyTorch chooses.
        seed: of the draws.
    """

    source: str = DEMO
    data: Path | None = None
    steps: int = 1000
    periods: tuple[int, ...] = ()
    episodes: int = 2
    device: str = "auto"
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError where a number is too small."""
        check_at_least(self, steps=2, episodes=1)
        if self.threads is not None:
            check_at_least(self, threads=1)


class Truth(NamedTuple):
    """What really happened.

    Attributes:
        frames: uint8 ``[b c+steps 3 h w]``.
        actions: float32 ``[b steps a]`` in model units, or None.
        pusht: frames show PushT, so that the agent can be looked for.
    """

    frames: Tensor
    actions: Tensor | None
    pusht: bool


class Drift(NamedTuple):
    """Of a stretch of steps.

    Attributes:
        first, last: its steps, from 1.
        psnr: to the truth, mean in dB.
        still: PSNR of the truth to the last context frame: what standing still would give.
        missing: share of frames whose agent is nowhere, where the true one is seen; None outside of PushT.
        right: share of frames whose agent is within `NEAR` of the true one; None outside of PushT.
    """

    first: int
    last: int
    psnr: float
    still: float
    missing: float | None
    right: float | None


class LongRun(NamedTuple):
    """One imagination of all steps.

    Attributes:
        period: imagined frames between two encodings of the context.
        milliseconds: of a step, mean of each block.
        growth: bytes that the process grew by in each block after the first; empty where nobody says.
        drift: stretch by stretch.
        frames: the first episode's, float32 ``[steps 3 h w]``.
    """

    period: int
    milliseconds: tuple[float, ...]
    growth: tuple[int, ...]
    drift: tuple[Drift, ...]
    frames: Tensor

    @property
    def slowest(self) -> float:
        """How many times as long as in the fastest block a step of the slowest takes."""
        return max(self.milliseconds) / min(self.milliseconds)


def measure_long(options: LongOptions) -> tuple[list[LongRun], Truth]:
    """Imagines the same episodes once for each period.

    Raises:
        UserError: the checkpoint or the data cannot be read or do not fit, or a period is out of range.
    """
    with use_threads(options.threads):
        model = WorldModel.from_pretrained(options.source, device=options.device)
        trained = model.segment_frames()
        periods = options.periods or tuple(dict.fromkeys(max(1, trained // part) for part in (1, 2, 4)))
        for period in periods:
            model.segment_frames(period)
        truth = read_truth(model, options)
        return [run_long(model, truth, period, options.seed) for period in periods], truth


def read_truth(model: WorldModel, options: LongOptions) -> Truth:
    """Episodes long enough, from a file or store, or recorded in the simulator of the shipped model.

    Raises:
        UserError: there are too few, or no data were given for another model.
        MissingExtraError: the simulator is not installed.
    """
    wanted = model.context_frames + options.steps
    pusht = options.data is None
    if options.data is not None:
        episodes = [episode for episode in open_episodes(options.data) if len(episode) >= wanted]
        if len(episodes) < options.episodes:
            raise UserError(
                f"{options.data} has {len(episodes)} episodes of at least {wanted} frames; expected "
                f"{options.episodes}: give longer ones, or fewer --steps or --episodes"
            )
    elif options.source == DEMO:
        from ivideogpt.collect.episodes import collect_pusht  # brings the simulator

        episodes = list(collect_pusht(range(FIRST_SEED, FIRST_SEED + options.episodes), wanted))
    else:
        raise UserError(f"no episodes were given for {options.source}; add --data with some of {wanted} frames")
    if any(episode.actions is None for episode in episodes) and model.action_dim:
        raise UserError(
            f"{options.data} has episodes without actions; the model needs {model.action_dim} numbers a step"
        )
    return _truth(model, episodes[: options.episodes], wanted, pusht)


def _truth(model: WorldModel, episodes: Sequence[Episode], wanted: int, pusht: bool) -> Truth:
    cut = [resized(episode, model.tokenizer.config.resolution) for episode in episodes]
    frames = torch.stack([torch.from_numpy(episode.frames[:wanted].copy()) for episode in cut])
    frames = rearrange(frames, "b t h w c -> b t c h w")
    if not model.action_dim:
        return Truth(frames, None, pusht)
    rows = [np.asarray(episode.actions)[model.context_frames - 1 : wanted - 1] for episode in episodes]
    return Truth(frames, model.normalize_actions(torch.from_numpy(np.stack(rows)).float()), pusht)


def run_long(model: WorldModel, truth: Truth, period: int, seed: int) -> LongRun:
    """Steps through a whole imagination, looking at each frame before the next, as a person at the page does."""
    count = model.context_frames
    actions = None if truth.actions is None else truth.actions.to(model.device)
    session = model.session(truth.frames[:, :count].to(model.device), seed=seed, reanchor_every=period)
    session.warmup()
    seconds, memory, frames = [], [], []
    for index in range(truth.frames.shape[1] - count):
        wait(model.device)
        start = time.perf_counter()
        step = session.step(None if actions is None else actions[:, index])
        wait(model.device)
        seconds.append(time.perf_counter() - start)
        frames.append((step.frames.cpu() * 255).round().to(torch.uint8))
        if (index + 1) % BLOCK == 0:
            memory.append(process_memory("VmRSS"))
    imagined = torch.stack(frames, dim=1)
    growth = [after - before for before, after in zip(memory, memory[1:], strict=False) if before and after]
    return LongRun(
        period,
        tuple(1e3 * float(np.mean(block)) for block in blocks(seconds)),
        tuple(growth),
        tuple(drift(truth.frames[:, count:], imagined, truth.frames[:, count - 1], truth.pusht)),
        imagined[0].float() / 255,
    )


def blocks(seconds: Sequence[float]) -> list[Sequence[float]]:
    """Whole blocks of steps; all steps where there is no whole one."""
    whole = len(seconds) // BLOCK
    return [seconds[i * BLOCK : (i + 1) * BLOCK] for i in range(whole)] or [seconds]


def drift(true: Tensor, imagined: Tensor, last: Tensor, pusht: bool) -> list[Drift]:
    """How far imagined frames uint8 ``[b t 3 h w]`` are from the true ones; ``last``: the context's, ``[b 3 h w]``."""
    length, found = true.shape[1], []
    ends = sorted({min(end, length) for end in (*STRETCHES, length)})
    for start, stop in zip([0, *ends], ends, strict=False):
        real, made = (x[:, start:stop].float() / 255 for x in (true, imagined))
        still = (last[:, None].float() / 255).expand_as(real)
        missing = right = None
        if pusht:
            one, other = locate_agent(real), locate_agent(made)
            seen = one.present
            missing = float((~other.present)[seen].float().mean())
            near = other.present & ((one.xy - other.xy).norm(dim=-1) <= NEAR)
            right = float(near[seen].float().mean())
        sides = (float(psnr(made, real).mean()), float(psnr(still, real).mean()))
        found.append(Drift(start + 1, stop, *sides, missing, right))
    return found
