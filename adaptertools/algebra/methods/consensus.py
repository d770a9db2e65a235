"""Changes added up, all elements or those that agree with the elected sign.

Dense changes are summed in the order of the adapters' ids, so that the order in which they are
given changes no bit, and no sign where a sum is near zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from adaptertools.errors import AdapterError

if TYPE_CHECKING:
    from torch import Tensor

    from adaptertools.algebra.methods.model import Params
    from adaptertools.algebra.randomness import Key

TINY = 1e-8


def in_order(deltas: Sequence[Tensor], weights: Sequence[float], key: Key) -> list[int]:
    """Return the places of the adapters by id, then weight; refuses changes of other shapes."""
    if not len(deltas) == len(weights) == len(key.adapters):
        raise ValueError("one weight and one id for each change")
    if len({delta.shape for delta in deltas}) > 1:
        shapes = ", ".join(str(tuple(delta.shape)) for delta in deltas)
        raise AdapterError("AT500", f"adapters of other shapes: {shapes}", key=key.tensor)
    return sorted(range(len(deltas)), key=lambda place: (key.adapters[place], weights[place]))


def total(deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key) -> Tensor:
    """Return λ Σ wᵢδᵢ / divisor."""
    places = in_order(deltas, weights, key)
    result = torch.zeros_like(deltas[0])
    for place in places:
        result.add_(deltas[place], alpha=weights[place])
    return result.mul_(params["lambda"] / divisor([weights[p] for p in places], params, key))


def agreed(deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key) -> Tensor:
    """Return λ Σ wᵢδᵢ over the elements of the elected sign, / Σ of their weights.

    The sign is that of Σ wᵢδᵢ (`elect` = sum) or of Σ sgn(wᵢδᵢ) (count), plus for zero. A zeroed
    element has no sign and never agrees.
    """
    places = in_order(deltas, weights, key)
    refuse_mixed(weights, params, key)
    votes = torch.zeros_like(deltas[0])
    for place in places:
        weighted = deltas[place] * weights[place]
        votes += weighted.sign() if params["elect"] == "count" else weighted
    sign = torch.where(votes >= 0, 1.0, -1.0)
    merged, shares = torch.zeros_like(votes), torch.zeros_like(votes)
    for place in places:
        weighted = deltas[place] * weights[place]
        agrees = weighted.sign() == sign
        merged += torch.where(agrees, weighted, 0.0)
        shares.add_(agrees.to(shares.dtype), alpha=share(weights[place], params))
    if params["normalize"] != "none":
        merged /= torch.where(shares == 0, 1.0, shares)
    return merged.mul_(params["lambda"])


def share(weight: float, params: Params) -> float:
    """Return what a weight adds to the divisor."""
    return abs(weight) if params["normalize"] == "abs" else weight


def divisor(weights: Sequence[float], params: Params, key: Key) -> float:
    """Return what a sum of changes is divided by; 1 where the weights come to zero."""
    if params["normalize"] == "none":
        return 1.0
    refuse_mixed(weights, params, key)
    whole = sum(share(weight, params) for weight in weights)
    return whole if abs(whole) >= TINY else 1.0


def refuse_mixed(weights: Sequence[float], params: Params, key: Key) -> None:
    """Raise `AdapterError` where a signed divisor meets weights of both signs."""
    if params["normalize"] == "sum" and min(weights) < 0 < max(weights):
        told = "weights of both signs do not go with normalize=sum: the divisor would be signed"
        raise AdapterError("AT500", told, key=key.tensor, hint="use normalize=abs or none")
