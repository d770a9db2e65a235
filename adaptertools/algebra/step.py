"""A step: one update as it applies to one stored base tensor. A plain value, free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from adaptertools.adapter.model import Dense, LowRank, Replace, Rows, Scaling, Update

Part = Literal["weight", "bias"]


@dataclass(frozen=True, slots=True)
class Step:
    """One update on one base tensor, seen as a matrix [rows, columns] of the stored layout.

    `weight` multiplies the change the update makes. `layout` is the dims pattern of the stored
    tensor. `part` says whether the tensor is the module's weight or its bias. `expert` picks one
    expert of a stacked update; `rows` are the output rows of the update that lie here; `at` is the
    matrix row where they begin; `groups` are those of a grouped convolution.
    """

    update: Update
    weight: float
    layout: str
    part: Part = "weight"
    expert: int | None = None
    rows: tuple[int, int] | None = None
    at: int = 0
    groups: int = 1

    @property
    def low_rank(self) -> bool:
        """Whether the step adds a plain low-rank product."""
        return (
            isinstance(self.update, LowRank)
            and self.part == "weight"
            and self.update.magnitude is None
        )

    def formula(self, symbol: str) -> str:
        """Return what the step does to `symbol`, as the plan prints it."""
        update = self.update
        factor = _times(self.weight)
        if isinstance(update, LowRank):
            return self._low_rank_formula(update, symbol)
        if isinstance(update, Scaling):
            vector = "l" if update.axis == "out" else "lᵀ"
            return f"{symbol} ⊙ {vector if self.weight == 1 else f'(1 + {factor}({vector} - 1))'}"
        if isinstance(update, Dense):
            return f"{symbol} + {factor}diff"
        noun = "rows" if isinstance(update, Rows) else "value"
        if isinstance(update, Replace | Rows) and self.weight == 1:
            return noun if noun == "value" else f"{symbol} with new rows"
        return f"{symbol} + {factor}({noun} - {symbol})"

    def _low_rank_formula(self, update: LowRank, symbol: str) -> str:
        scale = _times(update.scale * self.weight)
        if self.part == "bias":
            return f"{symbol} + {scale}b"
        product = "B@diag(E)@A" if update.gate else "B@A"
        total = f"{symbol} + {scale}{product}"
        if update.magnitude is None:
            return total
        delta = f"{_times(update.scale)}{product}"
        plain = f"m ⊙ ({symbol} + {delta}) / ‖W + {delta}‖"
        return plain if self.weight == 1 else f"{symbol} + {self.weight:g}·({plain} - {symbol})"


def _times(factor: float) -> str:
    return "" if factor == 1 else f"{factor:.6g}·"


def matrix_shape(layout: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the matrix [rows, columns] that a stored tensor of `shape` is seen as."""
    if layout.startswith("experts") and len(shape) == 3:
        return shape[0] * shape[1], shape[2]
    if not shape:
        return 1, 1
    return shape[0], prod(shape[1:])


def summary(step: Step) -> dict[str, Any]:
    """Return a step as JSON-ready facts."""
    update = step.update
    facts: dict[str, Any] = {
        "kind": update.kind,
        "weight": step.weight,
        "target": str(update.target),
    }
    if isinstance(update, LowRank):
        facts |= {"rank": update.rank, "scale": update.scale, "dora": update.magnitude is not None}
    if step.expert is not None:
        facts["expert"] = step.expert
    return facts
