"""Keys to groups: which tensors of a file belong to one update on one module."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field

from adaptertools import schemas
from adaptertools.errors import Finding, Where
from adaptertools.formats.spec import FormatSpec, Role, UpdateSpec
from adaptertools.store.slot import Slot


@dataclass(slots=True)
class Group:
    """The tensors of one update on one module, by role."""

    update: UpdateSpec
    module: str
    param: str | None = None
    slots: dict[str, Slot] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Hit:
    number: int
    update: UpdateSpec
    role: Role
    module: str
    adapter: str | None
    param: str | None


class Grouping:
    """The result of matching every key of a file against a spec."""

    def __init__(self, spec: FormatSpec, slots: Mapping[str, Slot], file: str) -> None:
        self.spec, self.file = spec, file
        self.groups: dict[tuple[int, str, str | None], Group] = {}
        self.unmatched: list[str] = []
        self.findings: list[Finding] = []
        self._adapters: set[str] = set()
        self._stripped: set[str] = set()
        shared = [(slot, hits) for slot in slots.values() if len(hits := self._place(slot)) > 1]
        for slot, hits in shared:
            self._place_shared(slot, hits)
        self._report()

    def _place(self, slot: Slot) -> list[_Hit]:
        if any(fnmatch.fnmatchcase(slot.name, glob) for glob in self.spec.ignored):
            title = f"the runtime of {self.spec.title} takes no notice of it, and so do we"
            self._find("AT316", "warning", title, slot.name)
            return []
        hits = self._hits(slot.name, fallback=False) or self._hits(slot.name, fallback=True)[:1]
        if not hits:
            self.unmatched.append(slot.name)
        elif len(hits) == 1:
            self._add(hits[0], slot)
        return hits

    def _hits(self, key: str, *, fallback: bool) -> list[_Hit]:
        hits = []
        if fallback and any(mark in key for mark in self.spec.marks):
            return []
        for number, update, role in self.spec.roles():
            if update.fallback != fallback:
                continue
            for template in role.templates:
                found = template.match(key)
                if found is not None:
                    module = self._clean(found["module"])
                    adapter, param = found.get("adapter"), found.get("param")
                    hits.append(_Hit(number, update, role, module, adapter, param))
                    break
        return _restricted(hits)

    def _clean(self, module: str) -> str:
        """Drop the segments that training wrappers leave in a module path."""
        wrappers = schemas.table("names")["wrappers"]
        for written, meant in self.spec.aliases:
            if (fields := written.match(module)) is not None:
                module = meant.format(fields)
                break
        parts = module.split(".")
        kept = [part for part in parts if part not in wrappers]
        self._stripped.update(part for part in parts if part in wrappers)
        return ".".join(kept)

    def _add(self, hit: _Hit, slot: Slot) -> None:
        if hit.adapter is not None:
            self._adapters.add(hit.adapter)
        key = (hit.number, hit.module, hit.param)
        group = self.groups.setdefault(key, Group(hit.update, hit.module, hit.param))
        if hit.role.name in group.slots:
            first = group.slots[hit.role.name].name
            self._find("AT213", "error", f"names the same tensor as {first!r}", slot.name)
        group.slots.setdefault(hit.role.name, slot)

    def _place_shared(self, slot: Slot, hits: list[_Hit]) -> None:
        """Give a tensor that several updates could own to the one that has its siblings."""
        owners = [h for h in hits if (h.number, h.module, h.param) in self.groups]
        if len(owners) == 1:
            self._add(owners[0], slot)
        else:
            self.unmatched.append(slot.name)

    def _report(self) -> None:
        if len(self._adapters) > 1:
            names = ", ".join(sorted(self._adapters))
            self._find("AT213", "error", f"holds more than one adapter: {names}", None)
        if self._stripped:
            names = ", ".join(sorted(self._stripped))
            self._find(
                "AT311", "info", f"training wrappers in the key names dropped: {names}", None
            )
        for key in self.unmatched:
            self._find(
                "AT210",
                "error",
                f"no tensor of {self.spec.title} is called so",
                key,
                hint="nothing is dropped silently: remove the key, or convert the file first",
            )

    def _find(self, code: str, severity: str, title: str, key: str | None, hint: str = "") -> None:
        self.findings.append(
            Finding(code, severity, title, Where(self.file, key), hint=hint)  # type: ignore[arg-type]
        )


def _restricted(hits: list[_Hit]) -> list[_Hit]:
    """Keep the hit of an update that is only for this module, else those that are for any."""
    own = [hit for hit in hits if hit.module in hit.update.modules]
    return own or [hit for hit in hits if not hit.update.modules]
