"""Results of arithmetic as factors: computed once, held in memory, rounded once to their dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from adaptertools.adapter.model import Factor
from adaptertools.conversion.values import common_dtype
from adaptertools.errors import AdapterError, FormatError
from adaptertools.store.dtypes import nbytes, torch_dtype
from adaptertools.store.tensor import as_tensor

if TYPE_CHECKING:
    import torch


def held(values: torch.Tensor, like: Factor, dtype: str) -> Factor:
    """Return values as a factor of `dtype` that is named like another one."""
    from adaptertools.algebra.fold import as_bits, folded

    try:
        bits: Any = as_bits(folded(values, 1.0, torch_dtype(dtype)))
    except OverflowError as error:
        hint = "choose a wider --dtype"
        raise FormatError("AT259", f"in {dtype} {error}", key=like.key, hint=hint) from None
    return replace(
        like,
        shape=tuple(values.shape),
        dtype=dtype,
        size=nbytes(dtype, prod(values.shape)),
        bits=lambda: bits,
        read=lambda: as_tensor(bits, dtype),
        read_flat=lambda start, stop: as_tensor(bits.reshape(-1)[start:stop], dtype),
    )


def combined(
    terms: Sequence[tuple[Factor, float]], constant: float = 0.0, dtype: str | None = None
) -> Factor:
    """Return constant + Σ wᵢ fᵢ, computed in F64, in `dtype` or the one that holds all of them."""
    total: Any = constant
    for factor, weight in terms:
        total = total + weight * factor.read().double()
    return held(total, terms[0][0], dtype or common_dtype([f.dtype for f, _ in terms]))


def multiplied(terms: Sequence[tuple[Factor, float]]) -> Factor:
    """Return ∏ fᵢ ^ wᵢ, computed in F64; a power other than a count needs positive values."""
    total: Any = 1.0
    for factor, weight in terms:
        values = factor.read().double()
        if not (weight.is_integer() and weight >= 0) and not bool((values > 0).all()):
            raise AdapterError(
                "AT277",
                f"a vector with values that are not positive has no power {weight:g}",
                key=factor.key,
                hint="compose it linear, or with a whole weight",
            )
        total = total * (values if weight == 1.0 else values.pow(weight))
    return held(total, terms[0][0], common_dtype([factor.dtype for factor, _ in terms]))
