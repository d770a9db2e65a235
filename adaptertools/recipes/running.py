"""Running a recipe: each step by the verb's own road, its output the next one's input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptertools.base.merge import Merge
from adaptertools.base.options import as_pairs, make_options
from adaptertools.check.repairing import fit_server
from adaptertools.composition.composing import composition
from adaptertools.conversion.convert import Conversion
from adaptertools.errors import AdapterError
from adaptertools.recipes.recipe import RecipeFile, RecipeStep
from adaptertools.store.dtypes import storage_word
from adaptertools.store.threads import available_cores

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step did, or (`planned`) would do; `waits` where it needs what is not there yet."""

    verb: str
    out: str
    facts: Mapping[str, Any]
    planned: bool = False
    waits: str | None = None

    def to_json(self) -> dict[str, Any]:
        waits = {"waits_for": self.waits} if self.waits else {}
        return {"verb": self.verb, "out": self.out, "planned": self.planned, **waits, **self.facts}


@dataclass(slots=True)
class Kitchen:
    """Runs recipes; `folder` is where relative paths begin, `out` replaces the last step's."""

    folder: Path
    out: Path | None = None
    overwrite: bool = False
    dry_run: bool = False
    jobs: int = 0
    progress: Progress = lambda done, total: None

    def cook(self, recipe: RecipeFile) -> list[StepResult]:
        """Run every step; the first error ends it, and what was done before stays."""
        outs = [self._out(step, step is recipe.steps[-1]) for step in recipe.steps]
        made: list[Path] = []
        results = []
        for step, out in zip(recipe.steps, outs, strict=True):
            results.append(self._step(step, out, made))
            made.append(out)
        return results

    def _out(self, step: RecipeStep, last: bool) -> Path:
        if last and self.out is not None:
            return self.out
        if "out" not in step.fields:
            hint = "give -o OUT, or an `out` in the recipe"
            raise AdapterError("AT500", f"the step {step.verb} says no out", hint=hint)
        return self.folder / str(step.fields["out"])

    def _step(self, step: RecipeStep, out: Path, made: list[Path]) -> StepResult:
        lacking = [name for name in step.inputs if self._path(name) in made]
        if self.dry_run and lacking and not self._path(lacking[0]).exists():
            return StepResult(step.verb, str(out), {}, True, lacking[0])
        facts = _VERBS[step.verb](self, step.fields, out)
        return StepResult(step.verb, str(out), facts, self.dry_run)

    def _path(self, name: str) -> Path:
        """Return a path of the recipe, without the weight that may stand beside it."""
        whole = self.folder / name
        head, mark, _ = name.rpartition("=")
        return self.folder / head if mark and head and not whole.exists() else whole

    def _adapters(self, items: Any) -> list[tuple[Path, float]]:
        pairs: list[Any] = []
        for item in items:
            if isinstance(item, Mapping):
                pairs.append((self.folder / str(item["path"]), float(item.get("weight", 1.0))))
            else:
                pairs.append(str(self.folder / str(item)))
        return as_pairs(pairs)

    def _base(self, fields: Mapping[str, Any]) -> Path | None:
        return self.folder / str(fields["base"]) if "base" in fields else None

    def _compose(self, fields: Mapping[str, Any], out: Path) -> dict[str, Any]:
        own = ("method", "params", "vectors", "last_wins", "seed", "split", "compat", "dtype")
        rule = next(iter(fields.get("rule", {}).items()), None)
        weights = fields.get("weights", "")
        if isinstance(weights, Mapping):
            weights = ",".join(f"{pattern}={factor}" for pattern, factor in weights.items())
        job = composition(
            self._adapters(fields["adapters"]),
            out,
            rule=rule,
            weights=weights,
            **{name: fields[name] for name in own if name in fields},
        )
        job.to, job.base = str(fields.get("to", "")), self._base(fields)
        job.lossy, job.given = bool(fields.get("lossy")), fields.get("given")
        job.overwrite, job.jobs, job.progress = self.overwrite, self._jobs(), self.progress
        plan = job.plan()
        return plan.to_json() if self.dry_run else job.run(plan).to_json()

    def _convert(self, fields: Mapping[str, Any], out: Path) -> dict[str, Any]:
        job = Conversion(
            self.folder / str(fields["ref"]),
            str(fields.get("to", "")),
            out,
            self._base(fields),
            bool(fields.get("lossy")),
            storage_word(str(fields.get("dtype", "auto"))),
            self.overwrite,
            jobs=self._jobs(),
            given=fields.get("given"),
            progress=self.progress,
        )
        if "for" in fields:
            fit_server(job, str(fields["for"]))
        plan = job.plan()
        return plan.to_json() if self.dry_run else job.run(plan).to_json()

    def _merge(self, fields: Mapping[str, Any], out: Path) -> dict[str, Any]:
        own = ("dtype", "compute_dtype", "shard_size", "residual_base", "given")
        chosen = {name: fields[name] for name in own if name in fields}
        options = make_options(overwrite=self.overwrite, jobs=self._jobs(), **chosen)
        base = self.folder / str(fields["base"])
        job = Merge(base, self._adapters(fields["adapters"]), out, options, self.progress)
        plan = job.plan()
        return plan.to_json(options.jobs) if self.dry_run else job.run(plan).to_json()

    def _jobs(self) -> int:
        return self.jobs or available_cores()


_VERBS: dict[str, Callable[[Kitchen, Mapping[str, Any], Path], dict[str, Any]]] = {
    "compose": Kitchen._compose,
    "convert": Kitchen._convert,
    "merge": Kitchen._merge,
}
