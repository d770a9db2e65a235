"""The Karcher (Riemannian) mean of the changes' directions, with their mean norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adaptertools.algebra.methods.linear import combined, gram_of
from adaptertools.algebra.methods.sphere import karcher_coefficients

if TYPE_CHECKING:
    from adaptertools.algebra.methods.model import Params
    from adaptertools.algebra.randomness import Key
    from adaptertools.algebra.terms import Factors, Term


def karcher(terms: Sequence[Term], params: Params, key: Key) -> Factors:
    """Return the spherical mean; mergekit weighs equally, weights are shares here."""
    found = karcher_coefficients(
        gram_of(terms),
        [term.weight for term in terms],
        params["max_iter"],
        params["tol"],
        key.tensor,
    )
    return combined(terms, found.tolist())
