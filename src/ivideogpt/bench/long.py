"""Long imaginations beside what really happened: time and memory of a step, and how far it has drifted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ivideogpt.bench.measuring import forget_peak, process_memory, use_threads, wait
from ivideogpt.bench.subject import DEMO
from ivideogpt.core.config import check_at_least
from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.data.episode_files import open_episodes, resized
from ivideogpt.envs.registry import ENVIRONMENTS
from ivideogpt.evaluation.pusht_metrics import IMAGE_SIZE, locate_block, pusht_measures
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
        frames: uint8 ``[b c+steps 3 h w]``, context first.
        actions: float32 ``[b steps a]`` in model units, or None.
        pusht: frames show PushT, so that agent and block can be looked for.
    """

    frames: Tensor
    actions: Tensor | None
    pusht: bool


class Drift(NamedTuple):
    """Of a stretch of steps; the last five are None outside of PushT.

    Attributes:
        first, last: its steps, from 1.
        psnr: to the truth, mean in dB.
        still: PSNR of the truth to the last context frame: what standing still would give.
        missing: share of frames whose agent is nowhere, where the true one is seen.
        right: share of frames whose agent is within `NEAR` of the true one.
        block_missing: share of frames whose block is nowhere. Without it PSNR rises: a wrong block costs twice.
        block: mean distance of the block's centre from the true one, in px; a missing one counts from the middle.
        block_still: the same of a block that stays where the last context frame has it.
    """

    first: int
    last: int
    psnr: float
    still: float
    missing: float | None
    right: float | None
    block_missing: float | None
    block: float | None
    block_still: float | None


class LongRun(NamedTuple):
    """One imagination of all steps.

    Attributes:
        period: imagined frames between two encodings of the context.
        milliseconds: of a step, mean of each block.
        growth: bytes by which the memory in use (of the GPU, else of the process) grew in each block after the first;
            empty where nobody says.
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
        UserError: there are too few, they do not fit, or no data were given for another model.
        MissingExtraError: the simulator is not installed.
    """
    stride, size = model.config.frame_stride, model.tokenizer.config.resolution
    # The goal is the last frame once more.
    used = model.context_frames - model.config.goal_conditioned + options.steps
    wanted = (used - 1) * stride + 1
    if options.data is not None:
        episodes = [episode for episode in open_episodes(options.data, size=size) if len(episode) >= wanted]
        if len(episodes) < options.episodes:
            raise UserError(
                f"{options.data} has {len(episodes)} episodes of at least {wanted} frames; expected "
                f"{options.episodes}: give longer ones, or fewer --steps or --episodes"
            )
    elif options.source == DEMO:
        from ivideogpt.envs.record.pusht_episodes import collect_pusht  # brings the simulator

        episodes = list(collect_pusht(range(FIRST_SEED, FIRST_SEED + options.episodes), wanted))
    else:
        raise UserError(f"no episodes were given for {options.source}; add --data with some of {wanted} frames")
    episodes = [resized(episode.window(0, wanted), size) for episode in episodes[: options.episodes]]
    known = all(episode.meta.get("environment") == ENVIRONMENTS["pusht"].id for episode in episodes)
    frames = torch.stack([torch.from_numpy(episode.frames[::stride].copy()) for episode in episodes])
    frames = rearrange(frames, "b t h w c -> b t c h w")
    if model.config.goal_conditioned:
        frames = torch.cat([frames[:, -1:], frames], dim=1)
    return Truth(frames, _actions(model, episodes, stride, options), known and size == IMAGE_SIZE)


def _actions(model: WorldModel, episodes: Sequence[Episode], stride: int, options: LongOptions) -> Tensor | None:
    """Those that lead from the last context frame on, ``[b steps a]`` in model units."""
    if not model.action_dim:
        return None
    rows = [torch.from_numpy(episode.actions[::stride].copy()) for episode in episodes if episode.actions is not None]
    if len(rows) < len(episodes):
        raise UserError(
            f"{options.data} has episodes without actions; the model needs {model.action_dim} numbers a step"
        )
    return model.normalize_actions(torch.stack(rows)[:, -1 - options.steps : -1].float())


def run_long(model: WorldModel, truth: Truth, period: int, seed: int) -> LongRun:
    """Steps through a whole imagination, looking at each frame before the next, as a person at the page does."""
    count = model.context_frames
    actions = None if truth.actions is None else truth.actions.to(model.device)
    # Written over frame by frame, so that memory grows by what the session keeps and by nothing else.
    imagined = truth.frames[:, count:].clone()
    forget_peak(model.device)  # what an earlier run has freed would hide the growth of this one
    session = model.session(truth.frames[:, :count].to(model.device), seed=seed, reanchor_every=period)
    session.warmup()
    seconds, memory = [], []
    for index in range(imagined.shape[1]):
        wait(model.device)
        start = time.perf_counter()
        step = session.step(None if actions is None else actions[:, index])
        wait(model.device)
        seconds.append(time.perf_counter() - start)
        imagined[:, index] = (step.frames.cpu() * 255).round().to(torch.uint8)
        if (index + 1) % BLOCK == 0:
            memory.append(_memory_in_use(model.device))
    growth = [after - before for before, after in pairwise(memory) if before is not None and after is not None]
    return LongRun(
        period,
        tuple(statistics.mean(block) * 1e3 for block in blocks(seconds)),
        tuple(growth),
        tuple(drift(truth.frames[:, count:], imagined, truth.frames[:, count - 1], truth.pusht)),
        imagined[0].float() / 255,
    )


def _memory_in_use(device: torch.device) -> int | None:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else process_memory("VmRSS")


def blocks(seconds: Sequence[float]) -> list[Sequence[float]]:
    """Whole blocks of steps; all steps where there is no whole one."""
    whole = len(seconds) // BLOCK
    return [seconds[i * BLOCK : (i + 1) * BLOCK] for i in range(whole)] or [seconds]


def drift(true: Tensor, imagined: Tensor, last: Tensor, pusht: bool) -> list[Drift]:
    """How far imagined frames uint8 ``[b t 3 h w]`` are from the true ones; ``last``: the context's, ``[b 3 h w]``."""
    ends = sorted({min(end, true.shape[1]) for end in (*STRETCHES, true.shape[1])})
    found = []
    for start, stop in pairwise([0, *ends]):
        real, made = (x[:, start:stop].float() / 255 for x in (true, imagined))
        still = (last[:, None].float() / 255).expand_as(real)
        sides = (float(psnr(x, real).mean()) for x in (made, still))
        found.append(Drift(start + 1, stop, *sides, *(_of_pusht(real, made, still) if pusht else [None] * 5)))
    return found


def _of_pusht(real: Tensor, made: Tensor, still: Tensor) -> list[float]:
    """Agent missing and right; block missing, how far it is away, and how far if it had not moved."""
    measures, true_block = pusht_measures(real, made, near=NEAR), locate_block(real)
    missing = (~locate_block(made).present).float().mean()
    far = [(locate_block(x).xy - true_block.xy).norm(dim=-1).mean() for x in (made, still)]
    return [measures["agent_missing"], measures["agent_near"], *map(float, (missing, *far))]
