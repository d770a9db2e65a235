"""Multi-SLERP: the direction of the weighted mean of unit changes, with the mean norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adaptertools.algebra.methods.linear import combined, gram_of
from adaptertools.algebra.methods.sphere import multislerp_coefficients

if TYPE_CHECKING:
    from adaptertools.algebra.methods.model import Params
    from adaptertools.algebra.randomness import Key
    from adaptertools.algebra.terms import Factors, Term


def multislerp(terms: Sequence[Term], params: Params, key: Key) -> Factors:
    """Return the normalised weighted mean of unit changes times the weighted mean of norms."""
    found = multislerp_coefficients(
        gram_of(terms),
        [term.weight for term in terms],
        params["normalize_weights"],
        params["eps"],
        key.tensor,
    )
    return combined(terms, found.tolist())
