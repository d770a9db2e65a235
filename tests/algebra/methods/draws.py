"""Random terms for the laws: shapes, ranks and factors from a seed that hypothesis draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from adaptertools.algebra.terms import Term

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(2, 12)
WEIGHTS = st.sampled_from((1.0, 0.5, -1.0, -0.3, 2.0))
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def examples(count: int) -> settings:
    """Return settings without a deadline and with the same examples always."""
    quiet = list(HealthCheck)
    return settings(
        max_examples=count, deadline=None, derandomize=True, suppress_health_check=quiet
    )


def generator(seed: int) -> torch.Generator:
    """Return a seeded generator."""
    return torch.Generator().manual_seed(seed)


def matrix(rng: torch.Generator, rows: int, columns: int) -> torch.Tensor:
    """Return a Gaussian matrix."""
    return torch.randn(rows, columns, generator=rng, dtype=torch.float64)


@st.composite
def term_lists(
    draw: st.DrawFn, least: int = 1, most: int = 4, weights: st.SearchStrategy[float] = WEIGHTS
) -> list[Term]:
    """Return adapters of one module, of any ranks."""
    rng = generator(draw(SEEDS))
    rows, columns, count = draw(SIZES), draw(SIZES), draw(st.integers(least, most))
    found = []
    for _ in range(count):
        rank = draw(st.integers(1, 4))
        up, down = matrix(rng, rows, rank), matrix(rng, rank, columns)
        found.append(Term(up, down, draw(weights)))
    return found


def dense(terms: Sequence[Term]) -> torch.Tensor:
    """Return Σ wᵢδᵢ."""
    return sum((t.weight * (t.up @ t.down) for t in terms), torch.zeros(()).double())


def refactored(terms: Sequence[Term], seed: int) -> list[Term]:
    """Return the same changes as (BG, G⁻¹A), for G of a moderate condition."""
    rng = generator(seed)
    found = []
    for term in terms:
        rank = term.up.shape[1]
        one, other = (torch.linalg.qr(matrix(rng, rank, rank)).Q for _ in range(2))
        stretch = torch.linspace(0.5, 3.0, rank, dtype=torch.float64)
        mix, back = one * stretch @ other, other.T / stretch @ one.T
        found.append(replace(term, up=term.up @ mix, down=back @ term.down))
    return found
