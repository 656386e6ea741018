"""Long rollouts beside the recorded future: seconds and memory of a step, and the drift of the pictures.

.venv/bin/python benchmarks/long.py [CHECKPOINT] [--data STORE] [--steps 1000] [--out benchmarks/results]
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import tyro
from _measuring import process_memory, reset_peak_memory, use_threads, wait
from _subject import DEMO
from einops import rearrange
from torch import Tensor

from ivideogpt.commands.output import check_folder, print_json, print_table
from ivideogpt.core.config import check_at_least
from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import write_text_atomic
from ivideogpt.core.run import choose_device
from ivideogpt.data.episode_files import open_episodes, resized
from ivideogpt.data.render import to_uint8, write_strip
from ivideogpt.envs.registry import ENVIRONMENTS
from ivideogpt.evaluation.pusht_metrics import IMAGE_SIZE, locate_block, pusht_measures
from ivideogpt.metrics.image import psnr
from ivideogpt.worldmodel.world_model import WorldModel

#: Steps of a block; speed and memory are printed for each.
BLOCK = 100
#: Ends of the stretches of steps whose drift is printed.
STRETCHES = (14, 100, 500)
#: Seed of the first recorded episode; no training and no other measurement uses these seeds.
FIRST_SEED = 30_000
#: Largest distance of an imagined agent that counts as right, in px.
NEAR = 2.0
#: Pictures of a rollout in the strip.
_PICTURES = 16


@dataclass(frozen=True, kw_only=True)
class LongOptions:
    """Measures a long rollout: seconds of a step, memory, and drift from the recorded future.

    Attributes:
        source: a checkpoint, or the name of a shipped model.
        data: episodes of at least context and steps, in a store or a file; default: recorded now, for the shipped
            model.
        steps: to imagine.
        periods: imagined frames between two encodings of the context, one run each; default: as in training, half
            and a quarter of that.
        episodes: imagined as one batch.
        device: auto, cpu, cuda, ...
        threads: of the CPU; default: as PyTorch chooses.
        seed: of the draws.
        out: a folder for the figures, in a file named by the time, and for pictures.
    """

    source: Annotated[str, tyro.conf.Positional] = DEMO
    data: Path | None = None
    steps: int = 1000
    periods: tuple[int, ...] = ()
    episodes: int = 2
    device: str = "auto"
    threads: int | None = None
    seed: int = 0
    out: Path | None = None

    def __post_init__(self) -> None:
        """Check the numbers; raise UserError where one is too small."""
        check_at_least(self, steps=2, episodes=1)
        if self.threads is not None:
            check_at_least(self, threads=1)


class Recording(NamedTuple):
    """The recorded episodes.

    Attributes:
        frames: uint8 ``[b c+steps 3 h w]``, context first.
        actions: float32 ``[b steps a]`` in model units, or None.
        pusht: the frames show PushT, so that agent and block can be located.
    """

    frames: Tensor
    actions: Tensor | None
    pusht: bool


class Drift(NamedTuple):
    """Errors of a stretch of steps; the last five are None outside of PushT.

    Attributes:
        first, last: its steps, from 1.
        psnr: to the truth, mean in dB.
        still: PSNR of a copy of the last context frame.
        missing: share of frames without an agent, where the true one is visible.
        right: share of frames whose agent is within `NEAR` of the true one.
        block_missing: share of frames without a block. PSNR rises without it: a wrong block costs twice.
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
    """One rollout of all steps.

    Attributes:
        period: imagined frames between two encodings of the context.
        milliseconds: of a step, mean of each block.
        growth: bytes by which the memory in use (of the GPU, else of the process) grew in each block after the first;
            empty where the system does not say.
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
        """Milliseconds of a step in the slowest block over those in the fastest."""
        return max(self.milliseconds) / min(self.milliseconds)


def measure_long(options: LongOptions) -> tuple[list[LongRun], Recording]:
    """Imagine the same episodes once for each period.

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


def read_truth(model: WorldModel, options: LongOptions) -> Recording:
    """Read episodes that are long enough, or record them in the simulator of the shipped model.

    Raises:
        UserError: there are too few, they do not fit, or no data were given for another model.
        MissingExtraError: the simulator is not installed.
    """
    stride, size = model.config.frame_stride, model.tokenizer.config.resolution
    # The goal is the last frame once more.
    used = model.context_frames - model.config.goal_conditioned + options.steps
    length = (used - 1) * stride + 1
    if options.data is not None:
        episodes = [episode for episode in open_episodes(options.data, size=size) if len(episode) >= length]
        if len(episodes) < options.episodes:
            raise UserError(
                f"{options.data} has {len(episodes)} episodes of at least {length} frames; expected "
                f"{options.episodes}: give longer ones, or fewer --steps or --episodes"
            )
    elif options.source == DEMO:
        from ivideogpt.envs.record.pusht_episodes import collect_pusht  # brings the simulator

        episodes = list(collect_pusht(range(FIRST_SEED, FIRST_SEED + options.episodes), length))
    else:
        raise UserError(f"no episodes were given for {options.source}; add --data with some of {length} frames")
    episodes = [resized(episode.window(0, length), size) for episode in episodes[: options.episodes]]
    pusht = all(episode.meta.get("environment") == ENVIRONMENTS["pusht"].id for episode in episodes)
    frames = torch.stack([torch.from_numpy(episode.frames[::stride].copy()) for episode in episodes])
    frames = rearrange(frames, "b t h w c -> b t c h w")
    if model.config.goal_conditioned:
        frames = torch.cat([frames[:, -1:], frames], dim=1)
    return Recording(frames, _actions(model, episodes, stride, options), pusht and size == IMAGE_SIZE)


def _actions(model: WorldModel, episodes: Sequence[Episode], stride: int, options: LongOptions) -> Tensor | None:
    """Return the actions from the last context frame on, ``[b steps a]`` in model units."""
    if not model.action_dim:
        return None
    rows = [torch.from_numpy(episode.actions[::stride].copy()) for episode in episodes if episode.actions is not None]
    if len(rows) < len(episodes):
        raise UserError(
            f"{options.data} has episodes without actions; the model needs {model.action_dim} numbers a step"
        )
    return model.normalize_actions(torch.stack(rows)[:, -1 - options.steps : -1].float())


def run_long(model: WorldModel, truth: Recording, period: int, seed: int) -> LongRun:
    """Imagine step by step, each frame decoded before the next, as at the page."""
    count = model.context_frames
    actions = None if truth.actions is None else truth.actions.to(model.device)
    # Written over frame by frame, so that memory grows by what the session keeps and by nothing else.
    imagined = truth.frames[:, count:].clone()
    reset_peak_memory(model.device)  # memory that an earlier run has freed would hide the growth of this one
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
    """Split into whole blocks of steps; one block where there are too few."""
    whole = len(seconds) // BLOCK
    return [seconds[i * BLOCK : (i + 1) * BLOCK] for i in range(whole)] or [seconds]


def drift(true: Tensor, imagined: Tensor, last: Tensor, pusht: bool) -> list[Drift]:
    """Return the errors of imagined frames uint8 ``[b t 3 h w]``; ``last`` is the last context frame ``[b 3 h w]``."""
    ends = sorted({min(end, true.shape[1]) for end in (*STRETCHES, true.shape[1])})
    stretches = []
    for start, stop in pairwise([0, *ends]):
        real, made = (x[:, start:stop].float() / 255 for x in (true, imagined))
        still = (last[:, None].float() / 255).expand_as(real)
        sides = (float(psnr(x, real).mean()) for x in (made, still))
        stretches.append(Drift(start + 1, stop, *sides, *(_of_pusht(real, made, still) if pusht else [None] * 5)))
    return stretches


def _of_pusht(real: Tensor, made: Tensor, still: Tensor) -> list[float]:
    """Return agent missing, agent right, block missing, block error, and block error of a copy."""
    measures, true_block = pusht_measures(real, made, near=NEAR), locate_block(real)
    missing = (~locate_block(made).present).float().mean()
    distances = [(locate_block(x).xy - true_block.xy).norm(dim=-1).mean() for x in (made, still)]
    return [measures["agent_missing"], measures["agent_near"], *map(float, (missing, *distances))]


# Output


def long_summary(options: LongOptions, runs: Sequence[LongRun]) -> dict[str, Any]:
    """Return the values of the JSON line; the first figures are those of the first run."""
    return {
        "benchmark": "long",
        "milliseconds_per_step": statistics.mean(runs[0].milliseconds),
        "slowest_to_fastest_block": runs[0].slowest,
        "source": options.source,
        "data": None if options.data is None else str(options.data),
        "episodes": options.episodes,
        "steps": options.steps,
        "seed": options.seed,
        "runs": {
            str(run.period): {
                "milliseconds_per_step": run.milliseconds,
                "slowest_to_fastest_block": run.slowest,
                "growth_mb": [growth / 1e6 for growth in run.growth],
                "drift": [stretch._asdict() for stretch in run.drift],
            }
            for run in runs
        },
        "device": str(choose_device(options.device)),
        "threads": options.threads or torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _show_long(runs: Sequence[LongRun]) -> None:
    for run in runs:
        first, last = run.milliseconds[0], run.milliseconds[-1]
        growth = f", {statistics.median(run.growth) / 1e6:.1f} MB more each" if run.growth else ""
        block = min(BLOCK, run.drift[-1].last)
        print(
            f"a new context every {run.period} frames: {first:.1f} ms a step in the first {block}, {last:.1f} in the "
            f"last, slowest to fastest {run.slowest:.2f}{growth}"
        )
        lines: list[list[str | float]] = [
            [
                f"  {stretch.first} to {stretch.last}",
                stretch.psnr,
                stretch.still,
                *(
                    "-" if share is None else f"{share:.0%}"
                    for share in (stretch.missing, stretch.right, stretch.block_missing)
                ),
                *("-" if distance is None else distance for distance in (stretch.block, stretch.block_still)),
            ]
            for stretch in run.drift
        ]
        headings = ["  steps", "PSNR", "standing still", "agent missing", f"within {NEAR:.0f} px"]
        print_table([*headings, "block missing", "px away", "standing still"], lines)


def main(options: LongOptions) -> None:
    """Print the tables and the JSON line."""
    if options.out is not None:
        check_folder(options.out)
    runs, truth = measure_long(options)
    _show_long(runs)
    values = long_summary(options, runs)
    if options.out is not None:
        file = options.out / f"long-{datetime.now():%Y-%m-%d-%H%M%S}.json"
        write_text_atomic(file, json.dumps(values, indent=2) + "\n")
        every = max(1, options.steps // _PICTURES)
        rows = {"true": truth.frames[0, -options.steps :].float() / 255}
        rows |= {f"{run.period} a context": run.frames for run in runs}
        pictures = {label: to_uint8(frames[every - 1 :: every]) for label, frames in rows.items()}
        write_strip(file.with_suffix(".png"), pictures, title=f"A picture every {every} steps")
        print(file, file.with_suffix(".png"), sep="\n")
    print_json(values)


if __name__ == "__main__":
    try:
        main(tyro.cli(LongOptions))
    except UserError as error:
        print(f"benchmarks/long.py: {error}", file=sys.stderr)
        sys.exit(2)
