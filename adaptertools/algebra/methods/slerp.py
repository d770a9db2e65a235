"""SLERP and NuSLERP between two changes: their angle from the factors, the result low rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from adaptertools.algebra.gram import column_inner, cosine, row_inner
from adaptertools.algebra.methods.linear import by_column, by_row, combined, gram_of, refuse_shapes
from adaptertools.algebra.methods.sphere import slerp_pair

if TYPE_CHECKING:
    from torch import Tensor

    from adaptertools.algebra.methods.model import Params
    from adaptertools.algebra.randomness import Key
    from adaptertools.algebra.terms import Factors, Term

THRESHOLD = 0.9995
NEAR_ZERO = 1e-6


def slerp(terms: Sequence[Term], params: Params, key: Key) -> Factors:
    """Return SLERP of w₁δ₁ and w₂δ₂ at t; linear where |cos θ| > 0.9995."""
    scaled = [replace(term, up=term.up * term.weight) for term in terms]
    cosines = cosine(gram_of(scaled))
    first, second = slerp_pair(cosines[0, 1], params["t"], THRESHOLD)
    return combined(scaled, [float(first), float(second)])


def nuslerp(terms: Sequence[Term], params: Params, key: Key) -> Factors:
    """Return SLERP at t = w₂ / (w₁ + w₂): one angle, or one for each row or column of ΔW.

    mergekit's `nuslerp_row_wise` takes the angle of each column of the stored matrix (it moves
    dimension 0 last), and neither flag the one of each row; here the words mean what they say.
    """
    t = share_of_second([term.weight for term in terms])
    refuse_shapes(terms)
    one, other = (term.factors for term in terms)
    if params["per"] == "whole":
        first, second = slerp_pair(cosine(gram_of(terms))[0, 1], t)
        return combined(terms, [float(first), float(second)])
    products, scale = (row_inner, by_row) if params["per"] == "row" else (column_inner, by_column)
    pair = slerp_pair(
        cosine_of(products(one, other), products(one, one), products(other, other)), t
    )
    return scale(terms, pair)


def share_of_second(weights: Sequence[float]) -> float:
    """Return t = w₂ / (w₁ + w₂), and ½ where the weights cancel."""
    whole = weights[0] + weights[1]
    return weights[1] / whole if abs(whole) >= NEAR_ZERO else 0.5


def cosine_of(products: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return the cosines for inner products and two squared norms; 1 with a zero vector.

    A zero vector has no angle: at 1 its partner is scaled linearly.
    """
    bound = first.clamp(min=0).sqrt() * second.clamp(min=0).sqrt()
    filled = bound.where(bound > 0, 1.0)
    return (products / filled).where(bound > 0, 1.0).clamp(-1, 1)
