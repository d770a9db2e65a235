"""How much of a base comes back when a change is taken out again: estimated, or measured.

The merge stored W̃ = round(W + ΔW), so W lies within half a unit in the last place of W̃ around
x = W̃ - ΔW, and round(x) is W where that is less than half a unit of W itself. With R the ratio of
the two units, and the lost rounding evenly spread, an element comes back bit for bit with
probability min(1, 1/R); its squared error is (R² + 2)/12 units² on average ((R - 1)/R below 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from adaptertools.adapter.model import Scaling
from adaptertools.algebra.blocks import blocks
from adaptertools.base.plan import TensorPlan
from adaptertools.store.dtypes import torch_dtype
from adaptertools.store.slot import Slot

if TYPE_CHECKING:
    import torch

    from adaptertools.base.compute import Program


@dataclass(frozen=True, slots=True)
class Loss:
    """What one tensor loses: the share of elements that are not the base's bits, and ‖error‖/‖W‖.

    `measured` against the base itself, else expected from the exponents. `roundoff` is the largest
    relative error of one rounding to the tensor's dtype.
    """

    name: str
    dtype: str
    elements: int
    exact: float
    error: float
    roundoff: float
    measured: bool = False

    @property
    def share(self) -> float:
        """Return the share of elements that do not come back bit for bit."""
        return 1.0 - self.exact / self.elements if self.elements else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": self.dtype,
            "elements": self.elements,
            "lost_share": self.share,
            "error": self.error,
            "measured": self.measured,
        }


def lose(tensor: TensorPlan, compute_word: str, base: Slot | None) -> Loss:
    """Return what a tensor of an unmerge loses; `base` is what it was before the merge."""
    import torch

    from adaptertools.base.compute import BlockReader, as_stored, check_finite, load_program

    torch.set_num_threads(1)
    rows, columns = tensor.matrix
    exact = error = size = 0.0
    with torch.inference_mode():
        program = load_program(tensor, compute_word)
        judge = _measured(tensor, base) if base is not None else _estimated(program)
        with BlockReader(tensor) as reader:
            for start, stop in blocks(0, rows, columns):
                stored = reader.read(start, stop)
                block = torch.empty(stored.shape, dtype=program.compute)
                program.apply(block, stored, start)
                check_finite(tensor, block)
                seen = judge(start, stop, stored, as_stored(block, tensor.dtype))
                exact, error, size = exact + seen[0], error + seen[1], size + seen[2]
    relative = math.sqrt(error / size) if size else math.inf if error else 0.0
    roundoff = torch.finfo(torch_dtype(tensor.dtype)).eps / 2
    count = rows * columns
    return Loss(tensor.name, tensor.dtype, count, exact, relative, roundoff, base is not None)


Judge = Callable[[int, int, "torch.Tensor", "torch.Tensor"], tuple[float, float, float]]


def _estimated(program: Program) -> Judge:
    """Return what tells (elements that come back, squared error, squared size) of a block."""
    import torch

    scaled = any(isinstance(step.update, Scaling) for step in program.tensor.steps)

    def judge(
        start: int, stop: int, stored: torch.Tensor, back: torch.Tensor
    ) -> tuple[float, float, float]:
        unit = ulp(back)
        slope = _slope(program, start, stored) if scaled else 1.0
        ratio = ulp(stored) * slope / unit
        few = torch.where(ratio <= 1, 0.0, (ratio - 1) / ratio)
        square = torch.where(ratio < 3, few, (ratio.square() + 2) / 12) * unit.square()
        exact = float((1 / ratio).clamp(max=1).sum())
        return exact, float(square.sum()), float(back.double().square().sum())

    return judge


def _slope(program: Program, start: int, stored: torch.Tensor) -> torch.Tensor:
    """Return by how much each element of the result moves with the stored one."""
    import torch

    ends = []
    for value in (0.0, 1.0):
        block = torch.empty(stored.shape, dtype=program.compute)
        program.apply(block, torch.full_like(stored, value), start)
        ends.append(block.double())
    return (ends[1] - ends[0]).abs()


def _measured(tensor: TensorPlan, base: Slot) -> Judge:
    """Return what compares a block with the base's own."""
    import torch

    from adaptertools.base.compute import BlockReader

    source = replace(tensor, source=base, dtype=base.dtype)

    def judge(
        start: int, stop: int, stored: torch.Tensor, back: torch.Tensor
    ) -> tuple[float, float, float]:
        with BlockReader(source) as reader:
            truth = reader.read(start, stop).clone()
        wide = truth.double()
        same = (back.double() == wide) & (back.signbit() == truth.signbit())
        same &= torch.tensor(back.dtype == truth.dtype)
        error = float((back.double() - wide).square().sum())
        return float(same.sum()), error, float(wide.square().sum())

    return judge


def ulp(values: torch.Tensor) -> torch.Tensor:
    """Return the distance of each value to the next larger one of its dtype, in F64."""
    import torch

    info = torch.finfo(values.dtype)
    wide = values.double().abs().clamp(min=info.tiny)
    exponent = torch.frexp(wide).exponent - 1
    return torch.ldexp(torch.full_like(wide, info.eps), exponent)
