"""Whether two adapters mean the same, by what they do to each parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .sources import ROUNDINGS, Meaning

EXACT = 1e-12


def rounding_of(result: Any, dtypes: set[str]) -> float:
    """Return how far a number may be off: not at all, unless a scale was folded or stored short."""
    if not {"folded", "cast"} & {change.kind for change in result.plan.changes}:
        return 2.0**-24 if result.plan.spec.write["container"] == "gguf" else EXACT
    return max(ROUNDINGS[dtype] for dtype in dtypes) * 2


def differences(
    wanted: Mapping[str, Meaning], got: Mapping[str, Meaning], rounding: float
) -> list[str]:
    """Return how `got` differs from `wanted`; `rounding` is relative to the terms of a sum.

    What only `got` has must change nothing.
    """
    got = dict(got)
    found = []
    for name, meaning in wanted.items():
        name, meaning = _at_home(name, meaning, got)
        other = got.pop(name, None)
        if other is None:
            found += [] if changes_nothing(meaning) else [f"{name} is lost"]
        elif (error := _apart(meaning, other)) > rounding:
            found.append(f"{name} differs by {error:.2g}")
    return found + [f"{name} is new" for name, other in got.items() if not changes_nothing(other)]


def _at_home(name: str, meaning: Meaning, got: Mapping[str, Meaning]) -> tuple[str, Meaning]:
    """Scaled inputs of an MLP's last linear are scaled outputs of the one before it."""
    twin = name.replace("down_proj", "up_proj").replace("wo.weight", "wi_1.weight")
    if meaning.kind == "in" and name not in got and twin in got:
        return twin, Meaning("out", meaning.value)
    return name, meaning


def _apart(one: Meaning, other: Meaning) -> float:
    """Return the largest difference, of each number relative to the size of its terms."""
    kinds = {one.kind.removesuffix(" beside"), other.kind}
    if (
        len(kinds) > 1
        or one.value.shape != other.value.shape
        or one.beside.keys() != other.beside.keys()
    ):
        return np.inf
    pairs = [(one.value, other.value, one.mass)]
    pairs += [(value, other.beside[key], None) for key, value in one.beside.items()]
    return max(_relative(*pair) for pair in pairs)


def _relative(one: np.ndarray, other: np.ndarray, mass: np.ndarray | None) -> float:
    if one.shape != other.shape:
        return np.inf
    size = np.abs(one) if mass is None else mass
    error = np.abs(one - other)
    if not np.isfinite(error).all():
        return np.inf
    return float(np.divide(error, size, out=np.where(error > 0, np.inf, 0.0), where=size > 0).max())


def changes_nothing(meaning: Meaning) -> bool:
    if meaning.kind == "delta":
        return not meaning.value.any() and not meaning.beside
    return meaning.kind in ("in", "out") and bool((meaning.value == 1).all())
