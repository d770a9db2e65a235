"""What a conversion changes beside the layout: folded, padded, filled, lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from adaptertools.adapter.model import Update
from adaptertools.errors import Finding, Where

ChangeKind = Literal["folded", "padded", "joined", "filled", "cast", "dropped", "lost"]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that was done to `targets`; only `lost` changes what the adapter does."""

    kind: ChangeKind
    title: str
    targets: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "title": self.title, "targets": list(self.targets)}


def refusal(code: str, title: str, updates: Iterable[Update], hint: str = "") -> Finding:
    """Return the finding that a target format cannot hold some updates, naming their modules."""
    names = [update.target.name for update in updates]
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    where = Where(None, ", ".join(names[:2]) + more)
    return Finding(code, "error", title, where, hint=hint)
