"""Which elements of a change are kept, and how what is kept is rescaled.

The k of "the largest k" is ⌊ρN⌋ of the floating-point product, as in mergekit and PEFT, but at
least one for ρ > 0 (mergekit stops there, PEFT keeps none). Equal magnitudes are taken in the order
of their flat index; torch's own top-k promises no order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from adaptertools.algebra.randomness import Key


def count_kept(count: int, density: float) -> int:
    """Return how many of `count` elements a density keeps."""
    return min(count, max(1, int(density * count))) if density > 0 else 0


def largest(scores: Tensor, kept: int) -> Tensor:
    """Return the mask of the `kept` largest non-negative scores, the first of equal ones."""
    flat = scores.flatten()
    if kept >= flat.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    if kept <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = flat.kthvalue(flat.numel() - kept + 1).values
    mask = flat > threshold
    equal = (flat == threshold).nonzero().flatten()
    mask[equal[: kept - int(mask.sum())]] = True
    return mask.reshape(scores.shape)


def trimmed(delta: Tensor, density: float, rescale: str = "none") -> Tensor:
    """Return a change with its elements of largest magnitude only."""
    if density >= 1:
        return delta
    mask = largest(delta.abs(), count_kept(delta.numel(), density))
    return rescaled(delta, mask, rescale, density)


def dropped(
    delta: Tensor, density: float, rescale: str, key: Key, adapter: int, part: str = ""
) -> Tensor:
    """Return a change of which each element is kept with probability `density` (DARE)."""
    if density >= 1:
        return delta
    drawn = torch.from_numpy(key.uniforms(adapter, delta.numel(), part)).reshape(delta.shape)
    return rescaled(delta, drawn < density, rescale, density)


def keep_probabilities(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """Return each element's chance to stay by its rank in its row, from ρ − ε to ρ + ε (DELLA).

    Of equal magnitudes the first has the smaller rank. A row of one element has ρ.
    """
    columns = delta.shape[1]
    if columns == 1:
        return torch.full_like(delta, density)
    order = delta.abs().sort(dim=1, stable=True).indices
    steps = torch.arange(columns, dtype=delta.dtype).expand_as(delta)
    ranks = torch.empty_like(delta).scatter_(1, order, steps)
    return (density - epsilon) + ranks / (columns - 1) * 2 * epsilon


def thinned(
    delta: Tensor, density: float, epsilon: float, rescale: str, key: Key, adapter: int
) -> Tensor:
    """Return a change of which larger elements are likelier to be kept (DELLA)."""
    if density >= 1:
        return delta
    if density <= 0:
        return torch.zeros_like(delta)
    chance = keep_probabilities(delta, density, epsilon)
    drawn = torch.from_numpy(key.uniforms(adapter, delta.numel())).reshape(delta.shape)
    return rescaled(delta, drawn < chance, rescale, chance)


def without_outliers(delta: Tensor, density: float, gamma: float, rescale: str) -> Tensor:
    """Return a change without its ⌊γN⌋ largest elements, then the ⌊ρN⌋ largest (Breadcrumbs).

    Where both do not fit, fewer of the largest are dropped, as in mergekit.
    """
    if density >= 1:
        return delta
    count = delta.numel()
    kept = count_kept(count, density)
    top = min(int(gamma * count), count - kept)
    size = delta.abs()
    return rescaled(delta, largest(size, top + kept) & ~largest(size, top), rescale, density)


def rescaled(delta: Tensor, mask: Tensor, how: str, chance: Tensor | float) -> Tensor:
    """Return the masked change, times what makes up for what is gone.

    prob: 1 / chance of staying, which is unbiased; l1, l2: the norm before over the norm after
    (mergekit's is l1), which depends on the draw and on the whole tensor.
    """
    masked = torch.where(mask, delta, 0.0)
    if how == "none":
        return masked
    if how == "prob":
        return masked / chance if isinstance(chance, torch.Tensor) or chance > 0 else masked
    order = {"l1": 1, "l2": 2}[how]
    before, after = (torch.linalg.vector_norm(part, order) for part in (delta, masked))
    return masked * (before / after) if after > 0 else masked
