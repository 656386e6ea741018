"""Compare token models on the same held-out clips: the differences of each clip, with a 95 % interval.

    .venv/bin/python benchmarks/compare.py pusht-64-tokens runs/posttrain/pusht runs/supervised --seeds 20000:20064
    .venv/bin/python benchmarks/compare.py runs/start runs/posttrain/mine --data datasets/mine --measures perceptual mae

Every model imagines the same clips from the same random numbers. The measures are the rewards of post-training, so that
higher is better; an error is negative. docs/post-training.md lists them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import torch
import tyro
from torch import Tensor

from ivideogpt.commands.output import print_json, print_table
from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.data.store.reader import EpisodeStore
from ivideogpt.evaluation.held_out import HeldOut, read_clips, record_clips
from ivideogpt.evaluation.intervals import Bootstrap
from ivideogpt.evaluation.protocols import find_protocol, settle
from ivideogpt.posttrain.rewards import RewardSum, parse_reward
from ivideogpt.posttrain.rollouts import FutureSampler, Prompts
from ivideogpt.worldmodel.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Compares models on the same held-out clips.

    Attributes:
        checkpoints: the first is what the others are compared with.
        data: an episode store with a split test or val; default: fresh episodes of PushT.
        seeds: of the fresh episodes, first:stop.
        measures: names of rewards.
        samples: futures of each clip, averaged.
        clips: at most so many clips of a store.
        temperature: of the samples; default: the checkpoint's.
        rows_at_once: futures imagined together.
    """

    checkpoints: Annotated[tuple[str, ...], tyro.conf.Positional]
    data: str | None = None
    seeds: str = "20000:20064"
    measures: tuple[str, ...] = ("perceptual", "mae", "block_position", "block_angle", "block_shape", "repetition")
    samples: int = 1
    clips: int | None = None
    temperature: float | None = None
    rows_at_once: int = 32

    def __post_init__(self) -> None:
        """Check the options; raise UserError where one is out of range."""
        check_at_least(self, samples=1, rows_at_once=1)
        if len(self.checkpoints) < 2:
            raise UserError(f"{len(self.checkpoints)} checkpoints were given; expected 2 or more to compare")


def held_out_clips(options: CompareOptions, model: WorldModel) -> HeldOut:
    """Read or record the clips."""
    if options.data is None:
        return record_clips(model, settle(find_protocol("pusht"), model), seeds=options.seeds)
    store = EpisodeStore(options.data)
    return read_clips(model, store, settle(find_protocol("single"), model), count=options.clips)


def clip_values(options: CompareOptions, model: WorldModel, held_out: HeldOut) -> dict[str, Tensor]:
    """Return the mean of each measure over the futures of each clip, ``[n]``."""
    clips, count = held_out.clips, model.context_frames
    reward = RewardSum(parse_reward("+".join(options.measures)), network="alex")
    frames = clips.frames.float() / 255
    actions = model.normalize_actions(clips.actions[:, count - 1 : -1]) if clips.actions is not None else None
    sampling = model.config.sampling.override(temperature=options.temperature)
    sampler = FutureSampler(model, sampling, options.samples, options.rows_at_once)
    parts: dict[str, list[Tensor]] = {name: [] for name in options.measures}
    for _, rollouts in sampler(Prompts(frames, actions), list(range(len(clips)))):
        _, values = reward(rollouts)
        for name, value in values.items():
            parts[name].append(value.mean(dim=1).unflatten(0, (-1, options.samples)).mean(dim=1))
    return {name: torch.cat(values) for name, values in parts.items()}


def main(options: CompareOptions) -> None:
    """Print a table for each model, and the JSON line."""
    models = [WorldModel.from_pretrained(name) for name in options.checkpoints]
    held_out = held_out_clips(options, models[0])
    values = [clip_values(options, model, held_out) for model in models]
    bootstrap, result = Bootstrap(len(held_out.clips)), {}
    print(f"{len(held_out.clips)} clips of {held_out.dataset}, {options.samples} futures each; higher is better")
    for checkpoint, of_model in zip(options.checkpoints, values, strict=True):
        rows = []
        for name, value in of_model.items():
            change = bootstrap.mean(value - values[0][name])
            rows.append((name, *(f"{x:.5f}" for x in (float(value.mean()), change.value, change.low, change.high))))
        print(f"\n{checkpoint}")
        print_table(("measure", "mean", f"minus {options.checkpoints[0]}", "95 % from", "to"), rows)
        result[checkpoint] = {name: float(value.mean()) for name, value in of_model.items()}
    print()
    print_json({"clips": len(held_out.clips), "models": result})


if __name__ == "__main__":
    try:
        main(tyro.cli(CompareOptions))
    except UserError as error:
        print(f"benchmarks/compare.py: {error}", file=sys.stderr)
        sys.exit(2)
