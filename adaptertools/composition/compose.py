"""`compose`: adapters in any formats to one adapter in any format, checked after writing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adaptertools.adapter.model import Adapter, LowRank
from adaptertools.composition.combine import Combined, Recipe, combine
from adaptertools.composition.reduce import content_id
from adaptertools.conversion.compare import Comparison, check_equal
from adaptertools.conversion.output import config_bytes, is_single, write_plan
from adaptertools.conversion.prepare import ConversionPlan, prepare
from adaptertools.errors import AdapterError, Finding, FindingsError, Where
from adaptertools.formats.config import config_findings
from adaptertools.formats.model import UNKNOWN, read_model
from adaptertools.formats.opening import open_adapter
from adaptertools.formats.registry import get_format
from adaptertools.store.place import check_place, check_space, publish, staged

Progress = Callable[[int, int], None]
KEPT = ("task_type", "auto_mapping")
RECIPE = "recipe.yaml"


@dataclass(frozen=True, slots=True)
class CompositionPlan:
    """What will be written, and by target the share of ‖ΔW‖² that a rank rule left out."""

    writing: ConversionPlan
    adapters: tuple[tuple[Adapter, float], ...]
    discarded: Mapping[str, float]
    notes: tuple[Finding, ...] = ()

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({u.rank for u in self.writing.updates if isinstance(u, LowRank)}))

    def to_json(self) -> dict[str, Any]:
        worst = max(self.discarded.values(), default=0.0)
        return {
            "adapters": [{"path": a.path, "weight": w} for a, w in self.adapters],
            **self.writing.to_json(),
            "ranks": list(self.ranks),
            "discarded": {"largest": worst, "targets": dict(self.discarded)},
            "notes": [note.to_json() for note in self.notes],
        }


@dataclass(frozen=True, slots=True)
class CompositionResult:
    """A finished composition; `checked` compares what was written with what was computed."""

    out: Path
    plan: CompositionPlan
    checked: tuple[Comparison, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            **self.plan.to_json(),
            "checked": len(self.checked),
            "exact": sum(one.exact for one in self.checked),
            "largest_error": max((one.error for one in self.checked), default=0.0),
        }


@dataclass(slots=True)
class Composition:
    """One composition, to be planned and then run; `to` is a format, "" for the first adapter's."""

    adapters: Sequence[tuple[Path, float]]
    out: Path
    recipe: Recipe = field(default_factory=Recipe)
    to: str = ""
    base: Path | None = None
    dtype: str = "auto"
    lossy: bool = False
    overwrite: bool = False
    jobs: int = 1
    specs: Sequence[Path] = ()
    given: Mapping[str, Any] | None = None
    told: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress = lambda done, total: None

    def plan(self) -> CompositionPlan:
        """Open, combine and plan; raises `AdapterError` for whatever stands in the way."""
        inputs = [path for path, _ in self.adapters] + ([self.base] if self.base else [])
        check_place(self.out, inputs, is_file=None, overwrite=self.overwrite)
        model = UNKNOWN if self.base is None else read_model(self.base)
        known = None if self.base is None else model
        opened = [
            (open_adapter(path, specs=self.specs, model=known, given=self.given), weight)
            for path, weight in self.adapters
        ]
        _check_sources([adapter for adapter, _ in opened])
        spec = get_format(self.to or _format(opened[0][0]), tuple(self.specs))
        recipe = _with_ids(self.recipe, [adapter for adapter, _ in opened], self.jobs)
        with _one_thread(recipe):
            done = combine(opened, recipe)
        whole = _as_adapter([adapter for adapter, _ in opened], done, spec.config_schema)
        writing = prepare(whole, spec, model, dtype=self.dtype, lossy=self.lossy)
        is_single(writing, self.out)
        return CompositionPlan(writing, tuple(opened), done.discarded, _base_notes(opened))

    def as_recipe(self) -> dict[str, Any]:
        """Return the recipe that makes the same bytes again: absolute paths, and no OUT."""
        adapters = [
            {"path": str(path.absolute()), "weight": weight} for path, weight in self.adapters
        ]
        more = {
            "to": self.to or None,
            "base": None if self.base is None else str(self.base.absolute()),
            "dtype": self.dtype,
            "lossy": self.lossy or None,
            "given": dict(self.given or {}) or None,
        }
        fields = {"adapters": adapters, **self.told, **more}
        kept = {
            name: value for name, value in fields.items() if value not in (None, {}, "", "auto")
        }
        return {"schema": 1, "steps": [{"compose": kept}]}

    def run(self, plan: CompositionPlan) -> CompositionResult:
        """Write the plan, read it back, compare, and only then move it into place."""
        single = is_single(plan.writing, self.out)
        check_space(self.out, plan.writing.bytes, 0)
        with staged(self.out) as folder:
            path = write_plan(plan.writing, folder, self.dtype, self.jobs, self.progress)
            checked = check_equal(plan.writing, path, self.dtype, self.jobs, self.specs)
            written = config_bytes(RECIPE, self.as_recipe())
            if not single:
                (folder / RECIPE).write_bytes(written)
            publish(path if single else folder, self.out)
            if single:
                self.out.with_name(f"{self.out.name}.{RECIPE}").write_bytes(written)
        return CompositionResult(self.out, plan, tuple(checked))


@contextmanager
def _one_thread(recipe: Recipe) -> Iterator[None]:
    """Let torch compute each target by one thread, where several run; afterwards as before."""
    if recipe.reduction is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1 if recipe.jobs > 1 else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _with_ids(recipe: Recipe, adapters: Sequence[Adapter], jobs: int) -> Recipe:
    """Return the recipe with what its method needs to know of the adapters; checks the method."""
    if recipe.reduction is None:
        return recipe
    from adaptertools.algebra.methods.registry import check_count, check_params, get_method

    method = get_method(recipe.reduction.method, recipe.reduction.compat)
    check_count(method, len(adapters))
    if method.kind == "base":
        raise AdapterError(
            "AT276",
            f"the method {method.name} works on whole weights",
            hint="merge the adapters into bases and use it there; adapters hold only changes",
        )
    params = check_params(method, recipe.reduction.params)
    needed = method.random or method.kind == "dense"
    ids = tuple(map(content_id, adapters)) if needed else ("",) * len(adapters)
    reduction = replace(recipe.reduction, params=params, ids=ids)
    return replace(recipe, reduction=reduction, jobs=jobs if method.kind == "low_rank" else 1)


def _check_sources(adapters: Sequence[Adapter]) -> None:
    findings = [f for a in adapters for f in (*a.findings, *config_findings(a))]
    if any(finding.severity == "error" for finding in findings):
        raise FindingsError(findings)
    for adapter in adapters:
        if adapter.scheme != "hf":
            hint = "give --base: the base's folder, or its config.json alone"
            title = f"its names are those of {adapter.format}"
            raise AdapterError("AT240", title, file=adapter.files[0], hint=hint)
        if quirk := next((f for f in adapter.findings if f.id == "AT312"), None):
            raise AdapterError("AT312", quirk.title, file=adapter.files[0])


def _format(adapter: Adapter) -> str:
    """Return the format of the first adapter, where it can be written, else PEFT's."""
    if get_format(adapter.format).write:
        return adapter.format
    scaling = all(update.kind == "scaling" for update in adapter.updates)
    return "peft-ia3" if scaling else "peft-lora"


def _as_adapter(adapters: Sequence[Adapter], done: Combined, schema: str | None) -> Adapter:
    first = adapters[0]
    named = next((adapter for adapter in adapters if adapter.base_model), first)
    config = {k: first.config[k] for k in KEPT if k in first.config}
    return Adapter(
        path=" + ".join(adapter.path for adapter in adapters),
        format="composition",
        method=first.method,
        updates=tuple(done.updates),
        config=config,
        base_model=named.base_model,
        base_revision=named.base_revision,
        files=first.files,
        config_schema=schema if first.config_schema == schema else None,
    )


def _base_notes(opened: Sequence[tuple[Adapter, float]]) -> tuple[Finding, ...]:
    """Warn where the adapters name different bases."""
    named = dict.fromkeys(a.base_model for a, _ in opened if a.base_model)
    if len(named) < 2:
        return ()
    title = f"the adapters name different bases: {', '.join(map(str, named))}"
    where = Where(opened[0][0].files[-1])
    return (Finding("AT275", "warning", title, where, hint="a sum makes sense on one base only"),)
