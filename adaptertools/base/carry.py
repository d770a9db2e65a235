"""Carrying a plan out: every task run once, by threads, into the files of a journal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from adaptertools.base.engine import run_threads
from adaptertools.base.execute import Workshop
from adaptertools.base.journal import Journal
from adaptertools.base.plan import MergePlan, Sealed, Span
from adaptertools.base.work import ComputeTask, CopyTask, Tally, tasks
from adaptertools.store.archive import combine, write_sums
from adaptertools.store.create import create
from adaptertools.store.place import check_space
from adaptertools.store.read import range_crc

Progress = Callable[[int, int], None]


def carry_out(
    plan: MergePlan,
    journal: Journal,
    out: Path,
    jobs: int,
    check: Callable[[], None],
    progress: Progress,
) -> dict[str, Tally]:
    """Run what the journal lacks; return what was seen of each computed tensor, by name.

    `check` is called between tasks and may raise; `progress` gets bytes written, and of how many.
    """
    todo = list(tasks(plan))
    left = [task for task in todo if task.id not in journal.finished]
    written = sum(t.size for t in todo) - sum(t.size for t in left)
    check_space(out, plan.output_bytes, written)
    for file in plan.files:
        create(journal.files / file.name, file.header, file.size)
    workshop = Workshop(journal.files, plan.compute_dtype)
    for task in left:
        if isinstance(task, ComputeTask):
            workshop.expect(task)
    total = sum(task.size for task in todo)
    results: dict[str, Any] = dict(journal.finished)

    def do(task: CopyTask | ComputeTask) -> Tally:
        if isinstance(task, ComputeTask):
            return workshop.run(task)
        workshop.copy(task)
        return Tally()

    def done(task: CopyTask | ComputeTask, tally: Tally) -> None:
        nonlocal written
        results[task.id] = tally.to_json()
        journal.record(task.id, results[task.id])
        written += task.size

    def tick() -> None:
        check()
        progress(written, total)

    run_threads(left, do, done, jobs, tick)
    workshop.close()
    tallies: dict[str, Tally] = {}
    for task in todo:
        if isinstance(task, ComputeTask):
            name = task.tensor.name
            tallies[name] = tallies.get(name, Tally()) + Tally(*results[task.id])
    for file in plan.files:
        if file.seals:
            write_seals(journal.files / file.name, file.seals, tallies)
    return tallies


def write_seals(path: Path, seals: tuple[Sealed, ...], tallies: Mapping[str, Tally]) -> None:
    """Write the checksums of the members that changed, from those of their pieces."""
    sums = []
    for seal in seals:
        number, _ = reduce(_joined, (_checksum(piece, tallies) for piece in seal.pieces), (0, 0))
        sums += [(place, number) for place in seal.sums]
    write_sums(path, sums)


def _joined(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    return combine(first[0], second[0], second[1]), second[1]


def _checksum(piece: str | Span, tallies: Mapping[str, Tally]) -> tuple[int, int]:
    """Return the CRC-32 of a piece and its size; what stays is read from the base."""
    if isinstance(piece, str):
        return tallies[piece].crc, tallies[piece].bytes
    return range_crc(piece.source, piece.start, piece.size), piece.size
