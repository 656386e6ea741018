"""Speed of sampling groups of futures for post-training: ``transformers.generate`` and ours, in one run.

    .venv/bin/python benchmarks/posttrain.py [CHECKPOINT] [--prompts 4] [--group 16] [--out benchmarks/results]

Both sample the same number of futures from the same prompts with the same weights, and decode them. ``generate`` reads
the context for every future of a group; once with one call for all frames, the best that it can do, and once with a
call a frame, as thuml/iVideoGPT does where there are actions. The baselines need transformers (extra dev).
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import torch
import tyro
from _measuring import use_threads, wait
from _official_rollout import LlamaRollout
from _subject import DEMO, RolloutOptions, Subject, new_subject

from ivideogpt.commands.output import check_folder, print_json, print_table
from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import write_text_atomic
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.posttrain.rollouts import FutureSampler, Prompts, repeat_rows

#: Sampling of training: all legal tokens at temperature 1.
SAMPLING = Sampling(temperature=1.0, top_k=None)
FRAME_BY_FRAME, ONE_CALL, OURS = "generate, one call a frame", "generate, one call", "ours"


@dataclass(frozen=True, kw_only=True)
class PosttrainOptions:
    """Measures the speed of sampling groups of futures.

    Attributes:
        source: a token checkpoint, the name of a shipped model, or official-64 or medium: the published shapes with
            random weights.
        prompts: contexts.
        group: futures of each.
        horizon: frames of a future.
        rows_at_once: futures that ours samples together.
        device: auto, cpu, cuda, ...
        rounds: timed repetitions, in turns; the figures are medians.
        threads: of the CPU.
        out: a folder for a file with the figures, named by the time.
    """

    source: Annotated[str, tyro.conf.Positional] = DEMO
    prompts: int = 4
    group: int = 16
    horizon: int = 8
    rows_at_once: int = 64
    device: str = "auto"
    rounds: int = 3
    threads: int = 1
    out: Path | None = None

    def __post_init__(self) -> None:
        """Check the numbers; raise UserError where one is too small."""
        check_at_least(self, prompts=1, group=1, horizon=1, rows_at_once=1, rounds=1, threads=1)


def ways(options: PosttrainOptions, subject: Subject) -> dict[str, Callable[[], torch.Tensor]]:
    """Make a function for each way; it returns the decoded futures ``[p*g f c h w]``.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    model, group = subject.model, options.group
    llama = LlamaRollout(model)
    context = repeat_rows(subject.context, group)
    actions = None if subject.actions is None else repeat_rows(subject.actions, group)
    later = subject.context.new_zeros(options.prompts, options.horizon, *subject.context.shape[2:])
    prompts = Prompts(torch.cat([subject.context, later], dim=1), subject.actions)
    sampler = FutureSampler(model, SAMPLING, group, options.rows_at_once)

    def ours() -> torch.Tensor:
        return torch.cat([rollouts.imagined for _, rollouts in sampler(prompts, list(range(options.prompts)))])

    return {
        FRAME_BY_FRAME: lambda: llama.official(context, actions, options.horizon, SAMPLING).frames,
        ONE_CALL: lambda: llama.cached(context, actions, options.horizon, SAMPLING).frames,
        OURS: ours,
    }


def measure(options: PosttrainOptions) -> dict[str, float]:
    """Return the seconds of each way, medians; on a CPU those of the processor, which no other program changes."""
    inputs = RolloutOptions(
        source=options.source, batch=options.prompts, horizon=options.horizon, device=options.device
    )
    with use_threads(options.threads):
        subject = new_subject(inputs)
        device = subject.model.device
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        samplers = ways(options, subject)
        seconds: dict[str, list[float]] = {name: [] for name in samplers}
        for turn in range(options.rounds + 1):
            for name, sample in samplers.items():
                torch.manual_seed(turn)
                wait(device)
                start = clock()
                sample()
                wait(device)
                if turn:  # the first turn warms up
                    seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main(options: PosttrainOptions) -> None:
    """Print the table and the JSON line."""
    if options.out is not None:
        check_folder(options.out)
    seconds = measure(options)
    frames = options.prompts * options.group * options.horizon
    print(
        f"{options.source}: {options.prompts} prompts with {options.group} futures of {options.horizon} frames, "
        f"{options.threads} thread{'s' * (options.threads > 1)}"
    )
    rows = [
        (name, value, frames / value, seconds[FRAME_BY_FRAME] / value, seconds[ONE_CALL] / value)
        for name, value in seconds.items()
    ]
    print_table(("", "seconds", "frames/s", "x one call a frame", "x one call"), rows)
    names = {FRAME_BY_FRAME: "frame_by_frame", ONE_CALL: "one_call", OURS: "ours"}
    values: dict[str, object] = {f"seconds_{names[name]}": value for name, value in seconds.items()}
    values |= {f"times_{names[name]}": seconds[name] / seconds[OURS] for name in (FRAME_BY_FRAME, ONE_CALL)}
    values |= {name: getattr(options, name) for name in ("source", "prompts", "group", "horizon", "threads")}
    if options.out is not None:
        file = options.out / f"posttrain-{datetime.now():%Y-%m-%d-%H%M%S}.json"
        write_text_atomic(file, json.dumps(values, indent=2) + "\n")
        print(file)
    print_json(values)


if __name__ == "__main__":
    try:
        main(tyro.cli(PosttrainOptions))
    except UserError as error:
        print(f"benchmarks/posttrain.py: {error}", file=sys.stderr)
        sys.exit(2)
