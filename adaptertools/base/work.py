"""Tasks: names and byte ranges only, never tensors, so any engine can run them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from adaptertools.algebra.blocks import chunks
from adaptertools.base.plan import MergePlan, OutputFile, Span, TensorPlan
from adaptertools.store.archive import combine
from adaptertools.store.dtypes import nbytes

COPY_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class CopyTask:
    """Copy `size` bytes from a base file to an output file, in the kernel where it can."""

    id: str
    source: str
    source_offset: int
    output: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class ComputeTask:
    """Compute matrix rows [start, stop) of one output tensor."""

    id: str
    tensor: TensorPlan
    output: str
    offset: int
    start: int
    stop: int
    size: int
    sealed: bool = False


@dataclass(frozen=True, slots=True)
class Tally:
    """What one compute task saw: whether anything changed, sums over the sampled rows, and ‖ΔW‖.

    `delta_norm` is exact, from the factors, and is there when every step is low-rank. `crc` is the
    CRC-32 of the `bytes` written, where the file has a checksum of them.
    """

    sampled: int = 0
    sampled_changed: int = 0
    weight_square: float = 0.0
    delta_square: float = 0.0
    changed: bool = False
    delta_norm: float | None = None
    crc: int = 0
    bytes: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.sampled + other.sampled,
            self.sampled_changed + other.sampled_changed,
            self.weight_square + other.weight_square,
            self.delta_square + other.delta_square,
            self.changed or other.changed,
            other.delta_norm if self.delta_norm is None else self.delta_norm,
            combine(self.crc, other.crc, other.bytes) if other.bytes else self.crc,
            self.bytes + other.bytes,
        )

    def to_json(self) -> list[Any]:
        return [
            self.sampled,
            self.sampled_changed,
            self.weight_square,
            self.delta_square,
            self.changed,
            self.delta_norm,
            self.crc,
            self.bytes,
        ]


def tasks(plan: MergePlan) -> Iterator[CopyTask | ComputeTask]:
    """Yield every task of a plan: copies first, so that they overlap with loading torch."""
    for file in plan.files:
        yield from _copies(file)
    for file in plan.files:
        for tensor in file.tensors:
            if tensor.work == "compute" and (file.kept is None or tensor.steps):
                yield from _computes(file, tensor)


def _copies(file: OutputFile) -> Iterator[CopyTask]:
    """Cut the ranges to copy into even pieces."""
    for source_file, source_offset, at, size in _runs(file) if file.kept is None else file.kept:
        for done in range(0, size, COPY_BYTES):
            piece = min(COPY_BYTES, size - done)
            yield CopyTask(
                f"copy:{file.name}:{at + done}",
                str(source_file),
                source_offset + done,
                file.name,
                at + done,
                piece,
            )


def _runs(file: OutputFile) -> list[Span]:
    """Join neighbouring untouched tensors into long ranges."""
    runs: list[Span] = []
    for tensor in sorted(file.tensors, key=lambda t: file.offsets[t.name]):
        source = tensor.source
        if tensor.work != "copy" or source is None or not source.size:
            continue
        one = Span(source.file, source.offset, file.offsets[tensor.name], source.size)
        last = runs[-1] if runs else None
        if last and last.source == one.source:
            ends = last.start + last.size, last.offset + last.size
            if ends == (one.start, one.offset):
                runs[-1] = last._replace(size=last.size + one.size)
                continue
        runs.append(one)
    return runs


def _computes(file: OutputFile, tensor: TensorPlan) -> Iterator[ComputeTask]:
    rows, columns = tensor.matrix
    for start, stop in chunks(rows, columns):
        yield ComputeTask(
            f"compute:{file.name}:{tensor.name}:{start}",
            tensor,
            file.name,
            file.offsets[tensor.name],
            start,
            stop,
            nbytes(tensor.dtype, (stop - start) * columns),
            bool(file.seals),
        )
