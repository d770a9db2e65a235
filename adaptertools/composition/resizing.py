"""`resize`: the composition of one adapter with a rank rule, and what that costs, by target.

| code | condition |
|---|---|
| AT660 | nothing in the adapter has a rank |
| AT661 | a DoRA's rank: what a smaller one loses depends on the base |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from adaptertools.adapter.model import Adapter, LowRank, factors
from adaptertools.composition.compose import Composition, CompositionPlan, CompositionResult
from adaptertools.composition.composing import RULES, composition
from adaptertools.conversion.report import refusal
from adaptertools.errors import AdapterError, FindingsError
from adaptertools.formats.model import read_model
from adaptertools.formats.opening import open_adapter
from adaptertools.store.threads import available_cores

# sd-scripts' names (networks/resize_lora.py, --dynamic_method) of the same rules
PEER_RULES = {"sv_fro": "fro", "sv_cumulative": "sum", "sv_ratio": "ratio"}
FLOATS = ("F64", "F32", "F16", "BF16")
Alpha = Literal["one", "keep"]


@dataclass(frozen=True, slots=True)
class Resized:
    """One target: its rank before and after, ‖ΔW‖², and the share of that which was left out."""

    target: str
    before: int
    after: int
    energy: float
    discarded: float

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "rank_before": self.before,
            "rank_after": self.after,
            "energy": self.energy,
            "discarded": self.discarded,
        }


@dataclass(frozen=True, slots=True)
class Resizing:
    """A planned or finished resize: the composition it is, and what becomes of each target."""

    out: Path
    plan: CompositionPlan
    targets: tuple[Resized, ...]
    result: CompositionResult | None = None

    @property
    def source(self) -> Adapter:
        return self.plan.adapters[0][0]

    @property
    def bytes_before(self) -> int:
        return sum(factor.size for update in self.source.updates for factor in factors(update))

    @property
    def discarded(self) -> float:
        """Return the share of Σ‖ΔW‖² over all targets that was left out."""
        whole = sum(target.energy for target in self.targets)
        lost = sum(target.energy * target.discarded for target in self.targets)
        return lost / whole if whole else 0.0

    def to_json(self) -> dict[str, Any]:
        made = self.plan.to_json() if self.result is None else self.result.to_json()
        lost = [target.discarded for target in self.targets]
        return {
            **made,
            "out": str(self.out),
            "bytes_before": self.bytes_before,
            "bytes_after": self.plan.writing.bytes,
            "discarded": {
                "total": self.discarded,
                "largest": max(lost, default=0.0),
                "targets": {target.target: target.discarded for target in self.targets},
            },
            "resized": [target.to_json() for target in self.targets],
        }


def resizing(
    ref: Path,
    out: Path,
    rule: tuple[str, float],
    most: int | None = None,
    *,
    split: str = "balanced",
    alpha: str = "one",
    dtype: str = "auto",
) -> Composition:
    """Return the composition that a resize is; `most` bounds the rank of a rule that is not one."""
    name = PEER_RULES.get(rule[0], rule[0])
    if alpha not in ("one", "keep"):
        raise AdapterError("AT500", f"alpha is one or keep, not {alpha!r}")
    job = composition([(ref, 1.0)], out, rule=(name, rule[1]), split=split, dtype=dtype)
    assert job.recipe.reduction is not None
    stored = "source" if job.dtype == "auto" else job.dtype if job.dtype in FLOATS else "F32"
    kept: Alpha = "keep" if alpha == "keep" else "one"
    reduction = replace(job.recipe.reduction, rule=(name, rule[1], most), dtype=stored, alpha=kept)
    job.recipe = replace(job.recipe, reduction=reduction)
    return job


def plan_resize(job: Composition) -> Resizing:
    """Plan a resize: everything is computed, nothing written; raises `AdapterError`."""
    _check(job)
    plan = job.plan()
    return Resizing(job.out, plan, _targets(plan))


def run_resize(job: Composition, planned: Resizing) -> Resizing:
    """Write a planned resize, read it back, and publish it."""
    return replace(planned, result=job.run(planned.plan))


def _check(job: Composition) -> None:
    """Refuse what has no rank, or one whose loss is not known here."""
    model = None if job.base is None else read_model(job.base)
    adapter = open_adapter(job.adapters[0][0], specs=job.specs, model=model, given=job.given)
    ranked = [u for u in adapter.updates if isinstance(u, LowRank)]
    if doras := [u for u in ranked if u.magnitude is not None]:
        title = "DoRA normalises W + ΔW, so what a smaller rank loses needs the base"
        hint = "merge it into its base, and extract a LoRA of the rank you want"
        raise FindingsError([refusal("AT661", title, doras, hint)])
    if adapter.updates and not ranked:
        title = f"nothing here has a rank: {adapter.format} holds other changes only"
        raise AdapterError("AT660", title, file=adapter.files[0])


def _targets(plan: CompositionPlan) -> tuple[Resized, ...]:
    """Return what became of each target: of a file with the same target twice, once."""
    from adaptertools.algebra.compare import delta, norm

    before: dict[str, int] = {}
    energy: dict[str, float] = {}
    for update in plan.adapters[0][0].updates:
        if isinstance(update, LowRank):
            gate = None if update.gate is None else update.gate.read()
            change = delta(update.up.read(), update.down.read(), update.scale, gate)
            before[update.target.name] = update.rank
            energy[update.target.name] = norm(change) ** 2
    return tuple(
        Resized(name, before[name], u.rank, energy[name], plan.discarded.get(name, 0.0))
        for u in plan.writing.updates
        if isinstance(u, LowRank) and (name := u.target.name) in before
    )


def resize(
    ref: str | Path,
    out: str | Path,
    *,
    split: str = "balanced",
    alpha: str = "one",
    to: str | None = None,
    base: str | Path | None = None,
    dtype: str = "auto",
    lossy: bool = False,
    overwrite: bool = False,
    jobs: int | None = None,
    specs: Sequence[str | Path] = (),
    given: Mapping[str, Any] | None = None,
    **rules: float,
) -> Resizing:
    """Write an adapter again with smaller ranks, chosen by one rule, and tell what that loses.

    Rules: `rank`, `energy`, `fro`, `sum`, `ratio`, `sv_min`, `max_error`, or sd-scripts' `sv_fro`,
    `sv_cumulative`, `sv_ratio`; `rank` beside another one is the most that it may keep. `alpha`
    "one" makes the scale 1, "keep" leaves it. `dtype` "auto" is the adapter's own. Raises
    `AdapterError`; then nothing is left.
    """
    rule, most = chosen(rules)
    job = resizing(Path(ref), Path(out), rule, most, split=split, alpha=alpha, dtype=dtype)
    job.to, job.base = to or "", None if base is None else Path(base)
    job.lossy, job.overwrite, job.jobs = lossy, overwrite, jobs or available_cores()
    job.specs, job.given = tuple(Path(spec) for spec in specs), given
    return run_resize(job, plan_resize(job))


def chosen(rules: Mapping[str, float]) -> tuple[tuple[str, float], int | None]:
    """Return the one rule among `rules`, and the rank beside it; raises `AdapterError` (AT500)."""
    known = (*RULES, *PEER_RULES)
    if odd := [name for name in rules if name not in known]:
        raise AdapterError("AT500", f"no rank rule is called {odd[0]!r}", hint=", ".join(known))
    others = [(name, float(value)) for name, value in rules.items() if name != "rank"]
    if len(others) > 1 or not rules:
        raise AdapterError("AT500", f"give one rank rule, not {len(others)}", hint=", ".join(known))
    rank = rules.get("rank")
    if rank is not None and (rank != int(rank) or rank < 1):
        raise AdapterError("AT500", f"a rank is a whole number from 1 on, not {rank}")
    if not others:
        assert rank is not None
        return ("rank", float(rank)), None
    return others[0], None if rank is None else int(rank)
