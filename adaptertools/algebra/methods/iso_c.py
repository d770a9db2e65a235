"""Iso-C: the sum's singular values made equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from adaptertools.algebra.methods.consensus import in_order
from adaptertools.algebra.recompress import recompress_terms, small_svd

if TYPE_CHECKING:
    from torch import Tensor

    from adaptertools.algebra.methods.model import Params
    from adaptertools.algebra.randomness import Key
    from adaptertools.algebra.terms import Factors, Term


def iso_c(deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key) -> Tensor:
    """Return mean(σ) · U Vᵀ of Σ wᵢδᵢ over all min(m, n) triplets: full rank.

    A low-rank sum leaves most of U and V to chance (the null space), as upstream does too.
    """
    result = torch.zeros_like(deltas[0])
    for place in in_order(deltas, weights, key):
        result.add_(deltas[place], alpha=weights[place])
    u, sigma, v = small_svd(result)
    return sigma.mean() * (u @ v.T)


def iso_c_lowrank(terms: Sequence[Term], params: Params, key: Key) -> Factors:
    """Return mean(σ) · U Vᵀ of Σ wᵢδᵢ over the triplets that it has: its numerical rank."""
    found = recompress_terms(terms)
    return found.u * (found.sigma.mean() if found.rank else 0.0), found.v.T
