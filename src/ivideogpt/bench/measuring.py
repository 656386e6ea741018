"""Measuring: actions in turns, memory in a process of its own, and what the machine can do at most."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from ivideogpt.models.cpu_linear import Projection

Name = TypeVar("Name")
Found = TypeVar("Found")
Action = Callable[[], object]


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def in_turns(actions: Mapping[Name, Action], turns: int, device: torch.device) -> dict[Name, float]:
    """Median seconds of each action; one after the other, so that other work on the machine meets all of them.

    Args:
        actions: by name; each has run before.
        turns: how often each is timed.
        device: where they work.
    """
    times: dict[Name, list[float]] = {name: [] for name in actions}
    for _ in range(turns):
        for name, action in actions.items():
            wait(device)
            start = time.perf_counter()
            action()
            wait(device)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


@contextlib.contextmanager
def timed_methods(module: nn.Module, names: Sequence[str], device: torch.device) -> Iterator[dict[str, float]]:
    """Seconds spent in methods of ``module`` while this is open, by name; none of them may call another."""
    seconds = dict.fromkeys(names, 0.0)

    def timed(name: str, method: Callable[..., object]) -> Callable[..., object]:
        def call(*positional: Any, **named: Any) -> object:
            wait(device)
            start = time.perf_counter()
            result = method(*positional, **named)
            wait(device)
            seconds[name] += time.perf_counter() - start
            return result

        return call

    for name in names:
        setattr(module, name, timed(name, getattr(module, name)))
    try:
        yield seconds
    finally:
        for name in names:
            delattr(module, name)


@contextlib.contextmanager
def use_threads(count: int | None) -> Iterator[None]:
    """So many threads of the CPU; None: as PyTorch has chosen."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# What the machine can do at most


class Probe(NamedTuple):
    """An action that does nothing but one thing, and how much of it.

    Attributes:
        action: to be timed.
        amount: floating-point operations, or bytes.
    """

    action: Action
    amount: int


def product(device: torch.device, dtype: torch.dtype, size: int, *, int8: bool = False) -> Probe:
    """A product of two square matrices of side ``size``; its amount are floating-point operations.

    On a CPU by the way the models take, which is faster than PyTorch's own.
    """
    a, b = (torch.rand(size, size, device=device, dtype=dtype) for _ in range(2))
    layer = Projection(size, size).to(device, dtype)
    layer.weight.data.copy_(b)
    layer.int8 = int8
    return Probe(torch.inference_mode()(lambda: layer(a)), 2 * size**3)


def memory_probes(device: torch.device, dtype: torch.dtype, size: int, width: int) -> list[Probe]:
    """A matrix of ``size`` bytes times a vector of ``width`` numbers, and its copy; amounts are bytes read and written.

    Two, because either may be far from what the memory gives.
    """
    matrix = torch.rand(max(1, size // (width * dtype.itemsize)), width, device=device, dtype=dtype)
    vector, target = torch.rand(width, device=device, dtype=dtype), torch.empty_like(matrix)
    amount = matrix.numel() * dtype.itemsize
    return [Probe(lambda: torch.mv(matrix, vector), amount), Probe(lambda: target.copy_(matrix), 2 * amount)]


# Memory


def in_new_process(function: Callable[..., Found], *arguments: object) -> Found:
    """What ``function`` returns in a process that is started for it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def process_memory(label: str) -> int | None:
    """Bytes of this process: now (VmRSS), or at most so far (VmHWM); None where the system has no such file."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{label}:"))


def forget_peak(device: torch.device) -> None:
    """From here on the most memory is counted anew, on the device and, where Linux lets us, in the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed while a model was made counts no longer
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def most_memory(device: torch.device, before: int | None) -> int | None:
    """Bytes at most: on a GPU what PyTorch held, else what the process grew by; None where no one says.

    Args:
        device: where the work was done.
        before: ``process_memory("VmRSS")`` of the process before it held a model.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = process_memory("VmHWM")
    return None if before is None or most is None else most - before
