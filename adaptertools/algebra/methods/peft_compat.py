"""PEFT's `add_weighted_adapter` (0.21.2), quirks included, for who must reproduce it.

Its methods on factors weigh A by √|c|·sgn(c) and B by √|c| (c = weight · scale) and merge A and B
each on its own: Σ Aᵢ times Σ Bᵢ has cross terms and is not Σ cᵢBᵢAᵢ, and the result depends on how
an adapter happens to be factored. All ranks must be equal. Not reproduced, being errors in its
files and not in its formulas: rsLoRA results times √rank (peft#3449), dropped lora_bias (#3761),
per-module ranks that cannot be loaded (#3737), one adapter alone always by `linear`, √|c| rounded
to fp32. Random masks come from the key, not from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from adaptertools.algebra.methods.linear import refuse_shapes
from adaptertools.algebra.methods.sparsify import dropped, largest
from adaptertools.algebra.recompress import recompress_terms, split, truncated
from adaptertools.errors import AdapterError

if TYPE_CHECKING:
    from torch import Tensor

    from adaptertools.algebra.methods.model import Params
    from adaptertools.algebra.randomness import Key
    from adaptertools.algebra.terms import Factors, Term


def cat(terms: Sequence[Term], params: Params, key: Key) -> Factors:
    """Return Σ cᵢBᵢAᵢ, exact; PEFT puts c into A, so the factors' bits differ from `linear`'s."""
    refuse_shapes(terms)
    ups = [term.up / term.scale for term in terms]
    downs = [term.down * (term.weight * term.scale) for term in terms]
    return torch.cat(ups, 1), torch.cat(downs, 0)


def svd(terms: Sequence[Term], params: Params, key: Key) -> Factors:
    """Return the best rank-k approximation of Σ cᵢBᵢAᵢ, all of σ in B; k = the largest rank."""
    refuse_shapes(terms)
    rank = params["svd_rank"] or max(term.up.shape[1] for term in terms)
    return split(truncated(recompress_terms(terms), rank), "up")


def linear(terms: Sequence[Term], params: Params, key: Key) -> Factors:
    """Return (Σ √|c|Bᵢ, Σ √|c|sgn(c)Aᵢ): with cross terms, not the sum of changes."""
    return _on_factors(terms, _weighted_sum, lambda factor, place, part: factor)


def magnitude_prune(terms: Sequence[Term], params: Params, key: Key) -> Factors:
    """Return the same of factors with their ⌊ρN⌋ largest elements only (none for ρN < 1)."""
    prune = _by_magnitude(params)
    return _on_factors(terms, _weighted_sum, prune)


def ties(terms: Sequence[Term], params: Params, key: Key) -> Factors:
    """Return TIES of the A's and, apart, of the B's."""
    return _on_factors(terms, _elected(params), _by_magnitude(params))


def dare_linear(terms: Sequence[Term], params: Params, key: Key) -> Factors:
    """Return `linear` of factors whose elements are dropped at random, A and B independently."""
    return _on_factors(terms, _weighted_sum, _by_chance(params, key))


def dare_ties(terms: Sequence[Term], params: Params, key: Key) -> Factors:
    """Return `ties` of factors whose elements are dropped at random, A and B independently."""
    return _on_factors(terms, _elected(params), _by_chance(params, key))


def magnitude_prune_dense(
    deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key
) -> Tensor:
    """Return what `magnitude_prune_svd` hands to its SVD."""
    prune = _by_magnitude(params)
    return _weighted_sum([prune(d, i, "") for i, d in enumerate(deltas)], weights)


def ties_dense(
    deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key
) -> Tensor:
    """Return what `ties_svd` hands to its SVD: unweighted election, divided by the count."""
    prune = _by_magnitude(params)
    return _elected(params)([prune(d, i, "") for i, d in enumerate(deltas)], weights)


def dare_linear_dense(
    deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key
) -> Tensor:
    """Return what `dare_linear_svd` hands to its SVD."""
    prune = _by_chance(params, key)
    return _weighted_sum([prune(d, i, "") for i, d in enumerate(deltas)], weights)


def dare_ties_dense(
    deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key
) -> Tensor:
    """Return what `dare_ties_svd` hands to its SVD."""
    prune = _by_chance(params, key)
    return _elected(params)([prune(d, i, "") for i, d in enumerate(deltas)], weights)


def _on_factors(
    terms: Sequence[Term],
    merge: Callable[[Sequence[Tensor], Sequence[float]], Tensor],
    prune: Callable[[Tensor, int, str], Tensor],
) -> Factors:
    refuse_shapes(terms)
    if len({term.up.shape[1] for term in terms}) > 1:
        told = "PEFT's methods on factors need equal ranks"
        raise AdapterError("AT500", told, hint="use cat, svd, or our own methods")
    strengths = [term.weight * term.scale for term in terms]
    roots = [abs(c) ** 0.5 for c in strengths]
    signs = [root if c >= 0 else -root for root, c in zip(roots, strengths, strict=True)]
    ups = [prune(term.up / term.scale, place, "B") for place, term in enumerate(terms)]
    downs = [prune(term.down, place, "A") for place, term in enumerate(terms)]
    return merge(ups, roots), merge(downs, signs)


def _weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([t * w for t, w in zip(tensors, weights, strict=True)]).sum(0)


def _elected(params: Params) -> Callable[[Sequence[Tensor], Sequence[float]], Tensor]:
    """Return PEFT's election: signs of the unweighted tensors, the sum over the count (min 1)."""

    def merge(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        stack = torch.stack(list(tensors))
        votes = stack if params["majority_sign_method"] == "total" else stack.sign()
        agrees = stack.sign() == torch.where(votes.sum(0) >= 0, 1, -1)
        weighted = stack * torch.tensor(weights, dtype=stack.dtype)[:, None, None]
        return torch.where(agrees, weighted, 0.0).sum(0) / agrees.sum(0).clamp(min=1)

    return merge


def _by_magnitude(params: Params) -> Callable[[Tensor, int, str], Tensor]:
    def prune(tensor: Tensor, place: int, part: str) -> Tensor:
        if params["density"] >= 1:
            return tensor
        kept = largest(tensor.abs(), int(params["density"] * tensor.numel()))
        return torch.where(kept, tensor, 0.0)

    return prune


def _by_chance(params: Params, key: Key) -> Callable[[Tensor, int, str], Tensor]:
    def prune(tensor: Tensor, place: int, part: str) -> Tensor:
        return dropped(tensor, params["density"], "prob", key, place, part)

    return prune
