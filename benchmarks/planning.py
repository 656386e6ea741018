"""Speed of one decision of a planner: the official interface for VP2, written again, and ours, in one run.

    .venv/bin/python benchmarks/planning.py [CHECKPOINT | official-64] [--candidates 200] [--out benchmarks/results]

A decision of MPPI imagines 200 candidates of 10 steps and rates them by their pixels. Both ways draw the tokens of the
same model. The baseline needs transformers (extra dev).
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated

import torch
import tyro
from _measuring import in_new_process, peak_memory, process_memory, reset_peak_memory, use_threads, wait
from _official_rollout import LlamaRollout
from _subject import RolloutOptions, new_subject, sampling_for
from einops import reduce
from torch import Tensor

from ivideogpt.commands.output import check_folder, print_json, print_table
from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import write_text_atomic
from ivideogpt.planning.models import ImaginedFutures
from ivideogpt.worldmodel.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class DecisionOptions:
    """Measures a decision of a planner beside the official interface for VP2.

    Attributes:
        source: a checkpoint, the name of a shipped token model, or official-64: the published shape with random
            weights.
        candidates: action sequences of a decision.
        horizon: steps of a candidate.
        device: auto, cpu, cuda, ...
        rounds: timed repetitions in turns; the figures are medians.
        threads: of the CPU; default: as PyTorch chooses.
        many: candidates of a second decision of ours, whose memory is measured; 0: none.
        baseline: measure the official way too.
        out: a folder for a file with the figures, named by the time.
    """

    source: Annotated[str, tyro.conf.Positional] = "pusht-64-tokens"
    candidates: int = 200
    horizon: int = 10
    device: str = "auto"
    rounds: int = 1
    threads: int | None = None
    many: int = 800
    baseline: bool = True
    out: Path | None = None

    def __post_init__(self) -> None:
        """Check the numbers; raise UserError where one is too small."""
        check_at_least(self, candidates=2, horizon=1, rounds=1, many=0)


def decisions(options: DecisionOptions) -> tuple[WorldModel, dict[str, Callable[[int], Tensor]]]:
    """Return the model, and a decision of each way: from a number of candidates to the frames ``[k f c h w]``."""
    subject = new_subject(RolloutOptions(source=options.source, horizon=options.horizon, device=options.device))
    model, context = subject.model, subject.context
    sampling = sampling_for(model)
    generator = torch.Generator().manual_seed(0)

    def candidates(count: int) -> Tensor:
        shape = (count, options.horizon, model.action_dim)
        return torch.rand(shape, generator=generator).mul(2).sub(1).to(model.device)

    def ours(count: int) -> Tensor:
        root = ImaginedFutures(model, sampling=sampling).root_of(context)
        return root.rollout(candidates(count)).frames

    ways: dict[str, Callable[[int], Tensor]] = {"ours": ours}
    if options.baseline:
        official = LlamaRollout(model)
        ways = {"official": lambda count: official.planned(context, candidates(count), sampling), **ways}
    return model, ways


def score(frames: Tensor) -> Tensor:
    """Return VP2's pixel objective ``[k]``; the goal is the first candidate's last frame."""
    return -reduce((frames - frames[:1, -1:]) ** 2, "k t c h w -> k", "sum")


def measure(options: DecisionOptions) -> dict[str, dict[str, float]]:
    """Return wall-clock and CPU seconds of a decision of each way; the ways take turns."""
    model, ways = decisions(options)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for decide in ways.values():
        score(decide(2))  # what is made once
    for _ in range(options.rounds):
        for name, decide in ways.items():
            wait(model.device)
            start, cpu = time.perf_counter(), time.process_time()
            score(decide(options.candidates))
            wait(model.device)
            seconds[name].append((time.perf_counter() - start, time.process_time() - cpu))
    return {
        name: {
            "seconds": statistics.median(wall for wall, _ in values),
            "cpu_seconds": statistics.median(cpu for _, cpu in values),
        }
        for name, values in seconds.items()
    }


def memory_of(options: DecisionOptions, count: int) -> int | None:
    """Return the peak bytes of our decision of ``count`` candidates, without the model."""
    model, ways = decisions(options)
    before = process_memory("VmRSS")
    reset_peak_memory(model.device)
    score(ways["ours"](count))
    return peak_memory(model.device, before)


def main(options: DecisionOptions) -> None:
    """Measure, print a table and one line of JSON."""
    if options.out is not None:
        check_folder(options.out)
    with use_threads(options.threads):
        figures = measure(options)
    ours = figures["ours"]
    rows = [
        (name, values["seconds"], values["cpu_seconds"], values["seconds"] / ours["seconds"])
        for name, values in figures.items()
    ]
    print_table(("decision", "s", "CPU s", "times ours"), rows)
    values: dict[str, object] = {
        "source": options.source,
        "candidates": options.candidates,
        "horizon": options.horizon,
        "threads": options.threads or torch.get_num_threads(),
        **{f"{name}_{key}": value for name, numbers in figures.items() for key, value in numbers.items()},
    }
    if "official" in figures:
        values["ratio"] = figures["official"]["seconds"] / ours["seconds"]
        values["cpu_ratio"] = figures["official"]["cpu_seconds"] / ours["cpu_seconds"]
    for count in [options.candidates, options.many] * bool(options.many):
        values[f"bytes_of_{count}"] = in_new_process(memory_of, replace(options, baseline=False), count)
    if options.out is not None:
        name = f"planning-{datetime.now():%Y-%m-%d-%H%M%S}.json"
        write_text_atomic(options.out / name, json.dumps(values, indent=1) + "\n")
    print_json(values)


if __name__ == "__main__":
    try:
        main(tyro.cli(DecisionOptions))
    except UserError as error:
        sys.exit(f"planning.py: {error}")
