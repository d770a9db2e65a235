"""Sparsify each change, then sum or elect: magnitude, TIES, DARE, DELLA, Breadcrumbs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adaptertools.algebra.methods.consensus import agreed, total
from adaptertools.algebra.methods.sparsify import dropped, thinned, trimmed, without_outliers

if TYPE_CHECKING:
    from torch import Tensor

    from adaptertools.algebra.methods.model import Params
    from adaptertools.algebra.randomness import Key


def magnitude(
    deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key
) -> Tensor:
    """Return Σ wᵢ topₖ(δᵢ)."""
    return total(_trimmed(deltas, params), weights, params, key)


def ties(deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key) -> Tensor:
    """Return the mean of what agrees in sign, of the trimmed changes."""
    return agreed(_trimmed(deltas, params), weights, params, key)


def dare_linear(
    deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key
) -> Tensor:
    """Return Σ wᵢ (mask ∘ δᵢ / ρ)."""
    return total(_dropped(deltas, params, key), weights, params, key)


def dare_ties(
    deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key
) -> Tensor:
    """Return TIES' election of randomly dropped changes."""
    return agreed(_dropped(deltas, params, key), weights, params, key)


def della_linear(
    deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key
) -> Tensor:
    """Return the sum of changes of which larger elements are likelier to stay."""
    return total(_thinned(deltas, params, key), weights, params, key)


def della(deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key) -> Tensor:
    """Return TIES' election of changes of which larger elements are likelier to stay."""
    return agreed(_thinned(deltas, params, key), weights, params, key)


def breadcrumbs(
    deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key
) -> Tensor:
    """Return the sum of changes without their largest and smallest elements."""
    return total(_crumbs(deltas, params), weights, params, key)


def breadcrumbs_ties(
    deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key
) -> Tensor:
    """Return TIES' election of changes without their largest and smallest elements."""
    return agreed(_crumbs(deltas, params), weights, params, key)


def _trimmed(deltas: Sequence[Tensor], params: Params) -> list[Tensor]:
    return [trimmed(delta, params["density"], params["rescale"]) for delta in deltas]


def _dropped(deltas: Sequence[Tensor], params: Params, key: Key) -> list[Tensor]:
    density, rescale = params["density"], params["rescale"]
    return [dropped(delta, density, rescale, key, place) for place, delta in enumerate(deltas)]


def _thinned(deltas: Sequence[Tensor], params: Params, key: Key) -> list[Tensor]:
    density, epsilon, rescale = params["density"], params["epsilon"], params["rescale"]
    return [
        thinned(delta, density, epsilon, rescale, key, place) for place, delta in enumerate(deltas)
    ]


def _crumbs(deltas: Sequence[Tensor], params: Params) -> list[Tensor]:
    density, gamma, rescale = params["density"], params["gamma"], params["rescale"]
    return [without_outliers(delta, density, gamma, rescale) for delta in deltas]
