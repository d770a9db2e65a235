"""Executing tasks: byte ranges copied in the kernel, row blocks computed in fp32 or fp64.

Per block: read → upcast → every step in place → one rounding → write at its place. Each thread has
its own buffers; block bounds come from shapes alone, so the bytes do not depend on the threads.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptertools.algebra.blocks import block_rows, blocks
from adaptertools.base.plan import TensorPlan
from adaptertools.base.work import ComputeTask, CopyTask, Tally
from adaptertools.errors import MergeError, SourceError
from adaptertools.store.dtypes import nbytes, torch_dtype
from adaptertools.store.read import read_into, read_tensor

if TYPE_CHECKING:
    import torch

_NOT_IN_KERNEL = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def copy_range(task: CopyTask, folder: Path) -> None:
    """Carry out a copy task; a source that ends early is an error."""
    source = os.open(task.source, os.O_RDONLY)
    target = os.open(folder / task.output, os.O_WRONLY)
    try:
        done = 0
        while done < task.size:
            count = _copy_some(source, target, task, done)
            if count == 0:
                raise SourceError("AT108", "the file ended early", file=task.source)
            done += count
    finally:
        os.close(source)
        os.close(target)


def _copy_some(source: int, target: int, task: CopyTask, done: int) -> int:
    left = task.size - done
    try:
        return os.copy_file_range(
            source, target, left, task.source_offset + done, task.offset + done
        )
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NOT_IN_KERNEL:
            raise
    chunk = os.pread(source, min(left, 1 << 22), task.source_offset + done)
    write_all(target, memoryview(chunk), task.offset + done)
    return len(chunk)


def write_all(descriptor: int, view: memoryview, offset: int) -> None:
    """Write the whole of `view` at `offset`."""
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], offset + done)


@dataclass(slots=True)
class Program:
    """One tensor's kernels, loaded once and shared by its tasks."""

    kernels: list[Any]
    whole: torch.Tensor | None
    delta_norm: float | None = None


class Workshop:
    """Runs compute tasks into a folder; safe to call from several threads."""

    def __init__(self, folder: Path, compute_word: str) -> None:
        self.folder, self.compute_word = folder, compute_word
        self.local = threading.local()
        self.lock = threading.Lock()
        self.programs: dict[str, tuple[threading.Lock, list[Program]]] = {}
        self.waiting: dict[str, int] = {}

    def expect(self, task: ComputeTask) -> None:
        """Announce a task, so that its tensor's kernels are kept until the last one is done."""
        key = f"{task.output}:{task.tensor.name}"
        self.waiting[key] = self.waiting.get(key, 0) + 1

    def run(self, task: ComputeTask) -> Tally:
        """Compute and write one chunk of a tensor; returns what was seen."""
        import torch

        if not getattr(self.local, "ready", False):
            torch.set_num_threads(1)
            self.local.ready = True
        key = f"{task.output}:{task.tensor.name}"
        with torch.inference_mode():
            program = self._program(key, task.tensor)
            tally = self._compute(task, program)
        with self.lock:
            self.waiting[key] -= 1
            if not self.waiting[key]:
                self.programs.pop(key, None)
        return tally

    def _program(self, key: str, tensor: TensorPlan) -> Program:
        with self.lock:
            guard, made = self.programs.setdefault(key, (threading.Lock(), []))
        with guard:
            if not made:
                made.append(self._load(tensor))
            return made[0]

    def _load(self, tensor: TensorPlan) -> Program:
        from adaptertools.algebra.kernels import make_kernel

        compute = self._dtype(tensor)
        source = tensor.source
        whole = None
        if source is not None and not source.plain:
            whole = read_tensor(source).reshape(tensor.matrix)
        program = Program([make_kernel(s, compute, tensor.matrix[1]) for s in tensor.steps], whole)
        if tensor.steps and all(step.low_rank for step in tensor.steps):
            program.delta_norm = _delta_norm(program.kernels)
        for kernel in program.kernels:
            kernel.prepare(lambda: self._originals(tensor, whole, compute))
        return program

    def _dtype(self, tensor: TensorPlan) -> torch.dtype:
        from adaptertools.algebra.precision import compute_dtype
        from adaptertools.algebra.rounding import COMPUTE

        return COMPUTE[compute_dtype(tensor.dtype, self.compute_word)]

    def _originals(
        self, tensor: TensorPlan, whole: torch.Tensor | None, compute: torch.dtype
    ) -> Iterator[tuple[int, torch.Tensor]]:
        rows, columns = tensor.matrix
        with BlockReader(tensor, whole) as reader:
            for start, stop in blocks(0, rows, columns):
                yield start, reader.read(start, stop).to(compute, copy=True)

    def _compute(self, task: ComputeTask, program: Program) -> Tally:
        import torch

        tensor = task.tensor
        columns, compute = tensor.matrix[1], self._dtype(tensor)
        rows = min(block_rows(columns), task.stop - task.start)
        if not rows or not columns:
            return Tally()
        scratch = torch.empty((rows, columns), dtype=compute)
        raw = bytearray(nbytes(tensor.dtype, rows * columns))
        rounded = torch.frombuffer(raw, dtype=torch_dtype(tensor.dtype)).reshape(rows, columns)
        target = os.open(self.folder / task.output, os.O_WRONLY)
        tally = Tally(delta_norm=program.delta_norm if task.start == 0 else None)
        try:
            with BlockReader(tensor, program.whole) as reader:
                for start, stop in blocks(task.start, task.stop, columns):
                    count = stop - start
                    stored = reader.read(start, stop)
                    block, out = scratch[:count], rounded[:count]
                    self._apply(tensor, program, stored, block, out, start)
                    size = nbytes(tensor.dtype, count * columns)
                    at = task.offset + nbytes(tensor.dtype, start * columns)
                    write_all(target, memoryview(raw)[:size], at)
                    tally += _observe(tensor, stored, block, out, tally.changed)
        finally:
            os.close(target)
        return tally

    def _apply(
        self,
        tensor: TensorPlan,
        program: Program,
        stored: torch.Tensor,
        block: torch.Tensor,
        out: torch.Tensor,
        row: int,
    ) -> None:
        from adaptertools.algebra.rounding import round_to

        if not out.dtype.is_floating_point:
            out.copy_(_last_value(tensor).reshape(tensor.matrix)[row : row + len(out)])
            return
        block.copy_(stored)
        for number, kernel in enumerate(program.kernels):
            kernel.apply(block, row, block if number == 0 else stored.to(block.dtype))
        _check_finite(tensor, block, out)
        round_to(out, block)


def _delta_norm(kernels: list[Any]) -> float:
    from adaptertools.algebra.norms import low_rank_norm

    return low_rank_norm(
        (first, kernel.scale, left, right)
        for kernel in kernels
        for first, left, right in kernel.segments
    )


def _last_value(tensor: TensorPlan) -> torch.Tensor:
    from adaptertools.adapter.model import Replace

    update = tensor.steps[-1].update if tensor.steps else None
    if isinstance(update, Replace):
        return update.value.read()
    assert tensor.source is not None
    return read_tensor(tensor.source)


def _check_finite(tensor: TensorPlan, block: torch.Tensor, out: torch.Tensor) -> None:
    import torch

    low, high = torch.aminmax(block)
    limit = torch.finfo(out.dtype).max
    if not (float(low) >= -limit and float(high) <= limit):
        what = "not finite" if not bool(block.isfinite().all()) else f"too large for {tensor.dtype}"
        raise MergeError(
            "AT407",
            f"the merged values are {what}",
            key=tensor.name,
            hint="check the base and the adapter for NaN, or choose a wider --dtype",
        )


def _observe(
    tensor: TensorPlan,
    stored: torch.Tensor,
    block: torch.Tensor,
    out: torch.Tensor,
    changed: bool,
) -> Tally:
    """Tally one block: its first row is the sample; whether anything changed is exact."""
    import torch

    if not tensor.steps:
        return Tally()
    if not out.dtype.is_floating_point or stored.dtype != out.dtype:
        different = not torch.equal(stored.to(out.dtype), out)
        return Tally(changed=different)
    before = stored[0].float()
    delta = block[0].float() - before
    moved = int(torch.count_nonzero(out[0] != stored[0]))
    return Tally(
        before.numel(),
        moved,
        float(before.square().sum(dtype=torch.float64)),
        float(delta.square().sum(dtype=torch.float64)),
        changed or moved > 0 or not torch.equal(out, stored),
    )


class BlockReader:
    """Reads row blocks of a tensor's source into one reused buffer; zeros where there is none."""

    def __init__(self, tensor: TensorPlan, whole: torch.Tensor | None) -> None:
        self.tensor, self.whole = tensor, whole
        self.descriptor = -1
        self.buffer = bytearray()

    def __enter__(self) -> BlockReader:
        if self.whole is None and self.tensor.source is not None:
            self.descriptor = os.open(self.tensor.source.file, os.O_RDONLY)
        return self

    def __exit__(self, *_: object) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return rows [start, stop) in their stored dtype; valid until the next read."""
        import torch

        source, columns = self.tensor.source, self.tensor.matrix[1]
        if self.whole is not None:
            return self.whole[start:stop]
        if source is None:
            return torch.zeros((stop - start, columns), dtype=torch_dtype(self.tensor.dtype))
        size = nbytes(source.dtype, (stop - start) * columns)
        if len(self.buffer) < size:
            self.buffer = bytearray(size)
        offset = source.offset + nbytes(source.dtype, start * columns)
        view = memoryview(self.buffer)[:size]
        read_into(self.descriptor, view, offset, source)
        return torch.frombuffer(view, dtype=torch_dtype(source.dtype)).reshape(-1, columns)
