"""Points that fill a cube more evenly than random ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def sobol(dimensions: int, seed: int) -> Iterator[list[float]]:
    """Yield the points in [0, 1) of a scrambled Sobol sequence, which the seed decides."""
    import torch

    engines: Any = torch.quasirandom
    engine = engines.SobolEngine(dimensions, scramble=True, seed=seed)
    while True:
        yield from engine.draw(1, dtype=torch.float64).tolist()
