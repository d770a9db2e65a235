"""Inner products of low-rank changes, from their factors: never the dense ΔW.

⟨up₁ down₁, up₂ down₂⟩ = Σ (up₁ᵀ up₂) ∘ (down₁ down₂ᵀ), in O((m + n) r²).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from adaptertools.algebra.terms import Factors


def inner(one: Factors, other: Factors) -> float:
    """Return ⟨Δ₁, Δ₂⟩."""
    return float(((one[0].T @ other[0]) * (one[1] @ other[1].T)).sum())


def row_inner(one: Factors, other: Factors) -> Tensor:
    """Return ⟨Δ₁, Δ₂⟩ of each row [m]."""
    return ((one[0] @ (one[1] @ other[1].T)) * other[0]).sum(1)


def column_inner(one: Factors, other: Factors) -> Tensor:
    """Return ⟨Δ₁, Δ₂⟩ of each column [n]."""
    return row_inner((one[1].T, one[0].T), (other[1].T, other[0].T))


def gram(factors: Sequence[Factors]) -> Tensor:
    """Return ⟨Δᵢ, Δⱼ⟩ [k, k]."""
    size = len(factors)
    result = torch.zeros(size, size, dtype=torch.float64)
    for i, one in enumerate(factors):
        for j in range(i, size):
            result[i, j] = result[j, i] = inner(one, factors[j])
    return result


def dense_gram(deltas: Sequence[Tensor]) -> Tensor:
    """Return ⟨Δᵢ, Δⱼ⟩ [k, k] of dense changes."""
    size = len(deltas)
    result = torch.zeros(size, size, dtype=torch.float64)
    for i, one in enumerate(deltas):
        for j in range(i, size):
            result[i, j] = result[j, i] = (one * deltas[j]).sum()
    return result


def norms(products: Tensor) -> Tensor:
    """Return ‖Δᵢ‖ [k] from a Gram matrix."""
    return products.diagonal().clamp(min=0).sqrt()


def cosine(products: Tensor) -> Tensor:
    """Return the cosines [k, k] from a Gram matrix; 0 with a change that is zero."""
    sizes = norms(products)
    bounds = sizes[:, None] * sizes[None, :]
    return torch.where(bounds > 0, products / bounds, 0.0).clamp(-1, 1)
