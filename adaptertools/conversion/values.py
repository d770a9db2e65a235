"""Factors with other values: multiplied, cast, gated. Each is computed when it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from adaptertools.adapter.model import Factor
from adaptertools.errors import FormatError, MergeError
from adaptertools.store.dtypes import DTYPES, nbytes, torch_dtype
from adaptertools.store.tensor import as_tensor

if TYPE_CHECKING:
    import torch


def scaled(factor: Factor, by: float) -> Factor:
    """Return `factor` times a number, rounded once to its own dtype."""
    if by == 1.0:
        return factor

    def compute(values: torch.Tensor) -> torch.Tensor:
        from adaptertools.algebra.fold import folded

        return folded(values, by, values.dtype)

    return _computed(factor, factor.dtype, compute)


def cast(factor: Factor, dtype: str) -> Factor:
    """Return `factor` in another dtype, rounded once."""
    if factor.dtype == dtype:
        return factor

    def compute(values: torch.Tensor) -> torch.Tensor:
        from adaptertools.algebra.fold import folded

        return folded(values, 1.0, torch_dtype(dtype))

    return _computed(factor, dtype, compute)


def gated(factor: Factor, gate: Factor) -> Factor:
    """Return up [out, rank] with its columns times `gate` [rank]."""

    def compute(values: torch.Tensor) -> torch.Tensor:
        from adaptertools.algebra import fold

        return fold.gated(values, gate.read(), values.dtype)

    return _computed(factor, factor.dtype, compute)


def inverted(vector: Factor, scale: float, weight: float) -> Factor:
    """Return 1 / (1 + weight (scale · vector - 1)), which undoes a weighted vector, in F64.

    Raises `MergeError` (AT422) where that divides by zero.
    """

    def compute(values: torch.Tensor) -> torch.Tensor:
        whole = 1 + weight * (values.double() * scale - 1)
        if not bool(whole.all()):
            raise MergeError(
                "AT422",
                "a channel was multiplied by zero, and what it was is gone",
                key=vector.key,
                hint="start from the base itself",
            )
        return whole.reciprocal()

    return _computed(vector, "F64", compute)


def common_dtype(dtypes: Sequence[str]) -> str:
    """Return the narrowest dtype that holds all values of `dtypes`; BF16 and F16 meet in F32."""
    found = set(dtypes)
    if found == {"BF16", "F16"}:
        return "F32"
    return max(found, key=lambda name: DTYPES[name].bits)


def product(factors: Sequence[Factor]) -> Factor:
    """Return the product of vectors, rounded once to the first one's dtype."""
    first = factors[0]

    def compute(values: torch.Tensor) -> torch.Tensor:
        from adaptertools.algebra.fold import gated

        rest = values.double()
        for factor in factors[1:-1]:
            rest = rest * factor.read().double()
        return gated(rest, factors[-1].read(), values.dtype)

    return first if len(factors) == 1 else _computed(first, first.dtype, compute)


def _computed(
    factor: Factor, dtype: str, compute: Callable[[torch.Tensor], torch.Tensor]
) -> Factor:
    def bits() -> Any:
        from adaptertools.algebra.fold import as_bits

        try:
            return as_bits(compute(as_tensor(factor.bits(), factor.dtype)))
        except OverflowError as error:
            raise FormatError(
                "AT259", f"in {dtype} {error}", key=factor.key, hint="choose a wider --dtype"
            ) from None

    return replace(
        factor,
        dtype=dtype,
        size=nbytes(dtype, prod(factor.shape)),
        bits=bits,
        read=lambda: as_tensor(bits(), dtype),
        read_flat=lambda start, stop: as_tensor(bits().reshape(-1)[start:stop], dtype),
    )
