"""Engines run tasks that carry names and byte ranges. Threads are the one there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


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
                finished, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in finished:
                    done(pending.pop(future), future.result())
                tick()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
