"""Computing: one output tensor's values, block by block, from its source and its steps."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from adaptertools.adapter.model import Replace
from adaptertools.algebra.blocks import blocks
from adaptertools.algebra.kernels import AddLowRank, Kernel, make_kernel
from adaptertools.algebra.norms import low_rank_norm
from adaptertools.algebra.precision import compute_dtype
from adaptertools.algebra.rounding import COMPUTE, round_to
from adaptertools.errors import MergeError
from adaptertools.store.blocks import dequantise, quantise_q8_0
from adaptertools.store.dtypes import dtype_of, nbytes, torch_dtype
from adaptertools.store.read import read_into, read_tensor
from adaptertools.store.slot import Slot

if TYPE_CHECKING:
    from adaptertools.base.plan import TensorPlan


QUANTISERS = {"Q8_0": quantise_q8_0}
_LARGEST = {"Q8_0": 127 * 65504.0}  # of a block: its scale is a float16


class Encoder:
    """Rounds computed blocks once to the stored dtype, in one reused buffer."""

    def __init__(self, dtype: str, rows: int, columns: int) -> None:
        self.dtype, self.columns = dtype, columns
        self.row_bytes = nbytes(dtype, columns)
        if dtype not in QUANTISERS:
            self.raw = memoryview(bytearray(rows * self.row_bytes))
            flat = torch.frombuffer(self.raw, dtype=torch_dtype(dtype))
            self.rounded = flat.reshape(rows, columns)

    def encode(self, block: torch.Tensor) -> memoryview:
        """Return the bytes of a block; until the next one."""
        if (quantise := QUANTISERS.get(self.dtype)) is not None:
            self.raw = quantise(block.float().numpy()).reshape(-1).data
            return self.raw
        count = block.shape[0]
        round_to(self.rounded if count == self.rounded.shape[0] else self.rounded[:count], block)
        return self.raw[: count * self.row_bytes]

    def values(self, count: int) -> torch.Tensor:
        """Return what the bytes of the last block, of `count` rows, stand for."""
        if self.dtype in QUANTISERS:
            return torch.from_numpy(dequantise(self.raw, self.dtype, (count, self.columns)))
        return self.rounded[:count]


def as_stored(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """Return the values that `dtype` keeps of these, rounded once: block-quantised ones as F32."""
    if (quantise := QUANTISERS.get(dtype)) is not None:
        raw = quantise(values.float().numpy())
        return torch.from_numpy(dequantise(raw, dtype, tuple(values.shape)))
    wanted = torch_dtype(dtype)
    if values.dtype == wanted:
        return values
    out = torch.empty_like(values, dtype=wanted)
    round_to(out, values)
    return out


class BlockReader:
    """Reads row blocks of a tensor's source into one reused buffer; zeros where there is none."""

    def __init__(self, tensor: TensorPlan) -> None:
        self.tensor = tensor
        self.descriptor = -1
        self.whole: torch.Tensor | None = None
        self.block_type = False
        self.rows = -1

    def __enter__(self) -> BlockReader:
        source = self.tensor.source
        if source is not None and source.plain:
            self.block_type = dtype_of(source.dtype).block is not None
            self.descriptor = os.open(source.file, os.O_RDONLY)
        elif source is not None:
            self.whole = read_tensor(source).reshape(self.tensor.matrix)
        return self

    def __exit__(self, *_: object) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return rows [start, stop) in their stored dtype; valid until the next read.

        Block-quantised ones come as F32.
        """
        source, columns = self.tensor.source, self.tensor.matrix[1]
        if self.whole is not None:
            return self.whole[start:stop]
        if source is None:
            return torch.zeros((stop - start, columns), dtype=torch_dtype(self.tensor.dtype))
        if self.rows != stop - start:
            self._resize(source, stop - start, columns)
        read_into(self.descriptor, self.view, source.offset + start * self.row_bytes, source)
        if self.block_type:
            return torch.from_numpy(dequantise(self.view, source.dtype, (stop - start, columns)))
        return self.block

    def _resize(self, source: Slot, rows: int, columns: int) -> None:
        """Make the buffer hold `rows` rows, as bytes and as a tensor over the same memory."""
        self.rows, self.row_bytes = rows, nbytes(source.dtype, columns)
        self.view = memoryview(bytearray(rows * self.row_bytes))
        if self.block_type:
            return
        flat = torch.frombuffer(self.view, dtype=torch_dtype(source.dtype))
        self.block = flat.reshape(rows, columns)


@dataclass(frozen=True, slots=True)
class Program:
    """One tensor's kernels, loaded; `delta_norm` is ‖ΔW‖ where every step is low-rank.

    `given` kernels set full values, which are the weight that the `kernels` then change.
    """

    tensor: TensorPlan
    compute: torch.dtype
    given: tuple[Kernel, ...]
    kernels: tuple[Kernel, ...]
    delta_norm: float | None
    value: torch.Tensor | None

    def apply(self, block: torch.Tensor, stored: torch.Tensor, row: int) -> None:
        """Fill `block` with the new values of the rows from `row` on, unrounded."""
        if self.value is not None:
            block.copy_(self.value[row : row + block.shape[0]])
            return
        self.start(block, stored, row)
        original = block
        if any(kernel.looks_back for kernel in self.kernels[1:]):
            original = block.clone()
        for number, kernel in enumerate(self.kernels):
            kernel.apply(block, row, block if number == 0 else original)

    def start(self, block: torch.Tensor, stored: torch.Tensor, row: int) -> None:
        """Fill `block` with the weight before any change: as stored, or as given by the adapter."""
        block.copy_(stored)
        for kernel in self.given:
            kernel.apply(block, row, block)


def load_program(tensor: TensorPlan, compute_word: str) -> Program:
    """Read the factors of a tensor's steps and prepare its kernels."""
    compute = COMPUTE[compute_dtype(tensor.dtype, compute_word)]
    kind = dtype_of(tensor.dtype)
    if not (kind.floating or kind.block):
        return Program(tensor, torch_dtype(tensor.dtype), (), (), None, _plain_value(tensor))
    given = sum(isinstance(step.update, Replace) for step in tensor.steps)
    kernels = tuple(make_kernel(step, compute, tensor.matrix) for step in tensor.steps)
    norm = None
    if tensor.steps and all(step.low_rank for step in tensor.steps):
        norm = _delta_norm(kernels)
    program = Program(tensor, compute, kernels[:given], kernels[given:], norm, None)
    for kernel in program.kernels:
        kernel.prepare(lambda: _originals(program))
    return program


def _plain_value(tensor: TensorPlan) -> torch.Tensor:
    """Return the value of an integer tensor, which is only ever replaced or copied."""
    update = tensor.steps[-1].update if tensor.steps else None
    if isinstance(update, Replace):
        return update.value.read().to(torch_dtype(tensor.dtype)).reshape(tensor.matrix)
    assert tensor.source is not None
    return read_tensor(tensor.source).reshape(tensor.matrix)


def _delta_norm(kernels: tuple[Kernel, ...]) -> float:
    return low_rank_norm(
        (first, kernel.scale, left, right)
        for kernel in kernels
        if isinstance(kernel, AddLowRank)
        for first, left, right in kernel.segments
    )


def _originals(program: Program) -> Iterator[tuple[int, torch.Tensor]]:
    rows, columns = program.tensor.matrix
    with BlockReader(program.tensor) as reader:
        for start, stop in blocks(0, rows, columns):
            stored = reader.read(start, stop)
            block = torch.empty(stored.shape, dtype=program.compute)
            program.start(block, stored, start)
            yield start, block


def check_finite(tensor: TensorPlan, block: torch.Tensor) -> None:
    """Raise `MergeError` (AT407) when values are not finite, or overflow the stored dtype.

    Where the stored dtype has the range of the computed one, a finite sum settles it, cheaply.
    """
    if not block.dtype.is_floating_point:
        return
    narrow = tensor.dtype in ("F16", *_LARGEST) or block.dtype == torch.float64
    if not narrow and math.isfinite(float(block.sum())):
        return
    low, high = torch.aminmax(block)
    limit = _LARGEST.get(tensor.dtype) or torch.finfo(torch_dtype(tensor.dtype)).max
    if not (float(low) >= -limit and float(high) <= limit):
        what = "not finite" if not bool(block.isfinite().all()) else f"too large for {tensor.dtype}"
        raise MergeError(
            "AT407",
            f"the merged values are {what}",
            key=tensor.name,
            hint="check the base and the adapter for NaN, or choose a wider --dtype",
        )
