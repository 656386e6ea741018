"""What a rollout takes at least on this machine: reading the weights, or multiplying them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from ivideogpt.bench.measuring import Probe, memory_probes, product
from ivideogpt.bench.subject import RolloutOptions
from ivideogpt.worldmodel.world_model import WorldModel

#: Bytes that the memory is measured with at most on a CPU (beyond any cache), and on a GPU.
MOST_PROBE_BYTES, GPU_PROBE_BYTES = 2**28, 2**31
#: Sides of the matrices that are multiplied on a CPU and on a GPU.
PRODUCT_SIDE, GPU_PRODUCT_SIDE = 1024, 8192


#: What the transformer's weights are kept in.
Numbers = Literal["float32", "bfloat16", "int8"]


class Machine(NamedTuple):
    """What the machine reached in one precision: bytes and floating-point operations a second."""

    bandwidth: float
    operations: float


def probes_of(model: WorldModel, precision: Numbers) -> list[Probe]:
    """A matrix product; then two ways to use the memory, with as many bytes as a token takes on a CPU.

    A small model may lie in a processor's cache, which is faster than its memory. On a GPU the probes are long enough
    that starting them takes no time beside.
    """
    gpu = model.device.type == "cuda"
    dtype = torch.float32 if precision == "int8" else getattr(torch, precision)
    size = GPU_PROBE_BYTES if gpu else min(weights_read(model) * _bytes_each(precision), MOST_PROBE_BYTES)
    side = GPU_PRODUCT_SIDE if gpu else PRODUCT_SIDE
    width = model.transformer.config.hidden_size
    return [
        product(model.device, dtype, side, int8=precision == "int8"),
        *memory_probes(model.device, dtype, size, width),
    ]


def weights_read(model: WorldModel) -> int:
    """Numbers that drawing a token takes: all layers, and the rows of the head that may be drawn."""
    ids, width = len(model.layout.dynamics_ids), model.transformer.config.hidden_size
    return sum(weight.numel() for weight in model.transformer.layers.parameters()) + ids * width


def limit_seconds(model: WorldModel, options: RolloutOptions, precision: Numbers, machine: Machine) -> float:
    """Least seconds of the transformer for a clip, token by token with a kept cache.

    Each position reads all weights, and keys and values of those before it, once for the batch, or multiplies them,
    whichever takes longer; the context is one such pass over all its positions. Keys and values are not of 8 bits.
    """
    config, rows = model.transformer.config, options.batch
    bytes_each, bytes_kept = _bytes_each(precision), _bytes_each("float32" if precision == "int8" else precision)
    layers = sum(weight.numel() for weight in model.transformer.layers.parameters())
    kept = 2 * config.num_layers * config.hidden_size  # keys and values of a position
    start = model.layout.context_length(model.context_frames)
    read, multiplied = layers * bytes_each, 2 * layers * start + 2 * kept * start * (start + 1) // 2
    seconds = max(read / machine.bandwidth, rows * multiplied / machine.operations)
    weights = weights_read(model)
    for position in range(start, model.layout.length(model.context_frames, options.horizon)):
        read = weights * bytes_each + rows * kept * (position + 1) * bytes_kept
        multiplied = 2 * weights + 2 * kept * (position + 1)
        seconds += max(read / machine.bandwidth, rows * multiplied / machine.operations)
    return seconds


def _bytes_each(precision: Numbers) -> int:
    return getattr(torch, precision).itemsize
