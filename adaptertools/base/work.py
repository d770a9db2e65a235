"""Tasks: names and byte ranges only, never tensors, so any engine can run them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from adaptertools.algebra.blocks import chunks
from adaptertools.base.plan import MergePlan, OutputFile, TensorPlan
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


@dataclass(frozen=True, slots=True)
class Tally:
    """What one compute task saw: whether anything changed, sums over the sampled rows, and ‖ΔW‖.

    `delta_norm` is exact, from the factors, and is there when every step is low-rank.
    """

    sampled: int = 0
    sampled_changed: int = 0
    weight_square: float = 0.0
    delta_square: float = 0.0
    changed: bool = False
    delta_norm: float | None = None

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.sampled + other.sampled,
            self.sampled_changed + other.sampled_changed,
            self.weight_square + other.weight_square,
            self.delta_square + other.delta_square,
            self.changed or other.changed,
            other.delta_norm if self.delta_norm is None else self.delta_norm,
        )

    def to_json(self) -> list[Any]:
        return [
            self.sampled,
            self.sampled_changed,
            self.weight_square,
            self.delta_square,
            self.changed,
            self.delta_norm,
        ]


def tasks(plan: MergePlan) -> Iterator[CopyTask | ComputeTask]:
    """Yield every task of a plan: copies first, so that they overlap with loading torch."""
    for file in plan.files:
        yield from _copies(file)
    for file in plan.files:
        for tensor in file.tensors:
            if tensor.work == "compute":
                yield from _computes(file, tensor)


def _copies(file: OutputFile) -> Iterator[CopyTask]:
    """Join neighbouring untouched tensors into long ranges, cut into even pieces."""
    run: list[Any] = []
    runs = []
    for tensor in sorted(file.tensors, key=lambda t: file.offsets[t.name]):
        source = tensor.source
        if tensor.work != "copy" or source is None or not source.size:
            continue
        at = file.offsets[tensor.name]
        if (
            run
            and run[0] == source.file
            and run[1] + run[3] == source.offset
            and run[2] + run[3] == at
        ):
            run[3] += source.size
        else:
            run = [source.file, source.offset, at, source.size]
            runs.append(run)
    for source_file, source_offset, at, size in runs:
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
        )
