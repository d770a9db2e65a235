"""Means on a sphere as coefficients on what is averaged, from the Gram matrix alone.

Every such mean of vectors lies in their span, so it is low rank where they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from adaptertools.algebra.gram import cosine, norms
from adaptertools.errors import AdapterError

if TYPE_CHECKING:
    from torch import Tensor

COLINEAR_SINE = 1e-8


def slerp_pair(cosines: Tensor, t: float, threshold: float | None = None) -> tuple[Tensor, Tensor]:
    """Return the coefficients sin((1−t)θ)/sin θ and sin(tθ)/sin θ for each cosine.

    They are of the vectors as they are, not of unit ones (as in mergekit). Linear, 1−t and t, where
    sin θ < 10⁻⁸ (NuSLERP) or, given a threshold, where |cos θ| exceeds it (SLERP).
    """
    theta = cosines.clamp(-1, 1).acos()
    sine = theta.sin()
    straight = sine < COLINEAR_SINE if threshold is None else cosines.abs() > threshold
    safe = torch.where(straight, 1.0, sine)
    first = torch.where(straight, 1 - t, ((1 - t) * theta).sin() / safe)
    second = torch.where(straight, t, (t * theta).sin() / safe)
    return first, second


def multislerp_coefficients(
    products: Tensor, weights: Sequence[float], normalize: bool, eps: float, key: str
) -> Tensor:
    """Return the coefficients of (Σ wᵢ‖δᵢ‖) · Σ wᵢuᵢ / ‖Σ wᵢuᵢ‖ with uᵢ = δᵢ / (‖δᵢ‖ + ε).

    The published step along the tangent at that mean is zero: Σ wᵢ(uᵢ − ⟨uᵢ, μ⟩μ) is Σ wᵢuᵢ less
    its part along μ, its own direction. So the method is the normalised mean: that is computed.
    """
    share = torch.tensor(weights, dtype=products.dtype)
    if normalize:
        share = share / nonzero_sum(weights, key)
    if len(weights) == 1:
        return share
    sizes = norms(products)
    unit = share / (sizes + eps)
    length = (unit @ products @ unit).clamp(min=0).sqrt()
    if not bool(sizes.any()):
        return torch.zeros_like(share)
    if length < eps:
        if len(weights) == 2:
            return share
        told = "the weighted unit changes cancel, so their mean has no direction"
        raise AdapterError("AT500", told, key=key, hint="use other weights")
    return unit * ((sizes * share).sum() / length)


def karcher_coefficients(
    products: Tensor, weights: Sequence[float], max_iter: int, tol: float, key: str
) -> Tensor:
    """Return the coefficients of the Karcher mean of the directions, times the mean norm.

    Changes that are zero have no direction but count in the mean norm.
    """
    if min(weights) < 0:
        raise AdapterError("AT500", "karcher takes no negative weight", key=key)
    share = torch.tensor(weights, dtype=products.dtype) / nonzero_sum(weights, key)
    sizes = norms(products)
    valid = (sizes > 0) & (share > 0)
    if not bool(valid.any()):
        return torch.zeros_like(share)
    unit_products = cosine(products)
    alpha = torch.where(valid, share, 0.0)
    alpha = alpha / alpha.sum()
    start = _unit(alpha, unit_products, tol)
    at = start if start is not None else torch.eye(len(weights))[int(valid.nonzero()[0])].double()
    for _ in range(max_iter):
        step = _log_mean(at, alpha, unit_products, tol)
        length = _length(step, unit_products)
        if length < tol:
            break
        moved = at * math.cos(length) + step * (math.sin(length) / length)
        moved_unit = _unit(moved, unit_products, tol)
        at = moved if moved_unit is None else moved_unit
    scale = (share * sizes).sum()
    return torch.where(valid, at * scale / torch.where(sizes > 0, sizes, 1.0), 0.0)


def stock_ratio(cosines: Tensor, count: int, clamp: bool) -> Tensor:
    """Return Model Stock's t = k c / (1 + (k−1) c), for the mean cosine of k changes.

    It was derived for c ≥ 0; below, t is negative without bound, up to a pole where the changes
    cancel. `clamp` keeps t in 0 to 1; at the pole it is 0 in any case.
    """
    bound = 1 + (count - 1) * cosines
    pole = bound < COLINEAR_SINE
    ratio = torch.where(pole, 0.0, count * cosines / torch.where(pole, 1.0, bound))
    return ratio.clamp(0, 1) if clamp else ratio


def nonzero_sum(weights: Sequence[float], key: str) -> float:
    """Return the sum of weights; raises `AdapterError` where it is zero."""
    whole = sum(weights)
    if abs(whole) < 1e-8:
        raise AdapterError("AT500", "the weights come to zero, and a mean divides by them", key=key)
    return whole


def _log_mean(at: Tensor, alpha: Tensor, products: Tensor, tol: float) -> Tensor:
    """Return the mean, in the tangent at `at`, of the ways to each unit vector, as coefficients."""
    dots = (products @ at).clamp(-1, 1)
    theta = dots.acos()
    factor = torch.where(theta < tol, 0.0, alpha * theta / theta.sin().clamp(min=1e-300))
    return factor - (factor * dots).sum() * at


def _length(coefficients: Tensor, products: Tensor) -> float:
    return math.sqrt(max(0.0, float(coefficients @ products @ coefficients)))


def _unit(coefficients: Tensor, products: Tensor, tol: float) -> Tensor | None:
    length = _length(coefficients, products)
    return coefficients / length if length >= tol else None
