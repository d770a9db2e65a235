"""Model Stock: the mean of the changes, shrunk by how far they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import torch

from adaptertools.algebra.gram import cosine, row_inner
from adaptertools.algebra.methods.linear import by_row, combined, gram_of, refuse_shapes
from adaptertools.algebra.methods.sphere import stock_ratio

if TYPE_CHECKING:
    from torch import Tensor

    from adaptertools.algebra.methods.model import Params
    from adaptertools.algebra.randomness import Key
    from adaptertools.algebra.terms import Factors, Term


def model_stock(terms: Sequence[Term], params: Params, key: Key) -> Factors:
    """Return t · mean(wᵢδᵢ), with t from the mean cosine: one for ΔW, or one for each row.

    mergekit clamps the product of two norms at 10⁻⁶, which shrinks the cosine of small changes;
    here a cosine is exact, and 0 with a change that is zero.
    """
    refuse_shapes(terms)
    count = len(terms)
    if not params["filter_wise"]:
        cosines = cosine(gram_of(terms))
        signs = torch.tensor([float(term.weight >= 0) * 2 - 1 for term in terms]).double()
        pairs = [cosines[i, j] * signs[i] * signs[j] for i, j in combinations(range(count), 2)]
        ratio = float(stock_ratio(torch.stack(pairs).mean(), count, params["clamp"]))
        return combined(terms, [ratio * term.weight / count for term in terms])
    ratios = stock_ratio(torch.stack(_row_cosines(terms)).mean(0), count, params["clamp"])
    return by_row(terms, [ratios * (term.weight / count) for term in terms])


def _row_cosines(terms: Sequence[Term]) -> list[Tensor]:
    sizes = [row_inner(term.factors, term.factors).clamp(min=0).sqrt() for term in terms]
    found = []
    for i, j in combinations(range(len(terms)), 2):
        bound = sizes[i] * sizes[j]
        product = row_inner(terms[i].factors, terms[j].factors)
        if (terms[i].weight >= 0) != (terms[j].weight >= 0):
            product = -product
        cosines = (product / bound.where(bound > 0, 1.0)).where(bound > 0, 0.0)
        found.append(cosines.clamp(-1, 1))
    return found
