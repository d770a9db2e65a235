"""A merge plan: a plain value, made from headers alone, that prints, serialises and is executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from adaptertools.adapter.model import Adapter, factors
from adaptertools.algebra.blocks import block_rows
from adaptertools.algebra.step import Step, summary
from adaptertools.base.checkpoint import Checkpoint
from adaptertools.errors import Finding
from adaptertools.store.dtypes import nbytes
from adaptertools.store.slot import Slot

Work = Literal["copy", "compute"]


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One output tensor: bytes copied from `source`, or computed from it by `steps`.

    `matrix` is the [rows, columns] view that the kernels work on.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Slot | None
    steps: tuple[Step, ...] = ()
    matrix: tuple[int, int] = (1, 1)

    @property
    def size(self) -> int:
        """The bytes of its data in the output."""
        return nbytes(self.dtype, self.matrix[0] * self.matrix[1])

    @property
    def work(self) -> Work:
        source = self.source
        if self.steps or source is None or not source.plain or source.dtype != self.dtype:
            return "compute"
        return "copy"

    @property
    def formula(self) -> str:
        """Return the formula of the new value, e.g. `W + 2·B@A`."""
        symbol = "b" if self.steps and self.steps[0].part == "bias" else "W"
        text = symbol
        for step in self.steps:
            inner = text if text == symbol or " " not in text else f"({text})"
            text = step.formula(inner)
        return text


class Span(NamedTuple):
    """Bytes of a base file, and where they go in the output."""

    source: Path
    start: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Sealed:
    """An archive's member whose checksum, written at `sums`, is that of `pieces` one by one.

    A piece is a tensor's name, or bytes that stay as they are in the base.
    """

    pieces: tuple[str | Span, ...]
    sums: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One weight file to write: its header, and where each tensor's data begins.

    Where `kept` is given, these bytes are copied, and of the tensors only those that are computed
    are written. `seals` are checksums to be written at the end.
    """

    name: str
    header: bytes
    tensors: tuple[TensorPlan, ...]
    offsets: Mapping[str, int]
    size: int
    kept: tuple[Span, ...] | None = None
    seals: tuple[Sealed, ...] = ()


@dataclass(frozen=True, slots=True)
class Companion:
    """A file beside the weights: copied from `source`, or written with `content`."""

    name: str
    source: Path | None = None
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Everything a merge will do. `notes` are the warnings and choices to tell the user."""

    base: Checkpoint
    adapters: tuple[tuple[Adapter, float], ...]
    files: tuple[OutputFile, ...]
    companions: tuple[Companion, ...]
    left_out: tuple[str, ...]
    compute_dtype: str
    targets: int
    notes: tuple[Finding, ...] = ()
    config_changes: Mapping[str, Any] = field(default_factory=dict)
    residual_base: bool = False

    @property
    def tensors(self) -> tuple[TensorPlan, ...]:
        return tuple(tensor for file in self.files for tensor in file.tensors)

    @property
    def touched(self) -> tuple[TensorPlan, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.steps)

    @property
    def computed_bytes(self) -> int:
        return sum(t.size for t in self.tensors if t.work == "compute")

    @property
    def copied_bytes(self) -> int:
        return sum(t.size for t in self.tensors if t.work == "copy")

    @property
    def output_bytes(self) -> int:
        extra = sum(_companion_size(c) for c in self.companions)
        return sum(file.size for file in self.files) + extra

    def peak_bytes(self, jobs: int) -> int:
        """Return the working memory of `jobs` threads, over what importing torch takes."""
        computed = [t for t in self.tensors if t.work == "compute"]
        return jobs * max((_working_set(t) for t in computed), default=0) + (8 << 20)

    def digest(self) -> str:
        """Return a hash of everything that decides the output bytes; a journal carries it."""
        facts = {
            "adapters": [
                [a.path, a.method, w, [_stamp(Path(f)) for f in a.files]] for a, w in self.adapters
            ],
            "base": [[str(s.file), *_stamp(s.file)] for s in self.base.shards],
            "files": [[f.name, hashlib.sha256(f.header).hexdigest(), f.size] for f in self.files],
            "compute": self.compute_dtype,
            "config": self.config_changes,
            "steps": [[t.name, [summary(s) for s in t.steps]] for t in self.touched],
        }
        text = json.dumps(facts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self, jobs: int = 1) -> dict[str, Any]:
        return {
            "base": str(self.base.root),
            "adapters": [
                {"path": a.path, "format": a.format, "method": a.method, "weight": w}
                for a, w in self.adapters
            ],
            "touched": len(self.touched),
            "targets": [
                {
                    "name": t.name,
                    "shape": list(t.shape),
                    "dtype": t.dtype,
                    "formula": t.formula,
                    "steps": [summary(step) for step in t.steps],
                }
                for t in self.touched
            ],
            "compute_dtype": self.compute_dtype,
            "copied_bytes": self.copied_bytes,
            "computed_bytes": self.computed_bytes,
            "peak_bytes": self.peak_bytes(jobs),
            "output_bytes": self.output_bytes,
            "files": [{"name": f.name, "bytes": f.size} for f in self.files]
            + [{"name": c.name, "bytes": _companion_size(c)} for c in self.companions],
            "left_out": list(self.left_out),
            "config_changes": dict(self.config_changes),
            "notes": [note.to_json() for note in self.notes],
        }


def _companion_size(companion: Companion) -> int:
    if companion.content is not None:
        return len(companion.content)
    return companion.source.stat().st_size if companion.source else 0


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _working_set(tensor: TensorPlan) -> int:
    block = block_rows(tensor.matrix[1]) * tensor.matrix[1]
    whole = tensor.source.size if tensor.source is not None and not tensor.source.plain else 0
    adapter = sum(f.size * 2 for step in tensor.steps for f in factors(step.update))
    return block * 24 + adapter + whole
