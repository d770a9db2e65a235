"""The public `search`: best of K, as LLaMA-2-Chat chose among answers.

The more samples, the better the best of them, by the score that was used: score it once more by
something else before it is believed.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adaptertools.base.engine import Interrupts
from adaptertools.base.options import AdapterRef, as_pairs
from adaptertools.errors import AdapterError, OutputError
from adaptertools.searching.log import SearchLog, Trial
from adaptertools.searching.loop import TIMEOUT, Budget, Loop
from adaptertools.searching.making import Making, cook, write_recipe
from adaptertools.searching.plot import write_png
from adaptertools.searching.result import SearchResult
from adaptertools.searching.sampler import make_sampler
from adaptertools.searching.scorer import Function, make_scorer
from adaptertools.searching.space import Point, Space, make_space
from adaptertools.store.place import hidden_sibling
from adaptertools.store.threads import available_cores


@dataclass(slots=True)
class Search:
    """One search, ready to run; `told` is called with every sample, and whether it is the best."""

    making: Making
    space: Space
    out: Path
    score: str | Function
    budget: Budget
    sampler: str = "random"
    seed: int = 0
    minimize: bool = False
    jobs: int = 1
    resume: bool = False
    overwrite: bool = False
    told: Callable[[Trial, bool], None] = lambda trial, better: None

    def run(self) -> SearchResult:
        """Search, and write the best; raises `AdapterError`, and then only the log stays."""
        out, first = self.out.absolute(), self.space.first()
        self.making.check(self.space)
        scorer = make_scorer(self.score, self.budget.timeout)
        shares = [self.space.shares(point) for point in first]
        sampler = make_sampler(self.sampler, len(self.space.free), self.seed, shares)
        with Interrupts() as interrupts:
            self._check_places(out)
            self._plan(out, first[0])
            log = SearchLog(beside(out, "search.jsonl"), self._about(), resume=self.resume)
            scratch = hidden_sibling(out, "search")
            loop = Loop(
                self.making, self.space, self.budget, scorer, sampler, log, scratch, out.name
            )
            loop.minimize, loop.jobs = self.minimize, self.jobs
            loop.told, loop.first = self.told, first
            try:
                shutil.rmtree(scratch, ignore_errors=True)
                ended = loop.run(interrupts)
            except KeyboardInterrupt:
                hint = "the same command with --resume goes on from there"
                title = "interrupted; what is scored is kept here"
                raise AdapterError("AT900", title, file=log.path, hint=hint) from None
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
                log.close()
            return self._finish(out, loop, ended)

    def _check_places(self, out: Path) -> None:
        self.making.check_out(out, self.overwrite)
        if self.overwrite or self.resume:
            return
        for path in (beside(out, "search.jsonl"), beside(out, "recipe.yaml")):
            if path.exists():
                hint = "give --resume to go on, --overwrite to begin afresh, or another name"
                raise OutputError("AT501", "exists already", file=path, hint=hint)

    def _plan(self, out: Path, point: Point) -> None:
        """Plan the first candidate as if it had won, so that faults of the inputs come at once."""
        with tempfile.TemporaryDirectory() as folder:
            recipe = Path(folder) / "recipe.yaml"
            write_recipe(self.making.recipe(point, self.space, str(beside(out, "adapter"))), recipe)
            cook(recipe, out, available_cores(), overwrite=self.overwrite, dry_run=True)

    def _about(self) -> dict[str, Any]:
        named: Any = self.score
        if not isinstance(named, str):
            named = f"{getattr(named, '__module__', '?')}:{getattr(named, '__qualname__', '?')}"
        return {
            "inputs": self.making.inputs_hash(),
            "space": self.space.to_json(),
            "candidates": self.making.to_json(),
            "sampler": self.sampler,
            "seed": self.seed,
            "minimize": self.minimize,
            "score": named,
        }

    def _finish(self, out: Path, loop: Loop, ended: str) -> SearchResult:
        """Make the winner again, by its recipe, at OUT."""
        if loop.best is None:
            why = loop.trials[0].reason if loop.trials else "there was time for none"
            raise AdapterError(
                "AT802",
                f"none of {len(loop.trials)} samples has a score; the first: {why}",
                file=loop.log.path,
                hint="try the scorer by hand; --overwrite begins afresh",
            )
        recipe = beside(out, "recipe.yaml")
        adapter = beside(out, "adapter").name
        document = self.making.recipe(loop.best.point, self.space, adapter)
        write_recipe(document, recipe)
        cook(recipe, out, available_cores(), overwrite=self.overwrite)
        plot = beside(out, "search.png")
        drawn = write_png(plot, loop.trials, self.space, self.minimize)
        return SearchResult(
            out=self.out,
            best=loop.best,
            trials=loop.trials,
            space=self.space,
            minimize=self.minimize,
            recipe=recipe,
            log=loop.log.path,
            plot=plot if drawn else None,
            ended=ended,
            resumed=loop.resumed,
        )


def beside(out: Path, name: str) -> Path:
    """Return a file beside OUT that belongs to it."""
    return out.with_name(f"{out.name}.{name}")


def prepared(
    base: str | Path,
    adapters: Sequence[AdapterRef],
    out: str | Path,
    *,
    score: str | Function,
    samples: int,
    space: str = "",
    sampler: str = "random",
    seed: int = 0,
    minimize: bool = False,
    compose: bool = False,
    combine: str | None = None,
    params: Mapping[str, Any] | None = None,
    rule: tuple[str, float] | None = None,
    to: str | None = None,
    dtype: str = "auto",
    lossy: bool = False,
    given: Mapping[str, Any] | None = None,
    seconds: float | None = None,
    patience: int | None = None,
    timeout: float = TIMEOUT,
    jobs: int = 1,
    resume: bool = False,
    overwrite: bool = False,
) -> Search:
    """Return a search of these adapters; raises `AdapterError` (AT500) for what is not one."""
    paths = tuple(path for path, _ in as_pairs(adapters))
    making = Making(base=Path(base), adapters=paths, compose=compose)
    making = replace(making, combine=combine, params=dict(params or {}), rule=rule, to=to or "")
    making = replace(making, dtype=dtype, lossy=lossy, given=dict(given or {}), seed=seed)
    return Search(
        making=making,
        space=make_space(adapters, space),
        out=Path(out),
        score=score,
        budget=Budget(samples, _or_endless(seconds), _or_endless(patience), timeout),
        sampler=sampler,
        seed=seed,
        minimize=minimize,
        jobs=max(1, jobs),
        resume=resume,
        overwrite=overwrite,
    )


def _or_endless(budget: float | None) -> float:
    return math.inf if budget is None else budget


def search(
    base: str | Path,
    adapters: Sequence[AdapterRef],
    out: str | Path,
    *,
    score: str | Function,
    samples: int,
    **options: Any,
) -> SearchResult:
    """Sample `samples` weightings of the adapters, score each, and write the best to `out`.

    `score` is a command (text), `module:function`, or a function that is called with a path; a
    failure of it costs that sample only. Options: `space` (as `make_space` reads it), `sampler`
    (random, sobol, cma), `seed`, `minimize`, `compose` (score adapters; the base is only asked for
    names), `combine`, `params` and `rule` (a method of compose and a rank rule), `to`, `dtype`,
    `lossy`, `given`, `seconds`, `patience`, `timeout`, `jobs`, `resume`, `overwrite`.
    Raises `AdapterError`; then only the log stays, if a sample was scored.
    """
    return prepared(base, adapters, out, score=score, samples=samples, **options).run()
