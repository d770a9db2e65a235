"""RAM: what one adapter alone changes is kept, what several change is averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from adaptertools.algebra.methods.consensus import in_order

if TYPE_CHECKING:
    from torch import Tensor

    from adaptertools.algebra.methods.model import Params
    from adaptertools.algebra.randomness import Key


def ram(deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key) -> Tensor:
    """Return δᵢ where only one exceeds ε, else the mean of those that do."""
    used, counts = _used(deltas, weights, params, key)
    return used.sum(0) / counts.clamp(min=1)


def ramplus_tl(
    deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key
) -> Tensor:
    """Return the same with unique elements times 1 + r · clip(shared / unique, 0, α)."""
    used, counts = _used(deltas, weights, params, key)
    present, unique = used != 0, counts == 1
    shared = (present & ~unique).sum((1, 2)).to(used.dtype)
    alone = (present & unique).sum((1, 2)).to(used.dtype)
    ratio = shared / alone.clamp(min=1)
    boost = 1 + params["r"] * torch.where(alone > 0, ratio, float("inf")).clamp(0, params["alpha"])
    factor = torch.where(unique, boost[:, None, None], 1.0)
    return (used * factor).sum(0) / counts.clamp(min=1)


def _used(
    deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key
) -> tuple[Tensor, Tensor]:
    stack = torch.stack([deltas[i] * weights[i] for i in in_order(deltas, weights, key)])
    used = torch.where(stack.abs() > params["epsilon"], stack, 0.0)
    return used, (used != 0).sum(0)
