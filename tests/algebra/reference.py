"""The naive reference: what every update does to a dense weight, in fp64 numpy, written from PEFT.

Every function returns (new value, mass): the mass bounds the absolute terms of each element times
the count of their roundings, see `exact.check`.
"""

from __future__ import annotations

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]


def product(layout: str, up: np.ndarray, down: np.ndarray, rank: int = 0) -> np.ndarray:
    """Return up @ down laid out as the base stores it; `rank` is needed for stacked experts."""
    if layout == "conv":
        return np.einsum("or,ri...->oi...", up.reshape(up.shape[:2]), down)
    if layout == "in out":
        return np.einsum("or,ri->io", up, down)
    if layout.startswith("experts"):
        experts = down.shape[0] // rank
        told = "eoi" if layout.endswith("out in") else "eio"
        shape = {"e": experts, "o": up.shape[0], "i": down.shape[1]}
        delta = np.zeros([shape[axis] for axis in told])
        for expert in range(experts):
            rows = down[expert * rank : (expert + 1) * rank]
            columns = up[:, expert::experts]
            one = np.einsum("or,ri->oi", columns, rows)
            delta[expert] = one if told == "eoi" else one.T
        return delta
    return np.einsum("or,ri->oi", up, down)


def low_rank(
    weight: np.ndarray, layout: str, up: np.ndarray, down: np.ndarray, scale: float, rank: int
) -> Pair:
    """W + s·BA."""
    delta = scale * product(layout, up, down, rank)
    absolute = abs(scale) * product(layout, np.abs(up), np.abs(down), rank)
    return weight + delta, (np.abs(weight) + absolute) * (rank + 8)


def dora(
    weight: np.ndarray,
    layout: str,
    up: np.ndarray,
    down: np.ndarray,
    scale: float,
    magnitude: np.ndarray,
    original: np.ndarray | None = None,
) -> Pair:
    """m ⊙ (W + D) / ‖W₀ + D‖: a norm for each output unit, over everything else."""
    total, mass = low_rank(weight, layout, up, down, scale, down.shape[0])
    first, first_mass = low_rank(
        weight if original is None else original, layout, up, down, scale, down.shape[0]
    )
    axes = (0,) if layout == "in out" else tuple(range(1, total.ndim))
    norm = np.sqrt(np.square(first).sum(axis=axes, keepdims=True))
    noise = np.sqrt(np.square(first_mass).sum(axis=axes, keepdims=True)) / norm
    shape = (1, -1) if layout == "in out" else (-1, *[1] * (total.ndim - 1))
    factor = np.abs(magnitude.reshape(shape) / norm)
    new = magnitude.reshape(shape) * total / norm
    return new, factor * (mass + np.abs(total) * (noise + 16 + total[0].size ** 0.5))


def scaling(weight: np.ndarray, layout: str, axis: str, vector: np.ndarray, amount: float) -> Pair:
    """W ⊙ (1 + w·(l - 1)) along the output or the input axis."""
    place = {"in out": ("in", "out")}.get(layout, ("out", "in")).index(axis)
    shape = [1] * weight.ndim
    shape[place] = -1
    factor = (1 + amount * (vector - 1)).reshape(shape)
    rounding = (1 + abs(amount) * (np.abs(vector) + 1)).reshape(shape)
    return weight * factor, np.abs(weight) * rounding * 4


def weighted(before: np.ndarray, after: Pair, amount: float) -> Pair:
    """W + w·(W' - W)."""
    new, mass = after
    if amount == 1:
        return after
    value = before + amount * (new - before)
    return value, abs(amount) * (mass + 4 * np.abs(before) + 4 * np.abs(new)) + np.abs(before)
