"""The weighted sum of changes, exact in low rank; the weighted mean; any combination of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from adaptertools.algebra.gram import gram
from adaptertools.algebra.methods.consensus import divisor
from adaptertools.errors import AdapterError

if TYPE_CHECKING:
    from torch import Tensor

    from adaptertools.algebra.methods.model import Params
    from adaptertools.algebra.randomness import Key
    from adaptertools.algebra.terms import Factors, Term


def linear(terms: Sequence[Term], params: Params, key: Key) -> Factors:
    """Return [… cᵢupᵢ …] and [… downᵢ …]: λ Σ wᵢδᵢ / divisor, exact up to one product each."""
    weights = [term.weight for term in terms]
    factor = params["lambda"] / divisor(weights, params, key)
    return combined(terms, [weight * factor for weight in weights])


def average(terms: Sequence[Term], params: Params, key: Key) -> Factors:
    """Return Σ wᵢδᵢ / (Σ wᵢ + w₀), with w₀ the weight of the base itself."""
    whole = sum(term.weight for term in terms) + params["base_weight"]
    if abs(whole) < 1e-8:
        told = "the weights come to zero, and a mean divides by their sum"
        raise AdapterError("AT500", told, key=key.tensor, hint="use the method linear")
    return combined(terms, [term.weight / whole for term in terms])


def combined(terms: Sequence[Term], coefficients: Sequence[float]) -> Factors:
    """Return factors of Σ cᵢδᵢ, without the user's weights; a coefficient of zero adds no rank."""
    refuse_shapes(terms)
    used = [(t, c) for t, c in zip(terms, coefficients, strict=True) if c != 0]
    ups = [term.up * c for term, c in used] or [terms[0].up[:, :0]]
    downs = [term.down for term, _ in used] or [terms[0].down[:0]]
    return torch.cat(ups, 1), torch.cat(downs, 0)


def by_row(terms: Sequence[Term], coefficients: Sequence[Tensor]) -> Factors:
    """Return factors of Σ diag(cᵢ)δᵢ for one coefficient for each row."""
    refuse_shapes(terms)
    ups = [t.up * c[:, None] for t, c in zip(terms, coefficients, strict=True)]
    return torch.cat(ups, 1), torch.cat([term.down for term in terms], 0)


def by_column(terms: Sequence[Term], coefficients: Sequence[Tensor]) -> Factors:
    """Return factors of Σ δᵢdiag(cᵢ) for one coefficient for each column."""
    refuse_shapes(terms)
    downs = [t.down * c for t, c in zip(terms, coefficients, strict=True)]
    return torch.cat([term.up for term in terms], 1), torch.cat(downs, 0)


def gram_of(terms: Sequence[Term]) -> Tensor:
    """Return ⟨δᵢ, δⱼ⟩ [k, k], without the weights; refuses changes of other shapes."""
    refuse_shapes(terms)
    return gram([term.factors for term in terms])


def refuse_shapes(terms: Sequence[Term]) -> None:
    """Raise `AdapterError` where the terms are not all changes of the same matrix."""
    shapes = {(term.up.shape[0], term.down.shape[1]) for term in terms}
    if len(shapes) > 1:
        raise AdapterError("AT500", f"adapters of other shapes: {sorted(shapes)}")
