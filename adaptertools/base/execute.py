"""Executing tasks: byte ranges copied in the kernel, row blocks computed in fp32 or fp64.

Per block: read → upcast → every step in place → one rounding → write at its place. Each task has
its own buffers; block bounds come from shapes alone, so the bytes do not depend on the threads.
torch is imported by the first compute task, while copies already run.
"""

from __future__ import annotations

import errno
import os
import threading
import zlib
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adaptertools.algebra.blocks import block_rows, blocks
from adaptertools.base.plan import TensorPlan
from adaptertools.base.work import ComputeTask, CopyTask, Tally
from adaptertools.errors import SourceError
from adaptertools.store.dtypes import nbytes

if TYPE_CHECKING:
    import torch

    from adaptertools.base.compute import Program

SAMPLE_EVERY = 8
COPY_STEP = 4 << 20
_NOT_IN_KERNEL = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def _copy_some(source: int, target: int, task: CopyTask, done: int) -> int:
    left = min(COPY_STEP, task.size - done)
    at, to = task.source_offset + done, task.offset + done
    try:
        return os.copy_file_range(source, target, left, at, to)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NOT_IN_KERNEL:
            raise
    chunk = os.pread(source, left, at)
    write_all(target, memoryview(chunk), to)
    return len(chunk)


def write_all(descriptor: int, view: memoryview, offset: int) -> None:
    """Write the whole of `view` at `offset`."""
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], offset + done)


class Workshop:
    """Runs tasks into a folder, from any thread; a tensor's kernels are loaded once.

    Writers of one file take turns by a lock of ours: the kernel's own makes them spin.
    """

    def __init__(self, folder: Path, compute_word: str) -> None:
        self.folder, self.compute_word = folder, compute_word
        self.local = threading.local()
        self.lock = threading.Lock()
        self.turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self.guards: dict[str, threading.Lock] = {}
        self.programs: dict[str, Program] = {}
        self.waiting: dict[str, int] = {}

    def copy(self, task: CopyTask) -> None:
        """Copy a byte range, in the kernel where it can; a source that ends early is an error."""
        source = os.open(task.source, os.O_RDONLY)
        target = os.open(self.folder / task.output, os.O_WRONLY)
        try:
            done = 0
            while done < task.size:
                with self.turns[task.output]:
                    count = _copy_some(source, target, task, done)
                if count == 0:
                    raise SourceError("AT108", "the file ended early", file=task.source)
                done += count
        finally:
            os.close(source)
            os.close(target)

    def expect(self, task: ComputeTask) -> None:
        """Announce a task, so that its tensor's kernels are kept until the last one is done."""
        self.waiting[task.tensor.name] = self.waiting.get(task.tensor.name, 0) + 1

    def close(self) -> None:
        """Give torch its number of threads back, for those started after this."""
        import torch

        torch.set_num_threads(torch.get_num_threads())

    def run(self, task: ComputeTask) -> Tally:
        """Compute and write one chunk of a tensor; returns what was seen."""
        import torch

        if not getattr(self.local, "ready", False):
            torch.set_num_threads(1)
            self.local.ready = True
        name = task.tensor.name
        with torch.inference_mode():
            tally = self._write(task, self._program(name, task.tensor))
        with self.lock:
            self.waiting[name] -= 1
            if not self.waiting[name]:
                self.programs.pop(name, None)
        return tally

    def _program(self, name: str, tensor: TensorPlan) -> Program:
        from adaptertools.base.compute import load_program

        with self.lock:
            guard = self.guards.setdefault(name, threading.Lock())
        with guard:
            if name not in self.programs:
                self.programs[name] = load_program(tensor, self.compute_word)
            return self.programs[name]

    def _write(self, task: ComputeTask, program: Program) -> Tally:
        import torch

        from adaptertools.base.compute import BlockReader, Encoder, check_finite

        tensor, columns = task.tensor, task.tensor.matrix[1]
        rows = min(block_rows(columns), task.stop - task.start)
        if not rows or not columns:
            return Tally()
        row_bytes = nbytes(tensor.dtype, columns)
        scratch = torch.empty((rows, columns), dtype=program.compute)
        encoder, crc, size = Encoder(tensor.dtype, rows, columns), 0, 0
        tally = Tally(delta_norm=program.delta_norm if task.start == 0 else None)
        target = os.open(self.folder / task.output, os.O_WRONLY)
        try:
            with BlockReader(tensor) as reader:
                for number, (start, stop) in enumerate(blocks(task.start, task.stop, columns)):
                    stored, count = reader.read(start, stop), stop - start
                    block = scratch if count == rows else scratch[:count]
                    program.apply(block, stored, start)
                    check_finite(tensor, block)
                    raw = encoder.encode(block)
                    with self.turns[task.output]:
                        write_all(target, raw, task.offset + start * row_bytes)
                    if task.sealed:
                        crc, size = zlib.crc32(raw, crc), size + len(raw)
                    if number % SAMPLE_EVERY == 0 or not tally.changed:
                        tally += _observe(
                            tensor, stored, block, encoder.values(count), tally.changed
                        )
        finally:
            os.close(target)
        return replace(tally, crc=crc, bytes=size)


def _observe(
    tensor: TensorPlan,
    stored: torch.Tensor,
    block: torch.Tensor,
    out: torch.Tensor,
    changed: bool,
) -> Tally:
    """Tally one block: its first row is the sample; whether anything changed is exact."""
    import torch

    from adaptertools.base.compute import as_stored

    if not tensor.steps:
        return Tally()
    plain = as_stored(stored, tensor.dtype)
    if not out.dtype.is_floating_point:
        return Tally(changed=changed or not torch.equal(plain, out))
    before = stored[0].float()
    delta = block[0].float() - before
    moved = int(torch.count_nonzero(out[0] != plain[0]))
    return Tally(
        before.numel(),
        moved,
        float(before.square().sum(dtype=torch.float64)),
        float(delta.square().sum(dtype=torch.float64)),
        changed or moved > 0 or not torch.equal(out, plain),
    )
