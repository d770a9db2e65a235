"""Kernels: a step with its factors loaded, applied in place to row blocks of one weight.

Every kernel sees the weight as a matrix [rows, columns] in the compute dtype, and a block as the
rows from `row` on. `original` is the same block before any step. Formulas: LoRA
https://arxiv.org/abs/2106.09685, DoRA https://arxiv.org/abs/2402.09353, (IA)³
https://arxiv.org/abs/2205.05638.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from adaptertools.adapter.model import Dense, LowRank, Replace, Rows, Scaling
from adaptertools.algebra.step import Step
from adaptertools.errors import MergeError

Blocks = Callable[[], Iterator[tuple[int, torch.Tensor]]]


class Kernel(Protocol):
    """What the engine calls: `prepare` once with the original blocks, then `apply` per block.

    `original` is the block before any change; a kernel that `looks_back` reads it.
    """

    looks_back: bool

    def prepare(self, blocks: Blocks) -> None: ...

    def apply(self, block: torch.Tensor, row: int, original: torch.Tensor) -> None: ...


class _Plain:
    """A kernel that needs no look at the whole weight, nor at what it was before."""

    looks_back = False

    def prepare(self, blocks: Blocks) -> None:
        return None


def segments(step: Step, dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield (first matrix row, left [rows, rank], right [rank, columns]): ΔW = scale·left@right."""
    update = step.update
    assert isinstance(update, LowRank)
    down, up = update.down.read().to(dtype), update.up.read().to(dtype)
    if update.gate is not None:
        down = down * update.gate.read().to(dtype)[:, None]
    if update.experts is None:
        down, up = down.reshape(1, update.rank, -1), up.reshape(1, -1, update.rank)
    numbers = range(down.shape[0]) if step.expert is None else (step.expert,)
    at = step.at
    for number in numbers:
        left, right = up[number], down[number]
        if step.layout.endswith("in out"):
            left, right = right.T, left.T
        if step.rows is not None:
            left = left[step.rows[0] : step.rows[1]]
        yield at, left.contiguous(), right.contiguous()
        at += left.shape[0]


class AddLowRank(_Plain):
    """block += scale · left @ right, on the rows that each segment covers."""

    def __init__(self, step: Step, dtype: torch.dtype) -> None:
        assert isinstance(step.update, LowRank)
        self.scale = step.update.scale * step.weight
        self.segments = list(segments(step, dtype))

    def apply(self, block: torch.Tensor, row: int, original: torch.Tensor) -> None:
        stop = row + block.shape[0]
        for first, left, right in self.segments:
            low, high = max(row, first), min(stop, first + left.shape[0])
            if low == row and high == stop:
                block.addmm_(left[low - first : high - first], right, alpha=self.scale)
            elif low < high:
                rows = left[low - first : high - first]
                block[low - row : high - row].addmm_(rows, right, alpha=self.scale)


class Dora:
    """block ← m ⊙ (block + D) / ‖W₀ + D‖, the norm along the input axis (PEFT: the original W₀)."""

    looks_back = True

    def __init__(self, step: Step, dtype: torch.dtype) -> None:
        update = step.update
        assert isinstance(update, LowRank) and update.magnitude is not None
        self.by_column = step.layout.endswith("in out")
        self.add = AddLowRank(Step(update, 1.0, step.layout), dtype)
        self.magnitude = update.magnitude.read().to(dtype).flatten()
        self.name = update.magnitude.key
        self.factor: torch.Tensor | None = None

    def prepare(self, blocks: Blocks) -> None:
        if not self.by_column:
            return
        total: torch.Tensor | None = None
        for row, block in blocks():
            self.add.apply(block, row, block)
            squares = block.double().square().sum(0)
            total = squares if total is None else total + squares
        assert total is not None
        self.factor = self._divide(self.magnitude.double(), total.sqrt()).to(self.magnitude.dtype)

    def apply(self, block: torch.Tensor, row: int, original: torch.Tensor) -> None:
        fresh = block is original
        self.add.apply(block, row, original)
        if self.factor is not None:
            block.mul_(self.factor[None, :])
            return
        norm_of = block
        if not fresh:
            norm_of = original.clone()
            self.add.apply(norm_of, row, original)
        norm = torch.linalg.vector_norm(norm_of, dim=1)
        rows = self.magnitude[row : row + block.shape[0]]
        block.mul_(self._divide(rows, norm)[:, None])

    def _divide(self, magnitude: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        if not bool(norm.all()):
            raise MergeError("AT407", "DoRA divides by the norm of an all-zero row", key=self.name)
        return magnitude / norm


class Scale(_Plain):
    """block ⊙ vector: per row, or per column (a convolution's columns are input ⊗ kernel).

    Of a grouped convolution the columns of each group of rows meet their own part of the vector.
    """

    def __init__(self, step: Step, dtype: torch.dtype, matrix: tuple[int, int]) -> None:
        update = step.update
        assert isinstance(update, Scaling)
        vector = update.vector.read().to(dtype).flatten() * update.scale
        if step.weight != 1:
            vector = 1 + step.weight * (vector - 1)
        transposed = step.layout.endswith("in out")
        self.by_row = step.part == "bias" or (update.axis == "out") != transposed
        self.vector, self.rows_per_group = vector, matrix[0]
        if not self.by_row:
            groups = step.groups
            per_column = matrix[1] * groups // vector.numel()
            self.vector = vector.repeat_interleave(per_column).reshape(groups, matrix[1])
            self.rows_per_group = matrix[0] // groups

    def apply(self, block: torch.Tensor, row: int, original: torch.Tensor) -> None:
        if self.by_row:
            block.mul_(self.vector[row : row + block.shape[0], None])
        else:
            rows = torch.arange(row, row + block.shape[0]) // self.rows_per_group
            block.mul_(self.vector if self.vector.shape[0] == 1 else self.vector[rows])


class Values(_Plain):
    """block ← value, or block + scale · value: full values, differences and biases.

    The value is read along with the block, so that a whole vocabulary never stands in memory.
    """

    def __init__(self, step: Step, columns: int) -> None:
        update, self.columns = step.update, columns
        self.scale: float | None = None
        if isinstance(update, Replace):
            self.value = update.value
        elif isinstance(update, Dense):
            self.value, self.scale = update.diff, 1.0
        else:
            assert isinstance(update, LowRank) and update.bias is not None
            self.value, self.scale = update.bias, update.scale

    def apply(self, block: torch.Tensor, row: int, original: torch.Tensor) -> None:
        start = row * self.columns
        values = self.value.read_flat(start, start + block.numel()).reshape(block.shape)
        if self.scale is None:
            block.copy_(values)
        else:
            block.add_(values.to(block.dtype), alpha=self.scale)


class TokenRows(_Plain):
    """Some rows of the block ← the trained ones."""

    def __init__(self, step: Step, dtype: torch.dtype) -> None:
        assert isinstance(step.update, Rows)
        self.values = step.update.values.read().to(dtype)
        self.places = {row: place for place, row in enumerate(step.update.index)}

    def apply(self, block: torch.Tensor, row: int, original: torch.Tensor) -> None:
        for at in range(block.shape[0]):
            if (place := self.places.get(row + at)) is not None:
                block[at].copy_(self.values[place])


class Weighted:
    """Any kernel with a weight: block + w · (kernel(block) - block)."""

    def __init__(self, kernel: Kernel, weight: float) -> None:
        self.kernel, self.weight = kernel, weight
        self.looks_back = kernel.looks_back

    def prepare(self, blocks: Blocks) -> None:
        self.kernel.prepare(blocks)

    def apply(self, block: torch.Tensor, row: int, original: torch.Tensor) -> None:
        before = block.clone()
        self.kernel.apply(block, row, before if block is original else original)
        block.sub_(before).mul_(self.weight).add_(before)


def make_kernel(step: Step, dtype: torch.dtype, matrix: tuple[int, int]) -> Kernel:
    """Return the kernel of a step, its factors read and upcast to `dtype`."""
    update = step.update
    if isinstance(update, Scaling):
        return Scale(step, dtype, matrix)
    if step.low_rank:
        return AddLowRank(step, dtype)
    kernel: Kernel
    if isinstance(update, Rows):
        kernel = TokenRows(step, dtype)
    elif isinstance(update, LowRank) and step.part == "weight":
        kernel = Dora(step, dtype)
    else:
        kernel = Values(step, matrix[1])
    return kernel if step.weight == 1 else Weighted(kernel, step.weight)
