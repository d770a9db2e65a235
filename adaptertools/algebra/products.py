"""LoHa and LoKr as exact low-rank factors, never forming the product.

LoHa (B₁A₁)∘(B₂A₂) has rank r₁r₂: https://arxiv.org/abs/2108.06098. LoKr W₁⊗(BA), with W₁ = PQ, is
(P⊗B)(Q⊗A): https://arxiv.org/abs/2212.10650.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from adaptertools.algebra.terms import Factors


def row_khatri_rao(one: Tensor, other: Tensor) -> Tensor:
    """Return the Kronecker product of each row of `one` [m, r] with the one of `other` [m, s]."""
    return (one[:, :, None] * other[:, None, :]).reshape(one.shape[0], -1)


def hadamard_factors(one: Factors, other: Factors) -> Factors:
    """Return factors of (up₁ down₁) ∘ (up₂ down₂)."""
    return row_khatri_rao(one[0], other[0]), row_khatri_rao(one[1].T, other[1].T).T


def kronecker_factors(one: Factors, other: Factors) -> Factors:
    """Return factors of (up₁ down₁) ⊗ (up₂ down₂); pass (W₁, I) where W₁ is not factored."""
    return torch.kron(one[0], other[0]), torch.kron(one[1], other[1])
