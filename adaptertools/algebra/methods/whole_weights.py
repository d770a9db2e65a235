"""Methods that look at whole weights W + δ, one tensor at a time; each returns the new ΔW.

The fp64 difference from W is returned, so that adding it to W rounds once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from adaptertools.algebra.gram import cosine, dense_gram
from adaptertools.algebra.methods.consensus import in_order
from adaptertools.algebra.methods.slerp import THRESHOLD, cosine_of, share_of_second
from adaptertools.algebra.methods.sphere import (
    karcher_coefficients,
    multislerp_coefficients,
    slerp_pair,
)

if TYPE_CHECKING:
    from torch import Tensor

    from adaptertools.algebra.methods.model import Params
    from adaptertools.algebra.randomness import Key


def slerp_weights(
    base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key
) -> Tensor:
    """Return SLERP at t from W to W + w₁δ₁, or from W + w₁δ₁ to W + w₂δ₂."""
    scaled = [delta * weight for delta, weight in zip(deltas, weights, strict=True)]
    changes = [torch.zeros_like(base), *scaled][-2:]
    cosines = cosine(dense_gram([base + change for change in changes]))[0, 1]
    pair = slerp_pair(cosines, params["t"], THRESHOLD)
    return _difference(base, changes, [float(c) for c in pair])


def nuslerp_weights(
    base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key
) -> Tensor:
    """Return SLERP of W + δ₁ and W + δ₂ at t = w₂ / (w₁ + w₂)."""
    one, other = (base + delta for delta in deltas)
    t, axis = share_of_second(weights), {"row": (1,), "column": (0,)}.get(params["per"], (0, 1))
    products = [
        (a * b).sum(axis, keepdim=True) for a, b in ((one, other), (one, one), (other, other))
    ]
    first, second = slerp_pair(cosine_of(products[0], products[1], products[2]), t)
    return first * deltas[0] + second * deltas[1] + (first + second - 1) * base


def multislerp_weights(
    base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key
) -> Tensor:
    """Return Multi-SLERP of whole weights."""
    products = dense_gram([base + delta for delta in deltas])
    normalize, eps = params["normalize_weights"], params["eps"]
    found = multislerp_coefficients(products, weights, normalize, eps, key.tensor)
    return _difference(base, deltas, found.tolist())


def karcher_weights(
    base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key
) -> Tensor:
    """Return the Karcher mean of whole weights."""
    products = dense_gram([base + delta for delta in deltas])
    found = karcher_coefficients(products, weights, params["max_iter"], params["tol"], key.tensor)
    return _difference(base, deltas, found.tolist())


def nearswap(
    base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key
) -> Tensor:
    """Return w₁δ₁ with its elements moved by at most t."""
    (place,) = in_order(deltas, weights, key)
    delta = deltas[place] * weights[place]
    return delta.clamp(-params["t"], params["t"])


def arcee_fusion(
    base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key
) -> Tensor:
    """Return w₁δ₁ where |δ| · KL(softmax(W + δ) ‖ softmax(W)) of its row ≥ median + 1.5 · IQR.

    Quantiles are of all elements; upstream samples a million of larger tensors at random.
    """
    (place,) = in_order(deltas, weights, key)
    delta = deltas[place] * weights[place]
    new, old = ((base + d).softmax(1) + 1e-8 for d in (delta, torch.zeros_like(delta)))
    importance = delta.abs() * (new * (new / old).log()).sum(1, keepdim=True)
    flat = importance.flatten().sort().values
    low, middle, high = (flat[int(q * (flat.numel() - 1))] for q in (0.25, 0.5, 0.75))
    return torch.where(importance >= middle + 1.5 * (high - low), delta, 0.0)


def _difference(base: Tensor, deltas: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """Return Σ cᵢ(W + δᵢ) − W without first forming the large terms that cancel."""
    result = base * (sum(coefficients) - 1)
    for delta, coefficient in zip(deltas, coefficients, strict=True):
        result = result + delta * coefficient
    return result
