"""Memory: what rows of an imagination take, what is free, and many rows some after the others."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from ivideogpt.core.errors import UserError

if TYPE_CHECKING:
    from ivideogpt.worldmodel.world_model import WorldModel

Found = TypeVar("Found")

#: Share of the free memory that rows imagined together may take by what is counted here: allocators leave gaps, and
#: other programs need memory meanwhile.
FREE_SHARE = 0.5
#: float32 vectors over the vocabulary that live together while a token is drawn: scores, probabilities, their order.
_SCORE_COPIES = 8
_CGROUP = Path("/sys/fs/cgroup")


def cache_dtype(model: WorldModel) -> torch.dtype:
    """Of keys and values: that of the weights, but float32 on a CPU, which would copy all others at each token."""
    return torch.float32 if model.device.type == "cpu" else model.dtype


def cache_bytes(model: WorldModel, rows: int, frames: int) -> int:
    """Bytes of the cache of so many rows with room for ``frames`` future frames: keys, values and ids."""
    config = model.transformer.config
    vectors = 2 * config.num_layers * config.hidden_size * cache_dtype(model).itemsize
    return rows * model.layout.length(model.context_frames, frames) * (vectors + torch.long.itemsize)


def row_bytes(model: WorldModel, frames: int) -> int:
    """Bytes that a row takes at most, about, while ``frames`` future frames are imagined: the cache and a pass.

    Frames are not among them: they are encoded and decoded in pieces whose size does not depend on the rows.
    """
    config, tokenizer, layout = model.transformer.config, model.tokenizer.config, model.layout
    # In a layer: the residual, its norm, queries, keys and values twice or the gated layer's maps.
    layer = max(9 * config.hidden_size, 3 * config.hidden_size + 4 * config.intermediate_size) * model.dtype.itemsize
    reading = layout.context_length(model.context_frames) * layer
    drawing = layout.dynamics_tokens * (layer + _SCORE_COPIES * config.vocab_size * torch.float32.itemsize)
    side = min(tokenizer.resolution, tokenizer.max_attention_resolution)
    levels = len(tokenizer.block_channels) * max(tokenizer.block_channels) * side**2
    features = tokenizer.conditional * model.context_frames * levels * model.dtype.itemsize
    return cache_bytes(model, 1, frames) + max(reading, drawing) + features


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated on ``device``; None where nobody says."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu":
        return None
    found = [_number(Path("/proc/meminfo"), "MemAvailable:", 1024)]
    if (limit := _number(_CGROUP / "memory.max")) is not None:  # of a container
        used, files = _number(_CGROUP / "memory.current"), _number(_CGROUP / "memory.stat", "inactive_file")
        found.append(max(0, limit - (used or 0) + (files or 0)))
    known = [number for number in found if number is not None]
    return min(known) if known else None


def check_room(model: WorldModel, rows: int, frames: int) -> None:
    """Refuses rows whose cache alone is larger than all free memory.

    Raises:
        UserError: it is; where nobody knows what is free, nothing is refused.
    """
    needed, free = cache_bytes(model, rows, frames), free_bytes(model.device)
    if free is not None and needed > free:
        raise UserError(
            f"the cache of {rows} rows with {frames} future frames takes {_size(needed)}, but {model.device} has "
            f"{_size(free)} free; use fewer rows, a smaller reanchor_every or a bfloat16 model"
        )


def in_chunks(model: WorldModel, rows: int, frames: int, make: Callable[[slice], Found]) -> list[Found]:
    """Makes something of all rows, as many together as free memory lets us.

    Where memory runs out, the number is halved once, with a warning, and the chunk is made again.

    Args:
        model: the world model.
        rows: their number.
        frames: future frames that a cache has room for.
        make: called for some rows after the others.

    Raises:
        UserError: memory ran out with half the number too, or with one row.
    """
    size, free = rows, free_bytes(model.device)
    if free is not None:
        most = max(1, int(FREE_SHARE * free / row_bytes(model, frames)))
        size = math.ceil(rows / math.ceil(rows / most))
    found: list[Found] = []
    start, halved = 0, False
    while start < rows:
        some = slice(start, min(start + size, rows))
        try:
            found.append(make(some))
            start = some.stop
            continue
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            count = some.stop - start
            if halved or count == 1:
                raise UserError(
                    f"memory ran out on {model.device} while {count} of {rows} rows were imagined; use fewer rows, a "
                    "shorter horizon or a bfloat16 model"
                ) from error
        # Only here is the error, and with it all that was allocated, forgotten.
        size, halved = math.ceil(count / 2), True
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(
            f"memory ran out on {model.device} with {count} rows imagined together; going on with {size}", stacklevel=3
        )
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that an allocation failed, on any device."""
    # The CPU's allocator and that of Apple's GPUs raise a plain RuntimeError.
    said = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and any(words in str(error) for words in said))


def _number(file: Path, label: str | None = None, unit: int = 1) -> int | None:
    """The number in a file of the kernel, or behind ``label`` in one; None where it is not there."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
        words = next(line.split() for line in lines if label is None or line.startswith(label))
        return int(words[label is not None]) * unit
    except (OSError, StopIteration, IndexError, ValueError):
        return None


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
