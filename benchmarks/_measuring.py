"""Measurement: alternating timed actions, timed methods, threads, and the memory of a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

Name = TypeVar("Name")
Result = TypeVar("Result")
Action = Callable[[], object]


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def in_turns(actions: Mapping[Name, Action], turns: int, device: torch.device) -> dict[Name, float]:
    """Time the actions in alternation, so that other work on the machine slows all of them; return the medians.

    Args:
        actions: by name; each has run once before.
        turns: timed runs of each.
        device: of the work.
    """
    times: dict[Name, list[float]] = {name: [] for name in actions}
    for _ in range(turns):
        for name, action in actions.items():
            wait(device)
            start = time.perf_counter()
            action()
            wait(device)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


@contextlib.contextmanager
def timed_methods(module: nn.Module, names: Sequence[str], device: torch.device) -> Iterator[dict[str, float]]:
    """Count the seconds spent in methods of ``module``, by name; none of them may call another."""
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
    """Use so many threads of the CPU; None: as PyTorch has chosen."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Memory


def in_new_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function in a process that is started for it; return its result."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def process_memory(label: str) -> int | None:
    """Return the bytes of this process: now (VmRSS), or the peak (VmHWM); None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{label}:"))


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak memory of the device and, where Linux allows it, of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed while a model was made counts no longer
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory(device: torch.device, before: int | None) -> int | None:
    """Return the peak bytes: on a GPU of PyTorch, else the growth of the process; None where the system does not say.

    Args:
        device: of the work.
        before: ``process_memory("VmRSS")`` of the process before it held a model.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = process_memory("VmHWM")
    return None if before is None or peak is None else peak - before
