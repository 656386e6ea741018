"""Memory: the needs of the rows of an imagination, the free memory, and rows in chunks that fit into it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from ivideogpt.core.errors import UserError
from ivideogpt.models.dynamics import Dynamics
from ivideogpt.models.tokenizer_config import TokenizerConfig

Result = TypeVar("Result")

#: Share of the free memory that rows imagined together may take: allocators leave gaps, and other programs need memory
#: meanwhile.
FREE_SHARE = 0.5
#: float32 vectors over the vocabulary that exist together while a token is sampled: logits, probabilities, their order.
_LOGIT_COPIES = 8
#: float32 maps of the size of the frame that a picture model holds for a row while it draws a frame.
_PICTURE_MAPS = 256
_CGROUP = Path("/sys/fs/cgroup")


def cache_bytes(dynamics: Dynamics, rows: int, frames: int) -> int:
    """Return the bytes of a cache with room for ``frames`` future frames of ``rows`` rows: keys, values and ids."""
    config = dynamics.transformer.config
    vectors = 2 * config.num_layers * config.hidden_size * dynamics.cache_dtype.itemsize
    return rows * dynamics.layout.length(dynamics.context_frames, frames) * (vectors + torch.long.itemsize)


def row_bytes(dynamics: Dynamics, tokenizer: TokenizerConfig, frames: int) -> int:
    """Estimate the most bytes of a row while ``frames`` future frames are imagined: the cache and a pass.

    Frames are not counted: they are encoded and decoded in chunks whose size does not depend on the rows.
    """
    config, layout, itemsize = dynamics.transformer.config, dynamics.layout, dynamics.dtype.itemsize
    # In a layer: the residual, its norm, queries, keys and values twice; or the maps of the gated layer.
    layer = max(9 * config.hidden_size, 3 * config.hidden_size + 4 * config.intermediate_size) * itemsize
    reading = layout.context_length(dynamics.context_frames) * layer
    sampling = layout.dynamics_tokens * (layer + _LOGIT_COPIES * config.vocab_size * torch.float32.itemsize)
    side = min(tokenizer.resolution, tokenizer.max_attention_resolution)
    pixels = side**2 * tokenizer.frame_size[1] // tokenizer.resolution
    levels = len(tokenizer.block_channels) * max(tokenizer.block_channels) * pixels
    features = tokenizer.conditional * dynamics.context_frames * levels * itemsize
    return cache_bytes(dynamics, 1, frames) + max(reading, sampling) + features


def picture_row_bytes(resolution: int) -> int:
    """Estimate the most bytes of a row while a picture model draws a frame: feature maps and candidate poses."""
    return _PICTURE_MAPS * resolution**2 * torch.float32.itemsize


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that can still be allocated on ``device``, or None where it is unknown."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu":
        return None
    limits = [_number(Path("/proc/meminfo"), "MemAvailable:", 1024)]
    if (limit := _number(_CGROUP / "memory.max")) is not None:  # of a container
        used, files = _number(_CGROUP / "memory.current"), _number(_CGROUP / "memory.stat", "inactive_file")
        limits.append(max(0, limit - (used or 0) + (files or 0)))
    return min((limit for limit in limits if limit is not None), default=None)


def check_cache_memory(dynamics: Dynamics, rows: int, frames: int) -> None:
    """Check that the cache of ``rows`` rows with ``frames`` future frames fits into the free memory.

    Raises:
        UserError: it does not; nothing is refused where the free memory is unknown.
    """
    needed, free = cache_bytes(dynamics, rows, frames), free_bytes(dynamics.device)
    if free is not None and needed > free:
        raise UserError(
            f"the cache of {rows} rows with {frames} future frames takes {_size(needed)}, but {dynamics.device} has "
            f"{_size(free)} free; use fewer rows, a smaller reanchor_every or a bfloat16 model"
        )


def in_chunks(rows: int, bytes_per_row: int, device: torch.device, imagine: Callable[[slice], Result]) -> list[Result]:
    """Imagine all rows in chunks that fit into the free memory.

    Where memory runs out, the size of the chunks is halved once, with a warning, and the chunk is imagined again.

    Args:
        rows: number of rows.
        bytes_per_row: see `row_bytes`.
        device: where the memory is.
        imagine: called for one chunk of rows after another.

    Raises:
        UserError: memory ran out with half the size too, or with one row.
    """
    size, free = rows, free_bytes(device)
    if free is not None:
        most = max(1, int(FREE_SHARE * free / bytes_per_row))
        size = math.ceil(rows / math.ceil(rows / most))
    results: list[Result] = []
    start, halved = 0, False
    while start < rows:
        chunk = slice(start, min(start + size, rows))
        try:
            results.append(imagine(chunk))
            start = chunk.stop
            continue
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            count = chunk.stop - start
            if halved or count == 1:
                raise UserError(
                    f"memory ran out on {device} while {count} of {rows} rows were imagined; use fewer rows, a "
                    "shorter horizon or a bfloat16 model"
                ) from error
        # Only here are the error, and with it the memory of the failed chunk, released.
        size, halved = math.ceil(count / 2), True
        if device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(
            f"memory ran out on {device} with {count} rows imagined together; going on with {size}", stacklevel=3
        )
    return results


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` is a failed allocation, on any device."""
    # The CPU's allocator and that of Apple's GPUs raise a plain RuntimeError.
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    messages = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(message in str(error) for message in messages)


def _number(file: Path, label: str | None = None, unit: int = 1) -> int | None:
    """Return the number in a file of the kernel, or the one after ``label``; None where it is missing."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
        words = next(line.split() for line in lines if label is None or line.startswith(label))
        return int(words[label is not None]) * unit
    except (OSError, StopIteration, IndexError, ValueError):
        return None


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
