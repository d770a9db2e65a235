"""From an opened adapter to the files of another format, planned: nothing is written yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adaptertools.adapter.model import Adapter, Update, factors
from adaptertools.conversion.facts import Facts
from adaptertools.conversion.fill import complete, fill
from adaptertools.conversion.native import Joiner
from adaptertools.conversion.plain import trimmed
from adaptertools.conversion.report import Change
from adaptertools.conversion.scales import fit_ranks, fit_scales
from adaptertools.conversion.support import Support
from adaptertools.conversion.values import cast
from adaptertools.errors import Finding, FindingsError, FormatError, Where
from adaptertools.formats.model import Model
from adaptertools.formats.render import render
from adaptertools.formats.spec import FormatSpec
from adaptertools.store.dtypes import DTYPES
from adaptertools.store.stored import Stored


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """What will be written: `tensors` in `file`, `configs` by file name, `values` in the container.

    `updates` are the canonical updates that the written file must mean.
    """

    source: Adapter
    spec: FormatSpec
    model: Model
    file: str
    updates: tuple[Update, ...]
    tensors: tuple[Stored, ...]
    configs: Mapping[str, Any]
    values: Mapping[str, Any]
    changes: tuple[Change, ...] = ()
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(tensor.size for tensor in self.tensors)

    @property
    def beside(self) -> Mapping[str, Any]:
        """The configs that are files of their own."""
        return {} if self.spec.write.get("inside") else self.configs

    def to_json(self) -> dict[str, Any]:
        return {
            "from": self.source.format,
            "to": self.spec.id,
            "targets": len(self.updates),
            "tensors": len(self.tensors),
            "bytes": self.bytes,
            "dtypes": dict(sorted(Counter(t.dtype for t in self.tensors).items())),
            "files": [self.file, *self.beside],
            "changes": [change.to_json() for change in self.changes],
            "told": dict(self.told),
        }


def prepare(
    adapter: Adapter,
    spec: FormatSpec,
    model: Model,
    *,
    dtype: str = "auto",
    lossy: bool = False,
    trim: bool = False,
    rank: int = 0,
) -> ConversionPlan:
    """Plan a conversion; raises `FindingsError` with every reason why it is not possible."""
    if adapter.errors:
        raise FindingsError(adapter.findings)
    _check_source(adapter, spec)
    naming = model.naming(spec.scheme)
    support = Support(spec, model, naming, lossy)
    wanted, dropped = trimmed(adapter.updates) if trim else (adapter.updates, [])
    updates = support.kept(wanted)
    if not support.findings and not _has_main_kind(updates, spec):
        support.findings.append(_nothing(adapter, spec))
    if support.findings:
        raise FindingsError(support.findings)
    joiner, dtypes = Joiner(spec, naming), _dtype(adapter, spec, dtype)
    native, padded = fit_ranks(joiner.native(_cast(updates, dtypes)), spec, rank)
    native, completed = complete(native, spec, naming)
    native, layers, filled = fill(native, spec, naming)
    native, terms, folded = fit_scales(native, spec)
    facts = Facts(adapter, spec, model, updates, native, terms, layers)
    configs = {name: _config(facts, name) for name in spec.write.get("files", {})}
    values = facts.filled(spec.write.get("values", {}))
    _check_values(values, spec)
    told = {name: facts.filled("@alpha") for name in spec.write.get("told", ())}
    return ConversionPlan(
        adapter,
        spec,
        model,
        spec.write["file"],
        tuple(updates),
        tuple(render(native, spec)),
        configs,
        values,
        (
            *dropped,
            *support.changes,
            *_casts(updates, dtypes),
            *joiner.changes,
            *padded,
            *completed,
            *filled,
            *folded,
        ),
        told,
    )


def _check_source(adapter: Adapter, spec: FormatSpec) -> None:
    where = Where(adapter.files[0])
    if not spec.write:
        hint = "adaptertools formats lists those that can be written"
        raise FormatError("AT253", f"{spec.title} can be read, but not written", hint=hint)
    if adapter.scheme != "hf":
        note = next((f for f in adapter.findings if f.id == "AT314"), None)
        title = note.title if note else "the model it is for is not known"
        hint = "give --base: the base's folder, or its config.json alone"
        raise FindingsError([Finding("AT240", "error", title, where, hint=hint)])
    if quirk := next((f for f in adapter.findings if f.id == "AT312"), None):
        raise FindingsError([replace(quirk, severity="error", hint="merge it into its base")])


def _has_main_kind(updates: Sequence[Update], spec: FormatSpec) -> bool:
    """Say whether there is an update of the kind that the format is for (its first entry's)."""
    return any(update.kind == spec.updates[0].kind for update in updates)


def _check_values(values: Mapping[str, Any], spec: FormatSpec) -> None:
    lacking = [key for key in spec.write.get("required", ()) if key not in values]
    if lacking:
        raise FormatError(
            "AT256",
            f"{spec.title} names it, and it is not known",
            key=lacking[0],
            hint="give --base: the base's folder, or its config.json alone",
        )


def _casts(updates: Sequence[Update], dtypes: Mapping[str, str]) -> list[Change]:
    """Tell which dtypes are rounded to narrower ones."""
    changes = []
    for old, new in dtypes.items():
        if old != new and DTYPES[new].bits < DTYPES[old].bits:
            names = (u.target.name for u in updates if any(f.dtype == old for f in factors(u)))
            changes.append(Change("cast", f"{old} rounded to {new}", tuple(names)))
    return changes


def _nothing(adapter: Adapter, spec: FormatSpec) -> Finding:
    title = f"nothing of the adapter would be left in {spec.title}"
    return Finding("AT254", "error", title, Where(adapter.files[0]))


def _config(facts: Facts, name: str) -> dict[str, Any]:
    """Return a config; where source and target share a dialect, fields not written stay."""
    template = facts.spec.write["files"][name]
    written: dict[str, Any] = facts.filled(template)
    if facts.spec.config_schema is None or facts.spec.id != facts.source.format:
        return written
    return {**facts.source.config, **written}


def _dtype(adapter: Adapter, spec: FormatSpec, dtype: str) -> dict[str, str]:
    """Return the dtype that each stored one becomes; raises `FormatError` (AT255)."""
    allowed: Sequence[str] = spec.write.get("dtypes", ())
    found = dict.fromkeys(f.dtype for u in adapter.updates for f in factors(u))
    if dtype != "auto":
        if allowed and dtype not in allowed:
            told = ", ".join(allowed).lower()
            raise FormatError("AT255", f"{spec.title} holds no {dtype}", hint=f"use {told}")
        return dict.fromkeys(found, "F32" if dtype == "Q8_0" else dtype)
    wide = [name for name in found if allowed and name not in allowed]
    return {name: "F32" if name in wide else name for name in found}


def _cast(updates: Iterable[Update], dtypes: Mapping[str, str]) -> list[Update]:
    done = []
    for update in updates:
        changed: dict[str, Any] = {
            name: cast(factor, dtypes[factor.dtype])
            for name in update.__dataclass_fields__
            if (factor := getattr(update, name)) is not None and hasattr(factor, "bits")
        }
        done.append(replace(update, **changed))
    return done
