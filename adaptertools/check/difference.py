"""What a diff reports: one `Difference` per target or tensor, and the whole."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from adaptertools.algebra.compare import Conflict, Overlap

Status = Literal["identical", "same", "differs", "only-a", "only-b", "void", "reshaped"]
ALIKE = ("identical", "same", "void")


@dataclass(frozen=True, slots=True)
class Difference:
    """One target of two adapters, or one tensor of two checkpoints.

    `status`: `identical` (bit for bit), `same` (within `tol`), `differs`, `only-a`, `only-b`,
    `void` (only one side has it, and it changes nothing), `reshaped`. `relative` is the distance in
    units of the larger norm, the largest of `parts` where a target has several (delta, magnitude,
    bias); None where no number says it. `equal` of `elements` are equal where elements were
    compared.
    """

    name: str
    kind: str
    status: Status
    relative: float | None = None
    tol: float = 0.0
    norms: tuple[float | None, float | None] = (None, None)
    cosine: float | None = None
    output: Overlap | None = None
    input: Overlap | None = None
    conflict: Conflict | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    distance: float | None = None
    inner: float | None = None
    equal: int | None = None
    elements: int | None = None
    largest: float | None = None
    dtypes: tuple[str | None, str | None] = (None, None)
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None] = (None, None)
    detail: str = ""

    @property
    def differs(self) -> bool:
        return self.status not in ALIKE

    def to_json(self) -> dict[str, Any]:
        conflict = self.conflict
        return {
            "name": self.name,
            "kind": self.kind,
            "status": self.status,
            "relative": number(self.relative),
            "tol": self.tol,
            "norms": [number(n) for n in self.norms],
            "cosine": number(self.cosine),
            "overlap": {"output": _overlap(self.output), "input": _overlap(self.input)},
            "sign_conflict": conflict
            and {
                "share": conflict.share,
                "weighted": conflict.weighted,
                "rows": conflict.rows,
                "sampled_rows": conflict.sampled,
                "margin": conflict.margin,
            },
            "parts": {name: number(value) for name, value in self.parts.items()},
            "equal": self.equal,
            "elements": self.elements,
            "largest": number(self.largest),
            "dtypes": list(self.dtypes),
            "shapes": [None if s is None else list(s) for s in self.shapes],
            "detail": self.detail,
        }


def number(value: float | None) -> float | None:
    """Return a number that JSON can hold: None for NaN and infinity."""
    return value if value is not None and math.isfinite(value) else None


def _overlap(found: Overlap | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"share": found.share, "chance": found.chance, "cosines": list(found.cosines)}


@dataclass(frozen=True, slots=True)
class Total:
    """All low-rank changes together, as one long vector; a missing one counts as zero."""

    norms: tuple[float, float]
    distance: float
    cosine: float | None

    @property
    def relative(self) -> float:
        size = max(self.norms)
        return self.distance / size if size else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "norms": [number(n) for n in self.norms],
            "distance": number(self.distance),
            "relative": number(self.relative),
            "cosine": number(self.cosine),
        }


def total_of(items: Sequence[Difference]) -> Total | None:
    """Return the low-rank changes of two adapters as a whole; None where there are none."""
    found = [item for item in items if item.distance is not None]
    if not found:
        return None
    a, b = (math.sqrt(sum((item.norms[side] or 0.0) ** 2 for item in found)) for side in (0, 1))
    gap = math.sqrt(sum((item.distance or 0.0) ** 2 for item in found))
    inner = sum(item.inner or 0.0 for item in found)
    size = a * b
    return Total((a, b), gap, max(-1.0, min(1.0, inner / size)) if size else None)


@dataclass(frozen=True, slots=True)
class DiffReport:
    """Two adapters (`kind` "adapters") or two checkpoints ("checkpoints"), item by item.

    `tol` is the one that was given; None stands for the rounding of what is stored.
    """

    kind: Literal["adapters", "checkpoints"]
    a: str
    b: str
    formats: tuple[str, str]
    tol: float | None
    items: tuple[Difference, ...]
    total: Total | None = None

    @property
    def same(self) -> bool:
        """Whether nothing differs by more than the tolerance."""
        return not any(item.differs for item in self.items)

    @property
    def identical(self) -> bool:
        """Whether every item is the same bit for bit."""
        return all(item.status == "identical" for item in self.items)

    @property
    def apart(self) -> bool:
        """Whether these are two adapters without a target in common."""
        alone = all(item.status in ("only-a", "only-b", "void") for item in self.items)
        return self.kind == "adapters" and bool(self.items) and alone

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(item.status for item in self.items))

    @property
    def worst(self) -> Difference | None:
        """The item of both that differs most; None where none has a number."""
        both = [item for item in self.items if item.status in ("same", "differs")]
        found = [item for item in both if item.relative is not None]
        return max(found, key=lambda item: item.relative or 0.0, default=None)

    def to_json(self) -> dict[str, Any]:
        what = "targets" if self.kind == "adapters" else "tensors"
        return {
            "kind": self.kind,
            "a": self.a,
            "b": self.b,
            "formats": list(self.formats),
            "same": self.same,
            "identical": self.identical,
            "tol": self.tol,
            "counts": self.counts,
            "total": self.total and self.total.to_json(),
            what: [item.to_json() for item in self.items],
        }
