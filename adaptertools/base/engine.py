"""Engines run tasks that carry names and byte ranges. Threads are the one there is."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class Interrupts:
    """Ctrl-C as a flag that is looked at between tasks, so that it never lands inside an import.

    In the main thread it stands in for the handler of SIGINT while the block runs; a second Ctrl-C
    ends the process at once. Elsewhere it does nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self.before: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def _ask(self, *_: object) -> None:
        if self.asked:
            os._exit(130)
        self.asked = True

    def check(self) -> None:
        """Raise `KeyboardInterrupt` when Ctrl-C was pressed."""
        if self.asked:
            raise KeyboardInterrupt


def run_threads(
    tasks: Iterable[Task],
    do: Callable[[Task], Result],
    done: Callable[[Task, Result], None],
    jobs: int,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Run `do` on every task in `jobs` threads; `done` and `tick` are called in this thread.

    The first exception, or an interrupt, stops the rest: running tasks end, no new one starts.
    """
    waiting = iter(tasks)
    pending: dict[Future[Result], Task] = {}
    with ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="merge") as pool:
        try:
            while True:
                for task in islice(waiting, max(0, 2 * jobs - len(pending))):
                    pending[pool.submit(do, task)] = task
                if not pending:
                    return
                finished, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in finished:
                    done(pending.pop(future), future.result())
                tick()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
