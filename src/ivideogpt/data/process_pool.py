"""Runs independent pieces of work in processes: conversions, and whatever else comes in shards."""

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
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(function: Callable[[ItemT], None], items: Sequence[ItemT], processes: int) -> Iterator[None]:
    """Calls ``function`` with each of ``items`` and yields whenever one is done.

    Args:
        function: what can be sent to another process: of a module, or a ``functools.partial`` of one.
        items: what can be sent, too.
        processes: how many at once; 0: in this process, in order.

    Raises:
        UserError: the first that is raised; pieces that had begun are finished first. Or a process died.
    """
    if processes == 0:
        for item in items:
            function(item)
            yield
        return
    # Fresh processes: a fork would copy the locks of other libraries' threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(max(min(processes, len(items)), 1), context, _begin)
    try:
        results = [pool.submit(_work, function, item) for item in items]
        for result in as_completed(results):
            if (said := result.result()) is not None:
                raise UserError(said)
            yield
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died, perhaps because memory ran out; the same command with fewer workers goes on from "
            "there"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # while it waits for work, Ctrl-C is the parent's affair
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)  # else the worker of a killed parent would wait for work for ever

    threading.Thread(target=follow, daemon=True).start()


def _work(function: Callable[[ItemT], None], item: ItemT) -> str | None:
    """Runs one piece and returns what the user can mend: not every such error survives the way back."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        function(item)
    except UserError as error:
        return str(error)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return None
