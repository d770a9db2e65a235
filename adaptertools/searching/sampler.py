"""Samplers: which candidate is tried as number k. All of them work in a cube of sides 0 to 1.

| sampler | candidate k depends on |
|---|---|
| random | the seed and k |
| sobol | the seed and k |
| cma | the seed, and the scores of all generations before that of k |
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

from adaptertools.errors import AdapterError

SAMPLERS = ("random", "sobol", "cma")
SCHEME = "adaptertools-search-1"
STEP = 0.25


class Sampler(Protocol):
    """Asked for candidates in their order, and told their losses (∞ where one failed) in it."""

    def ready(self, number: int) -> bool:
        """Say whether enough was told to ask for this candidate."""

    def ask(self, number: int) -> list[float]:
        """Return the candidate as shares."""

    def tell(self, number: int, loss: float) -> None:
        """Take the loss of a candidate: less is better."""


class Random:
    """Uniform: Philox keyed by the seed and the candidate's number."""

    def __init__(self, dimensions: int, seed: int) -> None:
        self.dimensions, self.seed = dimensions, seed

    def ready(self, number: int) -> bool:
        return True

    def ask(self, number: int) -> list[float]:
        from numpy.random import Philox

        text = "\0".join((SCHEME, str(self.seed), str(number)))
        key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
        raw = Philox(key=key).random_raw(self.dimensions)
        return [(int(bits) >> 11) * 2.0**-53 for bits in raw]

    def tell(self, number: int, loss: float) -> None:
        return None


class Sobol:
    """A scrambled Sobol sequence (torch's)."""

    def __init__(self, dimensions: int, seed: int) -> None:
        from adaptertools.algebra.quasirandom import sobol

        self.points: list[list[float]] = []
        self.source = sobol(dimensions, seed)

    def ready(self, number: int) -> bool:
        return True

    def ask(self, number: int) -> list[float]:
        while len(self.points) <= number:
            self.points.append(next(self.source))
        return self.points[number]

    def tell(self, number: int, loss: float) -> None:
        return None


class Cma:
    """CMA-ES (the library cmaes), begun at the best of the first candidates.

    A generation is asked for at once, so its members can be scored side by side; it is told in the
    order of their numbers. Numbers below zero are those first candidates.
    """

    def __init__(self, dimensions: int, seed: int, first: Sequence[Sequence[float]]) -> None:
        self.library = _cmaes()
        self.dimensions, self.seed, self.first = dimensions, seed, first
        self.size = 4 + math.floor(3 * math.log(dimensions))
        self.losses: list[tuple[float, int]] = []
        self.points: list[list[float]] = []
        self.told: list[tuple[Any, float]] = []
        self.optimiser: Any = None

    def ready(self, number: int) -> bool:
        if number < 0:
            return True
        before = number // self.size * self.size
        return len(self.losses) == len(self.first) and len(self.told) >= before

    def ask(self, number: int) -> list[float]:
        if self.optimiser is None:
            self.optimiser = self._begun()
        while len(self.points) <= number:
            self.points.append(self.optimiser.ask().tolist())
        return self.points[number]

    def tell(self, number: int, loss: float) -> None:
        import numpy as np

        if number < 0:
            self.losses.append((loss, len(self.losses)))
            return
        self.told.append((np.array(self.points[number]), loss))
        if len(self.told) % self.size == 0:
            self.optimiser.tell(self.told[-self.size :])

    def _begun(self) -> Any:
        import numpy as np

        start = np.array(self.first[min(self.losses)[1]])
        bounds = np.array([[0.0, 1.0]] * self.dimensions)
        return self.library.CMA(
            mean=start, sigma=STEP, bounds=bounds, seed=self.seed, population_size=self.size
        )


def _cmaes() -> Any:
    try:
        return import_module("cmaes")
    except ImportError:
        hint = "pip install 'adaptertools[search]', or use random or sobol"
        raise AdapterError("AT500", "the sampler cma needs the library cmaes", hint=hint) from None


def make_sampler(
    name: str, dimensions: int, seed: int, first: Sequence[Sequence[float]]
) -> Sampler:
    """Return a sampler by name; raises `AdapterError` (AT500)."""
    if name not in SAMPLERS:
        raise AdapterError("AT500", f"no sampler is called {name!r}", hint=", ".join(SAMPLERS))
    if not 0 <= seed < 2**32:
        raise AdapterError("AT500", f"a seed is a whole number from 0 to 2³² - 1, not {seed}")
    if name == "cma":
        return Cma(dimensions, seed, first)
    return Random(dimensions, seed) if name == "random" else Sobol(dimensions, seed)
