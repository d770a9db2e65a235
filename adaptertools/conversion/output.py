"""A planned conversion written to files, in a hidden place that the caller publishes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from adaptertools.conversion.prepare import ConversionPlan
from adaptertools.errors import FormatError
from adaptertools.store.dtypes import DTYPES
from adaptertools.store.stored import Stored

Progress = Callable[[int, int], None]


def write_plan(
    plan: ConversionPlan, folder: Path, dtype: str, jobs: int, progress: Progress
) -> Path:
    """Write every file of a plan into `folder`; returns the weight file."""
    path = folder / plan.file
    tensors = _counted(_ordered(plan), progress)
    container = plan.spec.write["container"]
    WRITERS[container](path, plan, tensors, dtype, jobs)
    for name, values in plan.beside.items():
        (folder / name).write_bytes(config_bytes(name, values))
    return path


def is_single(plan: ConversionPlan, out: Path) -> bool:
    """Say whether OUT is to be the weight file itself: it has the ending of one.

    Raises `FormatError` (AT257) where the format has files beside it.
    """
    ending = "".join(Path(plan.file).suffixes)
    if not out.name.endswith(ending) or out.is_dir():
        return False
    if plan.beside:
        names = ", ".join(plan.beside)
        raise FormatError(
            "AT257",
            f"{plan.spec.title} has files beside the weights ({names}), so OUT is a folder",
            hint=f"leave {ending} away",
        )
    return True


def config_bytes(name: str, values: Any) -> bytes:
    """Return a config as its file's bytes: JSON, or YAML by the name's end; keys sorted."""
    if name.endswith(".yaml"):
        import yaml

        text: str = yaml.safe_dump(values, sort_keys=True)
        return text.encode()
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


def _ordered(plan: ConversionPlan) -> Sequence[Stored]:
    """Return the tensors as the container's own writers order them: safetensors by width, name."""
    if plan.spec.write["container"] == "safetensors":
        return sorted(plan.tensors, key=lambda t: (-DTYPES[t.dtype].bits, t.name))
    return plan.tensors


def _counted(tensors: Sequence[Stored], progress: Progress) -> list[Stored]:
    total, done = sum(t.size for t in tensors), [0]

    def counting(tensor: Stored) -> Callable[[], Any]:
        def load() -> Any:
            bits = tensor.load()
            done[0] += tensor.size
            progress(done[0], total)
            return bits

        return load

    return [replace(tensor, load=counting(tensor)) for tensor in tensors]


def _plain(
    path: Path, plan: ConversionPlan, tensors: Sequence[Stored], dtype: str, jobs: int
) -> None:
    from adaptertools.store.write import write_weights

    write = plan.spec.write
    metadata = write.get("metadata", {})
    write_weights(path, tensors, metadata, container=write["container"], jobs=jobs)


def _torch(
    path: Path, plan: ConversionPlan, tensors: Sequence[Stored], dtype: str, jobs: int
) -> None:
    from adaptertools.store.torchsave import write_torch

    write_torch(path, tensors, nest=plan.spec.write.get("nest"), jobs=jobs)


def _gguf(
    path: Path, plan: ConversionPlan, tensors: Sequence[Stored], dtype: str, jobs: int
) -> None:
    from adaptertools.store.gguf_write import encode_kv, write_gguf

    pairs = [encode_kv(key, value, _kind(value)) for key, value in plan.values.items()]
    rows = [_blocked(t) for t in tensors] if dtype == "Q8_0" else tensors
    write_gguf(path, pairs, rows, jobs=jobs)


def _kind(value: object) -> str:
    if isinstance(value, str):
        return "string"
    return "float32" if isinstance(value, float) else "uint32"


def _blocked(tensor: Stored) -> Stored:
    """Return a F32 tensor as Q8_0, or as F16 where its rows are no whole number of blocks."""
    import numpy as np

    def values() -> Any:
        return np.ascontiguousarray(tensor.load()).view(np.float32)

    if tensor.shape[-1] % 32:
        return replace(tensor, dtype="F16", load=lambda: values().astype(np.float16).view("u2"))

    def load() -> Any:
        from adaptertools.store.blocks import quantise_q8_0

        return quantise_q8_0(values())

    return replace(tensor, dtype="Q8_0", load=load)


def _nemo(
    path: Path, plan: ConversionPlan, tensors: Sequence[Stored], dtype: str, jobs: int
) -> None:
    from adaptertools.store.tar import write_tar
    from adaptertools.store.torchsave import write_torch

    weights = path.with_name("model_weights.ckpt")
    write_torch(weights, tensors, jobs=jobs)
    configs = {name: config_bytes(name, values) for name, values in plan.configs.items()}
    try:
        size = weights.stat().st_size

        def copy(to: BinaryIO) -> None:
            with weights.open("rb") as stream:
                shutil.copyfileobj(stream, to)

        heads = [(name, data, len(data)) for name, data in configs.items()]
        write_tar(path, [*heads, ("model_weights.ckpt", copy, size)])
    finally:
        weights.unlink()


def _rows(
    path: Path, plan: ConversionPlan, tensors: Sequence[Stored], dtype: str, jobs: int
) -> None:
    from adaptertools.conversion.rows import write_rows

    write_rows(path, tensors, plan.spec.write)


WRITERS = {
    "rows": _rows,
    "safetensors": _plain,
    "npz": _plain,
    "torch": _torch,
    "gguf": _gguf,
    "nemo": _nemo,
}
