"""Merging: open, plan, execute beside the output, publish by rename, write the receipt."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptertools.adapter.model import Adapter
from adaptertools.base import receipt
from adaptertools.base.carry import Progress, carry_out
from adaptertools.base.checkpoint import Checkpoint, open_base
from adaptertools.base.engine import Interrupts
from adaptertools.base.identity import identify
from adaptertools.base.journal import Journal, journal_folder
from adaptertools.base.options import AdapterRef, MergeOptions, as_pairs, make_options
from adaptertools.base.plan import MergePlan
from adaptertools.base.prepare import make_plan
from adaptertools.base.result import MergeResult, peak_rss
from adaptertools.base.work import Tally
from adaptertools.errors import (
    FindingsError,
    InterruptedMergeError,
    MergeError,
    OutputError,
    SourceError,
)
from adaptertools.formats.opening import open_adapter
from adaptertools.formats.values import value_findings
from adaptertools.store.create import NO_ROOM
from adaptertools.store.place import check_place, publish
from adaptertools.store.read import sha256


@dataclass(slots=True)
class Merge:
    """One merge, from references to a published model."""

    base: Path
    adapters: list[tuple[Path, float]]
    out: Path
    options: MergeOptions
    progress: Progress = field(default=lambda done, total: None)
    loading: threading.Thread | None = None
    stamps: dict[Path, tuple[int, int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with contextlib.suppress(OSError):  # a name the file system cannot take is told later
            if self.out.is_symlink():
                self.out = self.out.resolve()

    def plan(self) -> MergePlan:
        """Open everything and plan; nothing is written."""
        base = open_base(self.base)
        opened = self.opened(base)
        inputs = [self.base, base.root, *(path for path, _ in self.adapters)]
        check_place(
            self.out,
            inputs,
            is_file=base.is_file,
            ending=base.ending,
            overwrite=self.options.overwrite,
        )
        plan = make_plan(base, opened, self.options, self.out.name)
        self.stamps = {path: _stamp(path) for path in _sources(plan)}
        return plan

    def opened(self, base: Checkpoint) -> list[tuple[Adapter, float]]:
        """Open the adapters, each with the weight of its change."""
        accept = ("residual_base",) if self.options.residual_base else ()
        specs, given = self.options.specs, self.options.given
        return [
            (open_adapter(path, specs=specs, accept=accept, model=base.model, given=given), weight)
            for path, weight in self.adapters
        ]

    def preload(self) -> threading.Thread:
        """Start to import torch in the background, once, and return the thread that does."""
        if self.loading is None:
            self.loading = threading.Thread(target=_load_torch, daemon=True)
            self.loading.start()
        return self.loading

    def run(self, plan: MergePlan) -> MergeResult:
        """Carry a plan out; on failure nothing stays but, after an interrupt, the journal."""
        started = time.monotonic()
        loading = self.preload()
        try:
            with Interrupts() as interrupts:
                made, resumed = self._run(plan, interrupts)
        except KeyboardInterrupt:
            folder = journal_folder(self.out)
            if self.options.overwrite:
                shutil.rmtree(folder, ignore_errors=True)
            elif folder.exists():
                raise InterruptedMergeError(folder) from None
            raise
        except OSError as error:
            raise OutputError(
                "AT505",
                f"cannot be written: {error.strerror or error}",
                file=self.out,
                hint="free some space" if error.errno in NO_ROOM else "",
            ) from None
        finally:
            loading.join()
        peak = peak_rss()
        return MergeResult(self.out, plan, made, time.monotonic() - started, peak, resumed)

    def _run(self, plan: MergePlan, interrupts: Interrupts) -> tuple[dict[str, Any], int]:
        """Return the receipt, and how many tasks an earlier run had finished."""
        inputs = self._identify(plan)
        found = [f for adapter, _ in plan.adapters for f in value_findings(adapter)]
        if any(f.severity == "error" for f in found):
            raise FindingsError(found)
        interrupts.check()
        journal = self._open_journal(plan)
        try:
            resumed = journal.keep({file.name: file.size for file in plan.files})
            tallies = carry_out(
                plan, journal, self.out, self.options.jobs, interrupts.check, self.progress
            )
            if changed := [path for path, stamp in self.stamps.items() if _stamp(path) != stamp]:
                raise SourceError("AT411", "changed while it was being merged", file=changed[0])
            self._check_changed(plan, tallies)
            made = receipt.make_receipt(plan, tallies, inputs, self._recipe())
            self._publish(plan, journal, made)
        except KeyboardInterrupt:
            journal.close()
            raise
        except BaseException:
            journal.discard()
            raise
        return made, resumed

    def _open_journal(self, plan: MergePlan) -> Journal:
        folder, options = journal_folder(self.out), self.options
        existed = folder.exists()
        try:
            return Journal(self.out, plan.digest(), overwrite=options.overwrite, sync=options.sync)
        except OSError:
            if not existed:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _recipe(self) -> dict[str, Any]:
        options = self.options
        return {
            "dtype": options.dtype,
            "compute_dtype": options.compute_dtype,
            "shard_size": options.shard_size,
            "residual_base": options.residual_base,
            **({"given": dict(options.given)} if options.given else {}),
        }

    def _identify(self, plan: MergePlan) -> dict[str, Any]:
        return {
            "base": {
                shard.file.name: identify(shard.file, full=self.options.hash)
                for shard in plan.base.shards
            },
            "adapters": [
                {Path(file).name: {"sha256": sha256(Path(file))} for file in adapter.files}
                for adapter, _ in plan.adapters
            ],
        }

    def _check_changed(self, plan: MergePlan, tallies: dict[str, Tally]) -> None:
        if not any(tallies[t.name].changed for t in plan.touched if t.name in tallies):
            raise MergeError(
                "AT406",
                "nothing changed: the output would equal the base",
                file=plan.adapters[0][0].path,
                hint="the adapter is all zeros, or too small for this dtype (try --dtype f32)",
            )

    def _publish(self, plan: MergePlan, journal: Journal, made: dict[str, Any]) -> None:
        for companion in plan.companions:
            target = journal.files / companion.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if companion.content is not None:
                target.write_bytes(companion.content)
            elif companion.source is not None:
                shutil.copyfile(companion.source, target)
        text = json.dumps(made, indent=2, ensure_ascii=False) + "\n"
        data = text.encode("utf-8", "backslashreplace")  # of a lone surrogate: its JSON escape
        if self.options.sync:
            _sync(journal.files)
        if plan.base.is_file:
            beside = journal.folder / receipt.NAME
            beside.write_bytes(data)
            beside.replace(receipt.receipt_path(self.out))
            publish(journal.files / plan.files[0].name, self.out)
        else:
            (journal.files / receipt.NAME).write_bytes(data)
            publish(journal.files, self.out)
        journal.discard()


def _load_torch() -> None:
    """Import torch while files are hashed and untouched bytes are copied; no garbage is made."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        import adaptertools.base.compute  # noqa: F401
    finally:
        if collecting:
            gc.enable()


def _sources(plan: MergePlan) -> list[Path]:
    files = [Path(file) for adapter, _ in plan.adapters for file in adapter.files]
    return [shard.file for shard in plan.base.shards] + files


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _sync(folder: Path) -> None:
    for path in [p for p in folder.rglob("*") if p.is_file()] + [folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def merge(
    base: str | Path,
    adapters: AdapterRef | Sequence[AdapterRef],
    out: str | Path,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> MergeResult | MergePlan:
    """Merge adapters into a base checkpoint; with `dry_run`, return the plan and write nothing.

    `base` is a directory in Hugging Face's or Meta's layout, a `.safetensors` file, or a GGUF file
    or folder; `adapters` are one path, or several paths, `path=weight` strings or (path, weight)
    pairs, applied in order. Options: `dtype`,
    `compute_dtype`, `jobs`, `overwrite`, `shard_size`, `residual_base`, `hash`, `sync`,
    `with_code`, `specs`, `given`. Raises `AdapterError`; after any error nothing is left at `out`
    or beside it.
    """
    job = Merge(
        Path(base), as_pairs(adapters), Path(out), make_options(**options), progress or _silent
    )
    plan = job.plan()
    return plan if dry_run else job.run(plan)


def _silent(done: int, total: int) -> None:
    return None
