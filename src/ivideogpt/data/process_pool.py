"""Pools for independent tasks, such as the shards of a conversion: processes of this machine here, Ray in ``scaling``.

for position, result in as_pool(workers).run(convert_shard, shards):   # as they come; position is that of the item
    results[position] = result
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Protocol, TypeVar

from ivideogpt.core.errors import UserError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class TaskPool(Protocol):
    """Processes, here or on other machines, that work on independent tasks."""

    def run(self, function: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> Iterator[tuple[int, ResultT]]:
        """Call ``function`` with each of ``items``.

        Args:
            function: can be pickled: a function of a module, or a ``functools.partial`` of one. A call may be repeated
                if its process dies.
            items: can be pickled.

        Yields:
            The position of an item and the result of its call, in the order in which the calls end.

        Raises:
            UserError: the first error of a call, after the running calls have ended; or a process died.
        """
        ...


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def as_pool(workers: int | TaskPool | None) -> TaskPool:
    """Return a pool of so many processes; 0: this one; None: one for each processor. A pool is returned as it is.

    Raises:
        UserError: the number is negative.
    """
    if isinstance(workers, int) and workers < 0:
        raise UserError(f"workers is {workers}; expected 0 for this process, or a number of processes")
    if workers is None or isinstance(workers, int):
        return ProcessPool(processors() if workers is None else workers)
    return workers


@dataclass(frozen=True)
class ProcessPool:
    """Processes of this machine.

    Attributes:
        processes: number of them; 0: this process, in the order of the items.
    """

    processes: int

    def run(self, function: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> Iterator[tuple[int, ResultT]]:
        """Call ``function`` with each of ``items``; see ``TaskPool``."""
        if self.processes == 0:
            for position, item in enumerate(items):
                yield position, function(item)
            return
        # New processes: a fork would copy the locks of other libraries' threads.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(max(min(self.processes, len(items)), 1), context, _begin)
        try:
            calls = {pool.submit(_work, function, item): position for position, item in enumerate(items)}
            for call in as_completed(calls):
                result, message = call.result()
                if message is not None:
                    raise UserError(message)
                yield calls[call], result
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process died, perhaps because memory ran out; the same command with fewer workers resumes "
                "the work"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an idle worker leaves Ctrl-C to its parent
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)  # else the worker of a killed parent would wait for ever

    threading.Thread(target=end_with_parent, daemon=True).start()


def _work(function: Callable[[ItemT], ResultT], item: ItemT) -> tuple[Any, str | None]:
    """Run one task; return its result, and the message of a ``UserError``: not every exception can be pickled."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return function(item), None
    except UserError as error:
        return None, str(error)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
