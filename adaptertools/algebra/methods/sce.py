"""SCE: select by variance, weigh by energy, erase the minority's sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from adaptertools.algebra.methods.consensus import in_order
from adaptertools.algebra.methods.sparsify import largest

if TYPE_CHECKING:
    from torch import Tensor

    from adaptertools.algebra.methods.model import Params
    from adaptertools.algebra.randomness import Key


def sce(deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key) -> Tensor:
    """Return Σ sᵢδᵢ / Σ sᵢ over the elements of the elected sign, with sᵢ ∝ mean(δᵢ²).

    Only the ⌊k · count of non-zero variances⌋ elements of the largest variance are used. mergekit
    compares Σ mean(δᵢ²) with 10⁻⁶ and weighs equally below it, where most LoRAs lie; here only
    zero is zero.
    """
    stack = torch.stack([deltas[i] * weights[i] for i in in_order(deltas, weights, key)])
    if params["select_topk"] < 1:
        variance = stack.var(0, correction=0)
        kept = int(int(variance.count_nonzero()) * params["select_topk"])
        stack = torch.where(largest(variance, kept), stack, 0.0)
    sign = torch.where(stack.sum(0) >= 0, 1.0, -1.0)
    agrees = stack.sign() == sign
    shares = stack.square().mean((1, 2))
    if not bool(shares.any()):
        return torch.zeros_like(stack[0])
    used = torch.where(agrees, (shares / shares.sum())[:, None, None], 0.0)
    bound = used.sum(0)
    return (stack * used).sum(0) / torch.where(bound > 0, bound, 1.0)
