"""A pool of processes for independent tasks, such as the shards of a conversion."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from ivideogpt.core.errors import UserError

ItemT = TypeVar("ItemT")


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(function: Callable[[ItemT], None], items: Sequence[ItemT], processes: int) -> Iterator[None]:
    """Call ``function`` with each of ``items`` and yield after each call.

    Args:
        function: can be pickled: a function of a module, or a ``functools.partial`` of one.
        items: can be pickled.
        processes: number of processes; 0: this process, in order.

    Raises:
        UserError: the first error of a call, after the running calls have ended; or a process died.
    """
    if processes == 0:
        for item in items:
            function(item)
            yield
        return
    # New processes: a fork would copy the locks of other libraries' threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(max(min(processes, len(items)), 1), context, _begin)
    try:
        results = [pool.submit(_work, function, item) for item in items]
        for result in as_completed(results):
            if (message := result.result()) is not None:
                raise UserError(message)
            yield
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


def _work(function: Callable[[ItemT], None], item: ItemT) -> str | None:
    """Run one task and return the message of a ``UserError``: not every exception can be pickled."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        function(item)
    except UserError as error:
        return str(error)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return None
