"""Inspecting: what is this adapter or checkpoint? From headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptertools.adapter.model import Adapter, LowRank, Scaling, Update, factors
from adaptertools.errors import AdapterError, Finding, FormatError
from adaptertools.formats.model import read_model
from adaptertools.formats.opening import open_adapter

if TYPE_CHECKING:
    from adaptertools.base.checkpoint import Checkpoint


CONTAINERS = {".safetensors": "safetensors", ".gguf": "gguf"}


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """One update: its target, kind, rank, scale, and the shape it acts on."""

    name: str
    kind: str
    rank: int | None
    scale: float | None
    shape: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "rank": self.rank,
            "scale": self.scale,
            "shape": list(self.shape),
        }


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """What an adapter is."""

    adapter: Adapter
    targets: tuple[TargetInfo, ...]
    dtypes: dict[str, int]
    bytes: int

    @property
    def ranks(self) -> dict[int, int]:
        return dict(sorted(Counter(t.rank for t in self.targets if t.rank is not None).items()))

    @property
    def scales(self) -> list[float]:
        return sorted({t.scale for t in self.targets if t.scale is not None})

    @property
    def alphas(self) -> list[float]:
        updates = self.adapter.updates
        return sorted({u.alpha for u in updates if isinstance(u, LowRank) and u.alpha is not None})

    def to_json(self) -> dict[str, Any]:
        adapter, ranks, scales = self.adapter, self.ranks, self.scales
        return {
            "kind": "adapter",
            "path": adapter.path,
            "format": adapter.format,
            "method": adapter.method,
            "base_model": adapter.base_model,
            "base_revision": adapter.base_revision,
            "rank": next(iter(ranks)) if len(ranks) == 1 else None,
            "ranks": {str(rank): count for rank, count in ranks.items()},
            "scale": scales[0] if len(scales) == 1 else None,
            "scales": scales,
            "targets": [t.to_json() for t in self.targets],
            "dtypes": self.dtypes,
            "bytes": self.bytes,
            "keys": adapter.keys,
            "unmatched": list(adapter.unmatched),
            "evidence": list(adapter.evidence),
            "findings": [f.to_json() for f in adapter.findings],
        }


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """What a base checkpoint is."""

    base: Checkpoint
    dtypes: dict[str, int]
    parameters: int
    bytes: int
    findings: tuple[Finding, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        base = self.base
        return {
            "kind": "base",
            "path": str(base.root),
            "format": CONTAINERS.get(base.shards[0].file.suffix, "torch"),
            "layout": base.layout.scheme,
            "family": base.family.id if base.family else None,
            "model_type": base.config.get("model_type"),
            "shards": len(base.shards),
            "tensors": len(base.slots),
            "parameters": self.parameters,
            "dtypes": self.dtypes,
            "bytes": self.bytes,
            "findings": [f.to_json() for f in self.findings],
        }


def inspect(
    ref: str | Path,
    *,
    base: str | Path | None = None,
    specs: Sequence[str | Path] = (),
    given: Mapping[str, Any] | None = None,
) -> AdapterInfo | BaseInfo:
    """Say what `ref` is, an adapter or a base checkpoint; raises `AdapterError` when neither.

    `base` tells the model's own names where the format has others; `given` are config fields that
    the file does not tell.
    """
    path = Path(ref)
    if path.is_dir() and _is_base(path):
        return _base_info(path)
    try:
        model = None if base is None else read_model(Path(base))
        opened = open_adapter(path, specs=[Path(s) for s in specs], model=model, given=given)
        return adapter_info(opened)
    except FormatError as error:
        if path.is_file() and error.code == "AT201":
            return _base_info(path)
        raise


def _is_base(path: Path) -> bool:
    from adaptertools.base.checkpoint import is_hf
    from adaptertools.base.layouts import is_model_folder

    if (path / "adapter_config.json").is_file():
        return False
    return is_hf(path) or is_model_folder(path)


def adapter_info(adapter: Adapter) -> AdapterInfo:
    """Summarise an opened adapter."""
    used = [factor for update in adapter.updates for factor in factors(update)]
    slots = {factor.key: factor.source for factor in used}.values()
    dtypes = dict(sorted(Counter(slot.dtype for slot in slots).items()))
    targets = tuple(_target(update) for update in adapter.updates)
    return AdapterInfo(adapter, targets, dtypes, sum(slot.size for slot in slots))


def _target(update: Update) -> TargetInfo:
    name = update.target.name
    if isinstance(update, LowRank):
        kind = "dora" if update.magnitude is not None else update.kind
        lead = () if update.experts is None else (update.experts,)
        at = len(lead)
        shape = (*lead, update.up.shape[at], *update.down.shape[at + 1 :])
        return TargetInfo(name, kind, update.rank, update.scale, shape)
    if isinstance(update, Scaling):
        return TargetInfo(name, f"scaling:{update.axis}", None, None, update.vector.shape)
    first = next(factors(update))
    return TargetInfo(name, update.kind, None, None, first.shape)


def _base_info(path: Path) -> BaseInfo:
    from adaptertools.base.checkpoint import open_base
    from adaptertools.base.quantised import refuse_quantised

    base = open_base(path)
    findings = []
    try:
        refuse_quantised(base)
    except AdapterError as error:
        findings.append(Finding(error.code, "warning", error.message, error.where, hint=error.hint))
    slots: Iterable[Any] = base.slots.values()
    dtypes = dict(sorted(Counter(slot.dtype for slot in slots).items()))
    vectors_again = [n for rank in base.ranks[1:] for n in base.slots if n.startswith(rank)]
    again = sum(base.slots[n].elements for n in vectors_again if len(base.slots[n].shape) < 2)
    parameters = sum(slot.elements for slot in base.slots.values()) - again
    size = sum(slot.bytes_needed for slot in base.slots.values())
    return BaseInfo(base, dtypes, parameters, size, tuple(findings))
