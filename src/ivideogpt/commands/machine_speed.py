"""Speed of this machine, and the least time that a model's weights allow on it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ivideogpt.data.episode_files import open_episodes
from ivideogpt.models.cpu_linear import Projection
from ivideogpt.reports.gallery_clips import find_windows
from ivideogpt.worldmodel.shipped import EPISODES_FILE
from ivideogpt.worldmodel.world_model import WorldModel

#: Number format of the transformer's weights.
WeightFormat = Literal["float32", "bfloat16", "int8"]
#: Bytes of the memory probes: on a CPU at most this, beyond any cache; on a GPU this.
MAX_PROBE_BYTES, GPU_PROBE_BYTES = 2**28, 2**31
#: Side of the multiplied matrices on a CPU and on a GPU.
PRODUCT_SIDE, GPU_PRODUCT_SIDE = 1024, 8192


class MachineSpeed(NamedTuple):
    """Measured speed of the machine in one number format: bytes a second, floating-point operations a second."""

    bandwidth: float
    operations: float


class Probe(NamedTuple):
    """An action of one kind of work, and its amount: floating-point operations, or bytes read and written."""

    action: Callable[[], object]
    amount: int


def bench_inputs(model: WorldModel, folder: Path, batch: int, horizon: int) -> tuple[Tensor, Tensor | None]:
    """Return context ``[b c 3 h w]`` and actions ``[b horizon a]``: of the checkpoint's episodes, else noise."""
    size, file = model.resolution, folder / EPISODES_FILE
    if file.is_file():
        windows = find_windows(model, open_episodes(file, size=size), batch, horizon)
        windows = [windows[row % len(windows)] for row in range(batch)]
        context = torch.stack([window.context for window in windows])
        actions = [window.actions for window in windows if window.actions is not None]
    else:
        generator = torch.Generator().manual_seed(0)
        context = torch.rand(batch, model.context_frames, 3, size, size, generator=generator)
        shape = horizon, model.action_dim
        actions = [torch.randn(shape, generator=generator) for _ in range(batch) if model.action_dim]
    return context.to(model.device), torch.stack(actions).to(model.device) if actions else None


def median_seconds(action: Callable[[], object], rounds: int, device: torch.device) -> float:
    """Time an action after one run that does not count; return the median."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def speed_probes(model: WorldModel, weights: WeightFormat) -> list[Probe]:
    """Make a matrix product, a product with a vector, and a copy.

    The last two probe the memory; either may be slow where the other is not. On a CPU they take as many bytes as one
    token does, because a small model may lie in the cache of the processor.
    """
    gpu, width = model.device.type == "cuda", model.transformer.config.hidden_size
    dtype = torch.float32 if weights == "int8" else getattr(torch, weights)
    size = GPU_PROBE_BYTES if gpu else min(weights_per_token(model) * _bytes(weights), MAX_PROBE_BYTES)
    matrix = torch.rand(max(1, size // (width * dtype.itemsize)), width, device=model.device, dtype=dtype)
    vector, target = torch.rand(width, device=model.device, dtype=dtype), torch.empty_like(matrix)
    amount = matrix.numel() * dtype.itemsize
    return [
        matrix_product(model.device, dtype, GPU_PRODUCT_SIDE if gpu else PRODUCT_SIDE, int8=weights == "int8"),
        Probe(lambda: torch.mv(matrix, vector), amount),
        Probe(lambda: target.copy_(matrix), 2 * amount),
    ]


def matrix_product(device: torch.device, dtype: torch.dtype, side: int, *, int8: bool = False) -> Probe:
    """Make a product of two square matrices, on a CPU by the kernels of the models, which are faster than PyTorch's."""
    layer, square = Projection(side, side).to(device, dtype), torch.rand(side, side, device=device, dtype=dtype)
    layer.int8 = int8
    return Probe(torch.inference_mode()(lambda: layer(square)), 2 * side**3)


def weights_per_token(model: WorldModel) -> int:
    """Count the weights that one token reads: all layers, and the rows of the output head that may be drawn."""
    layers = sum(weight.numel() for weight in model.transformer.layers.parameters())
    return layers + len(model.layout.dynamics_ids) * model.transformer.config.hidden_size


def limit_seconds(model: WorldModel, batch: int, horizon: int, weights: WeightFormat, speed: MachineSpeed) -> float:
    """Return the least seconds of the transformer for a batch of clips, token by token with a cache.

    Each position reads all weights, and the keys and values before it, once for the batch, or multiplies them,
    whichever takes longer. The context is one such pass over all its positions. Keys and values are never of 8 bits.
    """
    config, cache_bytes = model.transformer.config, _bytes("float32" if weights == "int8" else weights)
    layers = sum(weight.numel() for weight in model.transformer.layers.parameters())
    cached = 2 * config.num_layers * config.hidden_size  # keys and values of one position
    # prefill
    start = model.layout.context_length(model.context_frames)
    multiplied = 2 * layers * start + 2 * cached * start * (start + 1) // 2
    seconds = max(layers * _bytes(weights) / speed.bandwidth, batch * multiplied / speed.operations)
    # decode
    token = weights_per_token(model)
    for position in range(start, model.layout.length(model.context_frames, horizon)):
        read = token * _bytes(weights) + batch * cached * (position + 1) * cache_bytes
        multiplied = 2 * token + 2 * cached * (position + 1)
        seconds += max(read / speed.bandwidth, batch * multiplied / speed.operations)
    return seconds


def _bytes(weights: WeightFormat) -> int:
    return getattr(torch, weights).itemsize
