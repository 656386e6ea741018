"""``ivideogpt bench``: how fast the models run here, beside the official way and what the machine can do."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from ivideogpt.bench.long import BLOCK, NEAR, LongOptions, LongRun, measure_long
from ivideogpt.bench.measuring import use_threads
from ivideogpt.bench.official import import_transformers
from ivideogpt.bench.rollout import CACHED, OFFICIAL, OURS, Measured, Row, measure
from ivideogpt.bench.subject import DEMO, RECIPES, RolloutOptions, Size
from ivideogpt.commands.output import check_folder, print_json, print_table
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import write_text_atomic
from ivideogpt.core.run import choose_device
from ivideogpt.data.render import to_uint8, write_strip
from ivideogpt.worldmodel.memory import cache_bytes
from ivideogpt.worldmodel.world_model import DEFAULT_HORIZON

#: Pictures of a long imagination that are shown.
_PICTURES = 16


def bench_rollout(
    checkpoint: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[CHECKPOINT]")] = None,
    *,
    size: Size | None = None,
    batch: int = RolloutOptions.batch,
    horizon: int = DEFAULT_HORIZON,
    context_frames: int | None = None,
    action_dim: int = RolloutOptions.action_dim,
    device: str = RolloutOptions.device,
    rounds: int = RolloutOptions.rounds,
    threads: int | None = None,
    memory: bool = RolloutOptions.memory,
    baselines: bool = RolloutOptions.baselines,
    out: Path | None = None,
) -> None:
    """Measure how fast clips are imagined, beside the official way; the baselines need transformers (extra dev).

    Args:
        checkpoint: a folder, a Hub id, the name of a shipped model, or a run folder.
        size: instead of a checkpoint: official-64 or medium, the published shapes with random weights; demo, the
            shipped model. Default: official-64.
        batch: clips that are imagined at once.
        horizon: frames to imagine.
        context_frames: frames to start from; default: those of the model.
        action_dim: numbers in an action of official-64 and medium; 0: without actions.
        device: auto, cpu or cuda.
        rounds: turns that are timed; figures are medians.
        threads: of the CPU; default: as PyTorch chooses.
        memory: also measure memory, in a process for each row.
        baselines: also measure the official way and one generate; with many clips at once they take long.
        out: a folder for the figures, in a file named by the time.
    """
    if checkpoint is not None and size is not None:
        raise UserError(f"both a checkpoint, {checkpoint!r}, and --size {size} were given; give one of them")
    if checkpoint in RECIPES:
        raise UserError(
            f"checkpoint is {checkpoint!r}, a size; use --size {checkpoint}, or ./{checkpoint} for a folder"
        )
    if out is not None:
        check_folder(out)
    options = RolloutOptions(
        source=checkpoint or (DEMO if size == "demo" else size or "official-64"),
        batch=batch,
        horizon=horizon,
        context_frames=context_frames,
        action_dim=action_dim,
        device=device,
        rounds=rounds,
        threads=threads,
        memory=memory,
        baselines=baselines,
    )
    found = measure(options)
    _show(options, found)
    values = summary(options, found)
    if out is not None:
        _keep(values, out)
    print_json(values)


def bench_long(
    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[CHECKPOINT]")] = LongOptions.source,
    *,
    data: Path | None = None,
    steps: int = LongOptions.steps,
    reanchor_every: tuple[int, ...] = (),
    episodes: int = LongOptions.episodes,
    seed: int = LongOptions.seed,
    device: str = LongOptions.device,
    threads: int | None = None,
    out: Path | None = None,
) -> None:
    """Measure long imaginations: whether a step stays as fast, what memory it takes, how far it drifts from the truth.

    Args:
        checkpoint: a folder, a Hub id, the name of a shipped model, or a run folder.
        data: episodes of at least context and steps, in a store or a file; default: recorded now, for the shipped
            model.
        steps: to imagine; time and memory are told for each hundred.
        reanchor_every: imagined frames between two encodings of the context, one run each; default: what the model was
            trained on, its half and a quarter.
        episodes: imagined together.
        seed: of the draws.
        device: auto, cpu or cuda.
        threads: of the CPU; default: as PyTorch chooses.
        out: a folder for the figures, in a file named by the time, and for pictures.
    """
    if out is not None:
        check_folder(out)
    options = LongOptions(
        source=checkpoint,
        data=data,
        steps=steps,
        periods=reanchor_every,
        episodes=episodes,
        device=device,
        threads=threads,
        seed=seed,
    )
    runs, truth = measure_long(options)
    _show_long(runs)
    values = long_summary(options, runs)
    if out is not None:
        file = _keep(values, out)
        every = max(1, steps // _PICTURES)
        rows = {"true": truth.frames[0, -steps:].float() / 255}
        rows |= {f"{run.period} a context": run.frames for run in runs}
        pictures = {label: to_uint8(frames[every - 1 :: every]) for label, frames in rows.items()}
        write_strip(file.with_suffix(".png"), pictures, title=f"A picture every {every} steps")
        print(file.with_suffix(".png"))
    print_json(values)


def long_summary(options: LongOptions, runs: Sequence[LongRun]) -> dict[str, Any]:
    """What the JSON line holds; the first figures are those of the first run."""
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
                "growth_mb": [one / 1e6 for one in run.growth],
                "drift": [stretch._asdict() for stretch in run.drift],
            }
            for run in runs
        },
        "device": _device_name(choose_device(options.device)),
        "threads": _threads(options.threads),
        "torch": torch.__version__,
    }


def _show_long(runs: Sequence[LongRun]) -> None:
    for run in runs:
        first, last = run.milliseconds[0], run.milliseconds[-1]
        grown = f", {statistics.median(run.growth) / 1e6:.1f} MB more each" if run.growth else ""
        block = min(BLOCK, run.drift[-1].last)
        print(
            f"a new context every {run.period} frames: {first:.1f} ms a step in the first {block}, {last:.1f} in the "
            f"last, slowest to fastest {run.slowest:.2f}{grown}"
        )
        lines: list[list[str | float]] = [
            [
                f"  {one.first} to {one.last}",
                one.psnr,
                one.still,
                *("-" if share is None else f"{share:.0%}" for share in (one.missing, one.right, one.block_missing)),
                *("-" if far is None else far for far in (one.block, one.block_still)),
            ]
            for one in run.drift
        ]
        headings = ["  steps", "PSNR", "standing still", "agent missing", f"within {NEAR:.0f} px"]
        print_table([*headings, "block missing", "px away", "standing still"], lines)


def _keep(values: Mapping[str, Any], folder: Path) -> Path:
    file = folder / f"{values['benchmark']}-{datetime.now():%Y-%m-%d-%H%M%S}.json"
    write_text_atomic(file, json.dumps(values, indent=2) + "\n")
    print(file)
    return file


def summary(options: RolloutOptions, found: Measured) -> dict[str, Any]:
    """What the JSON line holds; the first figures are those of our row in float32."""
    model, ours = found.subject.model, found.rows[OURS]
    frames = options.batch * options.horizon
    rows = {
        row.name: {
            "frames_per_second": frames / one.seconds,
            "ms_per_frame": 1e3 * one.seconds / frames,
            "encoder_ms": 1e3 * one.encoder / frames,
            "transformer_ms": 1e3 * one.transformer / frames,
            "decoder_ms": 1e3 * one.decoder / frames,
            "ratio_to_official": _ratio(found, row, OFFICIAL),
            "ratio_to_cached_generate": _ratio(found, row, CACHED),
            "limit_share": one.limit_share,
            "peak_memory_mb": None if one.memory is None else one.memory / 1e6,
            "same_tokens": one.same_tokens,
        }
        for row, one in found.rows.items()
    }
    official = found.rows.get(OFFICIAL)
    return {
        "benchmark": "rollout",
        **{name: rows[OURS.name][name] for name in ("frames_per_second", "ratio_to_official")},
        "ratio_to_official_transformer": None if official is None else official.transformer / ours.transformer,
        **{name: rows[OURS.name][name] for name in ("ratio_to_cached_generate", "limit_share", "peak_memory_mb")},
        "source": options.source,
        "batch": options.batch,
        "context_frames": model.context_frames,
        "horizon": options.horizon,
        "action_dim": model.action_dim,
        "noise": found.subject.noise,
        "cache_mb": cache_bytes(model, options.batch, options.horizon) / 1e6,
        "rounds": options.rounds,
        "ties": found.ties,
        "left_out": found.left_out,
        "rows": rows,
        "gb_per_second": {name: machine.bandwidth / 1e9 for name, machine in found.machines.items()},
        "gflop_per_second": {name: machine.operations / 1e9 for name, machine in found.machines.items()},
        "device": _device_name(model.device),
        "threads": _threads(options.threads),
        "torch": torch.__version__,
        "transformers": None if found.left_out else import_transformers().__version__,
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _threads(asked: int | None) -> int:
    with use_threads(asked):
        return torch.get_num_threads()


def _ratio(found: Measured, row: Row, baseline: Row) -> float | None:
    """How many times as fast as the baseline, or None where it was left out."""
    return found.rows[baseline].seconds / found.rows[row].seconds if baseline in found.rows else None


def _show(options: RolloutOptions, found: Measured) -> None:
    model, frames = found.subject.model, options.batch * options.horizon
    actions = f"actions of {model.action_dim} numbers" if model.action_dim else "no actions"
    print(
        f"{options.source}: {model.context_frames} + {options.horizon} frames, batch {options.batch}, {actions}, "
        f"{'noise' if found.subject.noise else 'recorded clips'}, on {model.device.type}"
    )
    headings = ["", "frames/s", "ms a frame", "encoder", "transformer", "decoder", "x official", "x cached", "of limit"]
    lines: list[list[str | float]] = []
    for row, one in found.rows.items():
        parts = (one.seconds, one.encoder, one.transformer, one.decoder)
        ratios = (_ratio(found, row, baseline) for baseline in (OFFICIAL, CACHED))
        lines.append(
            [
                row.name,
                frames / one.seconds,
                *(1e3 * seconds / frames for seconds in parts),
                *("-" if ratio is None else ratio for ratio in ratios),
                f"{one.limit_share:.0%}",
                "-" if one.memory is None else f"{one.memory / 1e6:.0f}",
                f"{one.same_tokens:.1%}",
            ]
        )
    print_table([*headings, "MB", "same tokens"], lines)
    print(f"keys and values in float32: {cache_bytes(model, options.batch, options.horizon) / 1e6:.0f} MB")
    for name, machine in found.machines.items():
        rate, bandwidth = machine.operations / 1e9, machine.bandwidth / 1e9
        print(f"this machine, {name}: {bandwidth:.1f} GB/s, {rate:.0f} GFLOP/s")
    if found.left_out:
        print(f"left out: official, cached generate ({found.left_out})")
