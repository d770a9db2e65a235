"""The loop over samples: a few at a time, each in a folder of its own, counted in their order."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from adaptertools.base.engine import Interrupts
from adaptertools.errors import AdapterError, OutputError
from adaptertools.searching.log import SearchLog, Trial
from adaptertools.searching.making import Making, cook, write_recipe
from adaptertools.searching.sampler import Sampler
from adaptertools.searching.scorer import SampleError, Scorer, StoppedError
from adaptertools.searching.space import Point, Space
from adaptertools.store.threads import available_cores

TIMEOUT = 3600.0


@dataclass(frozen=True, slots=True)
class Budget:
    """When a search ends: after so many samples, seconds, or samples in a row without a better.

    `timeout` is in seconds and for scoring one sample.
    """

    samples: int
    seconds: float = math.inf
    patience: float = math.inf
    timeout: float = TIMEOUT

    def __post_init__(self) -> None:
        for name in ("samples", "seconds", "patience", "timeout"):
            if not getattr(self, name) > 0:
                raise AdapterError("AT500", f"{name} must be more than 0")


@dataclass(slots=True)
class Loop:
    """Samples until a budget is used up.

    Samples are counted (told to the sampler, compared, held against `patience`) in the order of
    their numbers, whichever ends first, so that `jobs` changes nothing but the time.
    """

    making: Making
    space: Space
    budget: Budget
    scorer: Scorer
    sampler: Sampler
    log: SearchLog
    scratch: Path
    name: str
    minimize: bool = False
    jobs: int = 1
    told: Callable[[Trial, bool], None] = lambda trial, better: None
    trials: list[Trial] = field(default_factory=list)
    best: Trial | None = None
    resumed: int = 0
    first: Sequence[Point] = ()
    following: int = 0
    idle: int = 0
    waiting: dict[int, Trial] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, interrupts: Interrupts) -> str:
        """Return which budget was used up; raises `KeyboardInterrupt`, and what a disk lacks."""
        end = time.monotonic() + self.budget.seconds
        running: set[Future[Trial]] = set()
        with ThreadPoolExecutor(self.jobs, thread_name_prefix="sample") as pool:
            try:
                while True:
                    interrupts.check()
                    while len(running) < self.jobs and not self._over(end) and self._ready():
                        self._start(pool, running)
                    if not running:
                        return self._over(end)
                    finished, running = wait(running, 0.1, FIRST_COMPLETED)
                    for future in finished:
                        self.log.append(future.result())
                        self._settle(future.result())
            finally:
                self.stop.set()

    def _over(self, end: float) -> str:
        if self.idle >= self.budget.patience:
            return "patience"
        if self.following >= self.budget.samples:
            return "samples"
        return "seconds" if time.monotonic() >= end else ""

    def _ready(self) -> bool:
        number = self.following - len(self.first)
        return number < 0 or self.sampler.ready(number)

    def _start(self, pool: ThreadPoolExecutor, running: set[Future[Trial]]) -> None:
        """Start the next sample, or take it from the log."""
        k, self.following = self.following, self.following + 1
        number = k - len(self.first)
        point = self.first[k] if number < 0 else self.space.point(self.sampler.ask(number))
        found = self.log.found.get(k)
        if found is None:
            running.add(pool.submit(self._try, k, point))
            return
        if found.point != point:
            hint = "another version made it; --overwrite begins afresh"
            title = f"its sample {k} is not the one that this search tries"
            raise AdapterError("AT800", title, file=self.log.path, hint=hint)
        self.resumed += 1
        self._settle(found)

    def _settle(self, trial: Trial) -> None:
        """Count the samples whose turn it is."""
        self.waiting[trial.k] = trial
        while self.idle < self.budget.patience and len(self.trials) in self.waiting:
            self._count(self.waiting.pop(len(self.trials)))

    def _count(self, trial: Trial) -> None:
        self.trials.append(trial)
        better = self._loss(trial) < (math.inf if self.best is None else self._loss(self.best))
        self.best = trial if better else self.best
        self.idle = 0 if better else self.idle + 1
        self.sampler.tell(trial.k - len(self.first), self._loss(trial))
        self.told(trial, better)

    def _loss(self, trial: Trial) -> float:
        """Return what is to be small: ∞ for a sample without a score."""
        if trial.score is None:
            return math.inf
        return trial.score if self.minimize else -trial.score

    def _try(self, k: int, point: Point) -> Trial:
        """Make a candidate and score it, in a worker thread."""
        started = time.monotonic()
        score, reason = None, ""
        folder = self.scratch / str(k)
        try:
            path = self._made(point, folder)
            score = self.scorer(path, folder, self.stop.is_set)
        except SampleError as error:
            reason = str(error)
        except OutputError:
            raise
        except AdapterError as error:
            reason = f"cannot be made: {error.code}: {error}"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return Trial(k, point, score, round(time.monotonic() - started, 3), reason)

    def _made(self, point: Point, folder: Path) -> Path:
        path = folder / "made" / self.name
        path.parent.mkdir(parents=True)
        recipe = folder / "recipe.yaml"
        write_recipe(self.making.recipe(point, self.space, str(folder / "adapter")), recipe)
        cook(recipe, path, max(1, available_cores() // self.jobs), progress=self._check)
        return path

    def _check(self, done: int, total: int) -> None:
        if self.stop.is_set():
            raise StoppedError
