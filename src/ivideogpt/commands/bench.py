"""``ivideogpt bench``: frames a second on this machine, and the share of the least time that the weights allow."""

from __future__ import annotations

from typing import Annotated

import tyro

from ivideogpt.commands.inputs import check_numbers
from ivideogpt.commands.output import print_json, print_table


def bench(
    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[CHECKPOINT]")] = "pusht-64",
    *,
    batch: int = 1,
    horizon: int = 14,
    rounds: int = 3,
    device: str = "auto",
    int8: bool = False,
) -> None:
    """Measure the speed of a model on this machine, and its share of the machine's limit.

    Args:
        checkpoint: a folder, a Hub id, the name of a shipped model, or a run folder.
        batch: clips that are imagined together.
        horizon: frames to imagine.
        rounds: timed repetitions; the figures are medians.
        device: auto, cpu or cuda.
        int8: on a CPU, imagine with weights of 8 bits.
    """
    import torch

    from ivideogpt.commands.machine_speed import (
        MachineSpeed,
        WeightFormat,
        bench_inputs,
        limit_seconds,
        median_seconds,
        speed_probes,
    )
    from ivideogpt.core.checkpoint import resolve_checkpoint
    from ivideogpt.worldmodel.shipped import SHIPPED
    from ivideogpt.worldmodel.world_model import WorldModel

    check_numbers(batch=(batch, 1, 4096), horizon=(horizon, 1, 100_000), rounds=(rounds, 1, 10_000))
    model = WorldModel.from_pretrained(checkpoint, device=device, int8=int8)
    context, actions = bench_inputs(model, resolve_checkpoint(checkpoint, shipped=SHIPPED), batch, horizon)

    def imagine() -> None:
        _ = model.imagine(context, actions, horizon=horizon).frames

    def step_by_step() -> None:
        session = model.session(context)
        for index in range(horizon):
            session.step(None if actions is None else actions[:, index])

    weights: WeightFormat = "int8" if int8 else "bfloat16" if model.dtype == torch.bfloat16 else "float32"
    work = {"imagine": imagine, "step by step": step_by_step}
    seconds = {name: median_seconds(action, rounds, model.device) for name, action in work.items()}
    frames = batch * horizon
    limit = None
    if model.has_tokens:  # a picture model has no bound that its weights alone tell
        rates = [
            probe.amount / median_seconds(probe.action, rounds, model.device) for probe in speed_probes(model, weights)
        ]
        speed = MachineSpeed(bandwidth=max(rates[1:]), operations=rates[0])
        limit = limit_seconds(model, batch, horizon, weights, speed)
    print_table(
        ["", "frames/s", "ms a frame", "of the limit"],
        [
            [name, frames / value, 1e3 * value / frames, "-" if limit is None else f"{limit / value:.0%}"]
            for name, value in seconds.items()
        ],
    )
    if limit is not None:
        print(f"this machine, {weights}: {speed.bandwidth / 1e9:.1f} GB/s, {speed.operations / 1e9:.0f} GFLOP/s")
    print_json(
        {
            "frames_per_second": frames / seconds["imagine"],
            "frames_per_second_step_by_step": frames / seconds["step by step"],
            "limit_share": None if limit is None else limit / seconds["imagine"],
            "batch": batch,
            "horizon": horizon,
            "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type,
            "threads": torch.get_num_threads(),
        }
    )
