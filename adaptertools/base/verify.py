"""Verifying: does OUT hold this merge, by its receipt or by whoever made it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adaptertools import schemas
from adaptertools.base.checkpoint import Checkpoint, open_base
from adaptertools.base.engine import Interrupts, run_threads
from adaptertools.base.identity import identify
from adaptertools.base.options import AdapterRef, MergeOptions, as_pairs
from adaptertools.base.plan import MergePlan
from adaptertools.base.prepare import make_plan
from adaptertools.base.receipt import receipt_path
from adaptertools.base.undoing import undone
from adaptertools.errors import Finding, SourceError, Where
from adaptertools.formats.opening import open_adapter, read_config
from adaptertools.store.read import sha256
from adaptertools.store.threads import available_cores

FINE = ("exact", "two-roundings", "untouched")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of one tensor: `verdict`, and the numbers it rests on.

    Verdicts: `exact`, `two-roundings` (ΔW was rounded before it was added), `not-applied`,
    `other-strength` (with `strength`), `changed` (otherwise), `undecidable` (the change is smaller
    than the stored dtype can show), `missing`, `extra`, `untouched`.
    """

    name: str
    verdict: str
    equal_share: float | None = None
    max_ulps: int | None = None
    strength: float | None = None
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "verdict": self.verdict,
            "equal_share": self.equal_share,
            "max_ulps": self.max_ulps,
            "strength": self.strength,
            "detail": self.detail,
        }


@dataclass(frozen=True, slots=True)
class Verification:
    """The verdict on every tensor; `ok` when all are as the merge makes them."""

    out: Path
    by_receipt: bool
    targets: tuple[Verdict, ...]
    others: tuple[Verdict, ...]
    updates: int
    findings: tuple[Finding, ...] = field(default=())

    @property
    def ok(self) -> bool:
        fine = (*FINE, "undecidable") if self.by_receipt else FINE
        judged = all(v.verdict in fine for v in (*self.targets, *self.others))
        return judged and not any(f.severity == "error" for f in self.findings)

    def count(self, verdict: str) -> int:
        return sum(v.verdict == verdict for v in (*self.targets, *self.others))

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "out": str(self.out),
            "by_receipt": self.by_receipt,
            "updates": self.updates,
            "targets": [v.to_json() for v in self.targets],
            "untouched": self.count("untouched"),
            "others": [v.to_json() for v in self.others if v.verdict != "untouched"],
            "findings": [f.to_json() for f in self.findings],
        }


def verify(
    out: str | Path,
    base: str | Path | None = None,
    adapters: AdapterRef | Sequence[AdapterRef] = (),
    *,
    jobs: int | None = None,
    specs: Sequence[Path] = (),
    given: Mapping[str, Any] | None = None,
) -> Verification:
    """Say whether `out` is the merge of `adapters` into `base`, tensor by tensor.

    Without `base` and `adapters` they are taken from the receipt of `out`, and checked to be still
    the files it names. Raises `SourceError` (AT600 no receipt and no inputs, AT601 an input gone).
    """
    place = Path(out)
    made = open_base(place)
    receipt_file = receipt_path(place)
    receipt = read_config(receipt_file) if receipt_file.is_file() else {}
    by_receipt = base is None and not adapters
    findings: list[Finding] = []
    options = MergeOptions(specs=tuple(specs), given=dict(given or {}))
    if by_receipt:
        base, adapters, options = _from_receipt(receipt, receipt_file, options)
    elif base is None or not adapters:
        raise SourceError(
            "AT600", "needs both --base and --adapter, or neither", file=place, hint="give both"
        )
    accept = ("residual_base",) if options.residual_base or not by_receipt else ()
    source = open_base(Path(base or ""))
    opened = [
        (
            open_adapter(
                p, specs=options.specs, accept=accept, model=source.model, given=options.given
            ),
            w,
        )
        for p, w in as_pairs(adapters)
    ]
    if by_receipt and receipt["recipe"].get("undone"):
        opened = undone(opened)
    plan = make_plan(source, opened, options, place.name, made.slots)
    if by_receipt:
        findings += _check_inputs(plan, receipt, receipt_file)
    targets, others = _judge_all(plan, made, jobs or available_cores())
    return Verification(place, by_receipt, targets, others, plan.targets, tuple(findings))


def _from_receipt(
    receipt: dict[str, Any], file: Path, options: MergeOptions
) -> tuple[str, list[AdapterRef], MergeOptions]:
    recipe = receipt.get("recipe")
    if not isinstance(recipe, dict):
        raise SourceError(
            "AT600",
            "there is no receipt of adaptertools here",
            file=file,
            hint="give --base and --adapter to judge a merge made by any tool",
        )
    import jsonschema

    validator = jsonschema.Draft202012Validator(schemas.json_schema("receipt"))
    if fault := next(validator.iter_errors(receipt), None):
        told = f"the receipt is damaged: {fault.message[:160]}"
        raise SourceError("AT600", told, file=file, key=fault.json_path)
    try:
        base = str(recipe["base"])
        pairs: list[AdapterRef] = [(str(a["path"]), float(a["weight"])) for a in recipe["adapters"]]
        options = replace(
            options,
            dtype=recipe["dtype"],
            compute_dtype=recipe["compute_dtype"],
            residual_base=bool(recipe["residual_base"]),
            given=recipe.get("given", {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError("AT600", f"the receipt is damaged: {error!r}", file=file) from None
    for path in (base, *(str(p[0]) for p in pairs if isinstance(p, tuple))):
        if not Path(path).exists():
            raise SourceError(
                "AT601",
                f"the input {path} that the receipt names is not there",
                file=file,
                hint="give --base and --adapter with their present places",
            )
    return base, pairs, options


def _check_inputs(plan: MergePlan, receipt: dict[str, Any], file: Path) -> list[Finding]:
    """Report inputs that are not the files the receipt names."""
    found = []
    inputs = receipt.get("inputs") or {}
    for shard in plan.base.shards:
        noted = (inputs.get("base") or {}).get(shard.file.name) or {}
        now = identify(shard.file, full="sha256" in noted)
        if now != noted and "sha256" not in now:
            now = identify(shard.file, full=True)
        if now != noted:
            found.append(_changed(file, str(shard.file), noted, now))
    for (adapter, _), noted in zip(plan.adapters, inputs.get("adapters") or (), strict=False):
        for name in adapter.files:
            now = {"sha256": sha256(Path(name))}
            if noted.get(Path(name).name) != now:
                found.append(_changed(file, name, noted.get(Path(name).name), now))
    return found


def _changed(file: Path, name: str, noted: Any, now: Any) -> Finding:
    title = f"{name} is not the file that was merged"
    return Finding("AT602", "error", title, Where(str(file)), str(noted), str(now))


def _judge_all(
    plan: MergePlan, made: Checkpoint, jobs: int
) -> tuple[tuple[Verdict, ...], tuple[Verdict, ...]]:
    from adaptertools.base.judge import judge_one

    found: dict[str, Verdict] = {}
    with Interrupts() as interrupts:
        run_threads(
            plan.tensors,
            lambda tensor: judge_one(tensor, made.slots.get(tensor.name), plan.compute_dtype),
            lambda tensor, verdict: found.update({tensor.name: verdict}),
            jobs,
            interrupts.check,
        )
    targets = [found[tensor.name] for tensor in plan.tensors if tensor.steps]
    others = [found[tensor.name] for tensor in plan.tensors if not tensor.steps]
    others += [
        Verdict(name, "extra", detail="the merge does not write it")
        for name in made.slots
        if name not in found
    ]
    return tuple(targets), tuple(others)
