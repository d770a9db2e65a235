"""The receipt `adaptertools.json`: what was merged into what, how, and what it changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adaptertools.algebra.precision import compute_dtype
from adaptertools.base.plan import MergePlan, TensorPlan
from adaptertools.base.work import Tally

NAME = "adaptertools.json"
FILES = (".safetensors", ".gguf")


def receipt_path(out: Path) -> Path:
    """Return where the receipt of `out` is: inside a folder, or beside a single file."""
    if out.suffix in FILES and not out.is_dir():
        return out.with_name(f"{out.stem}.{NAME}")
    return out / NAME


def tensor_summary(tensor: TensorPlan, tally: Tally, compute: str) -> dict[str, Any]:
    """Return a touched tensor's formula, ‖ΔW‖, ‖W‖ and the share of elements that changed.

    ‖ΔW‖ is exact where every step is low-rank (`delta_norm_from: factors`); the other figures are
    estimates from the first row of every eighth block.
    """
    rows, columns = tensor.matrix
    scale = math.sqrt(rows * columns / tally.sampled) if tally.sampled else 0.0
    weight = math.sqrt(tally.weight_square) * scale
    exact = tally.delta_norm is not None
    delta = (
        tally.delta_norm if tally.delta_norm is not None else math.sqrt(tally.delta_square) * scale
    )
    return {
        "formula": tensor.formula,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "compute_dtype": compute_dtype(tensor.dtype, compute),
        "delta_norm": _short(delta),
        "delta_norm_from": "factors" if exact else "sample",
        "weight_norm": _short(weight),
        "changed": tally.changed,
        "changed_share": _short(tally.sampled_changed / tally.sampled) if tally.sampled else None,
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def make_receipt(
    plan: MergePlan,
    tallies: Mapping[str, Tally],
    inputs: Mapping[str, Any],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the receipt; it holds no times, so the same inputs give the same bytes."""
    return {
        "schema": 1,
        "tool": "adaptertools",
        "versions": {name: version(name) for name in ("adaptertools", "torch")},
        "recipe": {
            "base": str(plan.base.root),
            "adapters": [{"path": a.path, "weight": w} for a, w in plan.adapters],
            **options,
        },
        "inputs": inputs,
        "summary": {
            "updates": plan.targets,
            "touched": len(plan.touched),
            "untouched": len(plan.tensors) - len(plan.touched),
        },
        "notes": [{"id": n.id, "title": n.title, "key": n.where.key} for n in plan.notes],
        "config_changes": dict(plan.config_changes),
        "tensors": {
            t.name: tensor_summary(t, tallies.get(t.name, Tally()), plan.compute_dtype)
            for t in plan.touched
        },
    }
