"""`extract`: the adapter between two checkpoints, found tensor by tensor and written in any format.

| code | condition |
|---|---|
| AT655 | the two are far apart: probably not one the descendant of the other (a warning) |
| AT656 | most of a difference is the rounding of a 16-bit dtype (a warning) |
| AT659 | nothing differs that a rank could hold |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from adaptertools.adapter.model import Adapter
from adaptertools.base.checkpoint import Checkpoint, open_base
from adaptertools.base.engine import Interrupts, run_threads
from adaptertools.composition.compose import Composition, CompositionPlan
from adaptertools.composition.factoring import Extracted, Factoring, differs, extracted
from adaptertools.composition.tensors import Choice, Matching, Pair, unused
from adaptertools.conversion.compare import Comparison
from adaptertools.conversion.prepare import ConversionPlan, prepare
from adaptertools.errors import AdapterError, Finding, FindingsError, FormatError, Where
from adaptertools.formats.registry import get_format
from adaptertools.store.place import check_place

Progress = Callable[[int, int], None]
FAR = 0.3  # of ‖Δ‖/‖W‖, the median: no fine-tune moves weights so far
NOISY = 0.5  # of ‖Δ‖²
DEFAULT = ("rank", 16.0, None)


@dataclass(frozen=True, slots=True)
class ExtractionPlan:
    """The tensors that differ, those that are equal, and those that were not looked at."""

    base: Checkpoint
    tuned: Checkpoint
    pairs: tuple[Pair, ...]
    equal: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[Finding, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "base": str(self.base.root),
            "tuned": str(self.tuned.root),
            "differing": [
                {"name": p.name, "how": p.how, "shape": list(p.tuned.shape), "dtype": p.tuned.dtype}
                for p in self.pairs
            ],
            "equal": len(self.equal),
            "left_out": list(self.left_out),
            "notes": [note.to_json() for note in self.notes],
        }


@dataclass(frozen=True, slots=True)
class ExtractionResult:
    """A finished extraction: what became of each tensor, and what was written and compared."""

    out: Path
    plan: ExtractionPlan
    tensors: tuple[Extracted, ...]
    writing: ConversionPlan
    checked: tuple[Comparison, ...]
    notes: tuple[Finding, ...] = ()

    @property
    def residual(self) -> float:
        """Return the share of Σ‖Δ‖² of all low-rank changes that was left out."""
        found = [t for t in self.tensors if t.residual is not None]
        whole = sum(t.energy for t in found)
        return sum(t.energy * (t.residual or 0.0) for t in found) / whole if whole else 0.0

    def to_json(self) -> dict[str, Any]:
        written = self.writing.to_json()
        return {
            **self.plan.to_json(),
            "out": str(self.out),
            "to": written["to"],
            "bytes": written["bytes"],
            "files": written["files"],
            "changes": written["changes"],
            "tensors": [tensor.to_json() for tensor in self.tensors],
            "residual": self.residual,
            "checked": len(self.checked),
            "largest_error": max((one.error for one in self.checked), default=0.0),
            "notes": [note.to_json() for note in (*self.plan.notes, *self.notes)],
        }


@dataclass(slots=True)
class Extraction:
    """One extraction, to be planned (bytes are compared) and then run (differences factored)."""

    base: Path
    tuned: Path
    out: Path
    factoring: Factoring = field(default_factory=lambda: Factoring(DEFAULT))
    choice: Choice = field(default_factory=Choice)
    to: str = "peft-lora"
    dtype: str = "auto"
    lossy: bool = False
    overwrite: bool = False
    jobs: int = 1
    specs: Sequence[Path] = ()
    progress: Progress = lambda done, total: None

    def plan(self) -> ExtractionPlan:
        """Open both, pair their tensors and compare bytes; raises `AdapterError`."""
        check_place(self.out, [self.base, self.tuned], is_file=None, overwrite=self.overwrite)
        self._check_format()
        base, tuned = open_base(self.base), open_base(self.tuned)
        if odd := unused(self.choice, {**base.slots, **tuned.slots}):
            hint = f"tensors are called e.g. {next(iter(base.slots))}"
            raise AdapterError("AT500", f"the pattern {odd[0]!r} matches no tensor", hint=hint)
        matching = Matching(base, tuned, self.choice)
        pairs = matching.run()
        if matching.findings:
            raise FindingsError(matching.findings)
        changed = self._each(pairs, differs)
        found = [pair for pair in pairs if changed[pair.name]]
        kept = tuple(pair for pair in found if pair.how == "skipped" or matching.check(pair))
        if matching.findings:
            raise FindingsError(matching.findings)
        self._check_any(kept)
        equal = tuple(pair.name for pair in pairs if not changed[pair.name])
        notes = [n for n in matching.notes if any(p.name == n.where.key for p in kept)]
        return ExtractionPlan(base, tuned, kept, equal, tuple(matching.left_out), tuple(notes))

    def _check_any(self, pairs: Sequence[Pair]) -> None:
        """Refuse (AT659) where no weight differs that a rank could hold."""
        if any(pair.how in ("low rank", "embedding") for pair in pairs):
            return
        title, hint = "no tensor differs from the base's", ""
        if pairs:
            names = ", ".join(pair.name for pair in pairs[:2]) + (", …" if pairs[2:] else "")
            title = f"only {names} differ, and none of it becomes a low-rank change"
            hint = "--embeddings lora factors embeddings; copy the other tensors as they are"
        raise AdapterError("AT659", title, file=self.tuned, hint=hint)

    def run(self, plan: ExtractionPlan) -> ExtractionResult:
        """Factor what differs, write it, read it back, and only then move it into place."""
        made = self._each(plan.pairs, lambda pair: extracted(pair, self.factoring))
        tensors = tuple(made[pair.name] for pair in plan.pairs)
        model = plan.base.model
        spec = get_format(self.to, tuple(self.specs))
        whole = self._adapter(plan, tensors)
        if not whole.updates:
            raise AdapterError("AT659", "no value differs from the base's", file=self.tuned)
        writing = prepare(whole, spec, model, dtype=self.dtype, lossy=self.lossy)
        known = self.base if (self.base / "config.json").is_file() else None
        job = Composition((), self.out, to=self.to, base=known, dtype=self.dtype)
        job.overwrite, job.jobs, job.specs, job.progress = (
            self.overwrite,
            self.jobs,
            self.specs,
            self.progress,
        )
        written = job.run(CompositionPlan(writing, (), {}))
        notes = _notes(tensors, self.tuned)
        return ExtractionResult(self.out, plan, tensors, writing, written.checked, notes)

    def _check_format(self) -> None:
        spec = get_format(self.to, tuple(self.specs))
        if not spec.write or spec.updates[0].kind != "low_rank":
            hint = "adaptertools formats lists those that can be written"
            raise FormatError("AT253", f"{spec.title} takes no LoRA that is written", hint=hint)

    def _each(self, pairs: Sequence[Pair], do: Callable[[Pair], Any]) -> dict[str, Any]:
        """Do something to every pair, in threads; returns the results by name."""
        found: dict[str, Any] = {}
        total, done = sum(pair.base.size + pair.tuned.size for pair in pairs), 0

        def finish(pair: Pair, result: Any) -> None:
            nonlocal done
            found[pair.name] = result
            done += pair.base.size + pair.tuned.size
            self.progress(done, total)

        with Interrupts() as interrupts:
            run_threads(pairs, do, finish, self.jobs, interrupts.check)
        return found

    def _adapter(self, plan: ExtractionPlan, tensors: Sequence[Extracted]) -> Adapter:
        named = plan.base.config.get("_name_or_path")
        return Adapter(
            path=str(self.tuned),
            format="extract",
            method="lora",
            updates=tuple(u for t in tensors if t.energy or t.how != "low rank" for u in t.updates),
            base_model=named if isinstance(named, str) and named else str(self.base),
            files=(str(plan.tuned.shards[0].file),),
        )


def _notes(tensors: Sequence[Extracted], tuned: Path) -> tuple[Finding, ...]:
    """Return the warnings: too far apart, or mostly the noise of a 16-bit dtype."""
    notes, where = [], Where(str(tuned))
    ratios = [t.ratio for t in tensors if t.ratio is not None]
    if ratios and median(ratios) > FAR:
        title = f"the median ‖Δ‖/‖W‖ is {median(ratios):.2g}: is this a descendant of the base?"
        notes.append(Finding("AT655", "warning", title, where))
    factored = [t for t in tensors if t.noise is not None]
    noisy = [t for t in factored if (t.noise or 0.0) >= NOISY]
    if noisy:
        worst = max(noisy, key=lambda t: t.noise or 0.0)
        title = (
            f"in {len(noisy)} of {len(factored)} tensors most of the difference is that the tuned "
            f"weights were rounded to 16 bits (up to {worst.noise:.0%} of ‖Δ‖²): no small "
            "rank holds that"
        )
        notes.append(Finding("AT656", "warning", title, replace(where, key=worst.name)))
    return tuple(notes)
