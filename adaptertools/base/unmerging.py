"""`unmerge`: W' = round(W̃ - ΔW), refused where the stored dtype has lost too much of W.

| code | condition |
|---|---|
| AT420 | an update that has no inverse without the base |
| AT421 | more is lost than the bound; says how much, by tensor |
| AT422 | a channel was multiplied by zero |
| AT423 | the base given to compare with has no such tensor |
| AT424 | the receipt says that something else was merged (a warning) |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adaptertools.adapter.model import Adapter
from adaptertools.base.carry import Progress
from adaptertools.base.checkpoint import Checkpoint, open_base
from adaptertools.base.engine import Interrupts, run_threads
from adaptertools.base.merge import Merge
from adaptertools.base.options import AdapterRef, as_pairs, make_options
from adaptertools.base.plan import MergePlan, TensorPlan
from adaptertools.base.receipt import receipt_path
from adaptertools.base.recovering import Loss, lose
from adaptertools.base.result import MergeResult
from adaptertools.base.undoing import undone
from adaptertools.errors import AdapterError, Finding, FindingsError, MergeError, Where
from adaptertools.formats.opening import read_config
from adaptertools.store.dtypes import dtype_of
from adaptertools.store.read import sha256


class Unmerge(Merge):
    """A merge of the inverse: `base` is the merged checkpoint, `adapters` what was merged."""

    __slots__ = ()

    def opened(self, base: Checkpoint) -> list[tuple[Adapter, float]]:
        return undone(super().opened(base))

    def _recipe(self) -> dict[str, Any]:
        pairs = [{"path": str(path), "weight": weight} for path, weight in self.adapters]
        return {**super()._recipe(), "adapters": pairs, "undone": True}


@dataclass(frozen=True, slots=True)
class Unmerging:
    """A planned or finished unmerge: what each tensor loses, and the bound that was held.

    `limit` is of ‖error‖/‖W‖; None is each dtype's own, the largest error of one rounding.
    """

    out: Path
    plan: MergePlan
    losses: tuple[Loss, ...]
    limit: float | None
    notes: tuple[Finding, ...] = ()
    result: MergeResult | None = None

    @property
    def measured(self) -> bool:
        return all(loss.measured for loss in self.losses)

    @property
    def exact_share(self) -> float:
        """Return the share of the touched elements that come back bit for bit."""
        total = sum(loss.elements for loss in self.losses)
        return sum(loss.exact for loss in self.losses) / total if total else 1.0

    def to_json(self) -> dict[str, Any]:
        worst = max((loss.error for loss in self.losses), default=0.0)
        return {
            **({} if self.result is None else self.result.to_json()),
            "out": str(self.out),
            "merged": str(self.plan.base.root),
            "touched": len(self.losses),
            "measured": self.measured,
            "exact_share": self.exact_share,
            "largest_error": worst,
            "limit": self.limit,
            "losses": [loss.to_json() for loss in self.losses],
            "notes": [note.to_json() for note in (*self.plan.notes, *self.notes)],
        }


def plan_unmerge(
    job: Unmerge, base: Path | None = None, max_loss: float | None = None
) -> Unmerging:
    """Plan, and read what would be lost; raises `FindingsError` (AT421) where that is too much."""
    if max_loss is not None and not 0 <= max_loss < math.inf:
        raise AdapterError("AT500", f"the loss must be 0 or more, and finite, not {max_loss}")
    plan = job.plan()
    _check_stored(plan)
    truth = {} if base is None else dict(open_base(base).slots)
    _check_truth(plan, truth, base)
    found: dict[str, Loss] = {}
    total, done = sum(tensor.size for tensor in plan.touched), 0

    def finish(tensor: TensorPlan, loss: Loss) -> None:
        nonlocal done
        found[tensor.name] = loss
        done += tensor.size
        job.progress(done, total)

    def one(tensor: TensorPlan) -> Loss:
        return lose(tensor, plan.compute_dtype, truth.get(tensor.name))

    with Interrupts() as interrupts:
        run_threads(plan.touched, one, finish, job.options.jobs, interrupts.check)
    losses = tuple(found[tensor.name] for tensor in plan.touched)
    _check_losses(plan, losses, max_loss)
    return Unmerging(job.out, plan, losses, max_loss, _by_receipt(job, plan))


def run_unmerge(job: Unmerge, planned: Unmerging) -> Unmerging:
    """Write a planned unmerge and publish it."""
    return replace(planned, result=job.run(planned.plan))


def _check_stored(plan: MergePlan) -> None:
    """Refuse block-quantised tensors: each block was quantised anew, with a scale of its own."""
    odd = [t for t in plan.touched if t.source is None or dtype_of(t.source.dtype).block]
    odd += [t for t in plan.touched if dtype_of(t.dtype).block and t not in odd]
    if odd:
        title = "was quantised again by the merge, which cannot be undone"
        where = [Where(str(plan.base.root), tensor.name) for tensor in odd]
        raise FindingsError([Finding("AT420", "error", title, place) for place in where])


def _check_truth(plan: MergePlan, truth: dict[str, Any], base: Path | None) -> None:
    if base is None:
        return
    for tensor in plan.touched:
        slot = truth.get(tensor.name)
        if slot is None or slot.shape != tensor.shape or not dtype_of(slot.dtype).floating:
            has = "no such tensor" if slot is None else f"{slot.dtype} {list(slot.shape)} here"
            told = f"has {has}, the merged one is {tensor.dtype} {list(tensor.shape)}"
            hint = "is this the base of the merge?"
            raise MergeError("AT423", told, file=base, key=tensor.name, hint=hint)


def _check_losses(plan: MergePlan, losses: Sequence[Loss], limit: float | None) -> None:
    """Raise `FindingsError` (AT421), the worst first, where a tensor loses more than the bound."""
    over = [one for one in losses if not one.error <= (one.roundoff if limit is None else limit)]
    over.sort(key=lambda one: -one.error)
    findings = []
    for one in over:
        bound = one.roundoff if limit is None else limit
        what = f"one rounding to {one.dtype}" if limit is None else "--max-loss"
        verb = "lost" if one.measured else "would lose about"
        title = (
            f"{verb} {one.error:.2g} of ‖W‖, with {one.share:.1%} of its elements not bit for bit; "
            f"the bound is {bound:.2g} ({what})"
        )
        hint = f"the base itself is exact; else accept it by --max-loss {_above(over[0].error)}"
        where = Where(str(plan.base.root), one.name)
        findings.append(Finding("AT421", "error", title, where, hint=hint))
    if findings:
        raise FindingsError(findings)


def _above(error: float) -> str:
    """Return a short number that is not less than `error`."""
    return f"{error * 1.05:.2g}" if math.isfinite(error) else "…: no finite one does"


def _by_receipt(job: Unmerge, plan: MergePlan) -> tuple[Finding, ...]:
    """Warn where the receipt of the merged checkpoint does not name these adapters and weights."""
    path = receipt_path(job.base)
    if not path.is_file():
        return ()
    receipt = read_config(path)
    recipe, inputs = receipt.get("recipe"), receipt.get("inputs")
    if not isinstance(recipe, dict) or not isinstance(inputs, dict):
        return ()
    try:
        named = [
            ({name["sha256"] for name in files.values()}, float(pair["weight"]))
            for files, pair in zip(inputs["adapters"], recipe["adapters"], strict=True)
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        return ()
    wanted = dict.fromkeys((str(path), weight) for path, weight in job.adapters)
    hashes = {a.path: {sha256(Path(file)) for file in a.files} for a, _ in plan.adapters}
    odd = [
        f"{place}={weight:g}"
        for place, weight in wanted
        if (hashes.get(place), weight) not in named or recipe.get("undone")
    ]
    if not odd:
        return ()
    title = f"the receipt does not say that {', '.join(odd)} was merged here"
    hint = "check the adapter and its weight: 'verify' tells what is in a checkpoint"
    return (Finding("AT424", "warning", title, Where(str(path)), hint=hint),)


def unmerge(
    merged: str | Path,
    adapters: AdapterRef | Sequence[AdapterRef],
    out: str | Path,
    *,
    base: str | Path | None = None,
    max_loss: float | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Unmerging:
    """Take adapters out of a checkpoint that they were merged into, in the order of the merge.

    Low-rank changes and differences are subtracted, (IA)³ vectors divided by. Raises
    `FindingsError`: AT420 for what has no inverse, AT421 where a tensor loses more than `max_loss`
    of ‖W‖ (default: what one rounding to its dtype can be). With `base` the loss is measured, else
    it is estimated. With `dry_run` nothing is written. Options: `compute_dtype`, `jobs`,
    `overwrite`, `shard_size`, `sync`, `with_code`, `specs`, `given`.
    """
    job = Unmerge(
        Path(merged),
        as_pairs(adapters),
        Path(out),
        make_options(**options),
        progress or (lambda done, total: None),
    )
    planned = plan_unmerge(job, None if base is None else Path(base), max_loss)
    return planned if dry_run else run_unmerge(job, planned)
