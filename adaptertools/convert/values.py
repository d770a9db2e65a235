"""Factors with other values: multiplied, cast, gated. Each is computed when it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from adaptertools.adapter.model import Factor
from adaptertools.store.dtypes import nbytes, torch_dtype
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


def _computed(
    factor: Factor, dtype: str, compute: Callable[[torch.Tensor], torch.Tensor]
) -> Factor:
    def bits() -> Any:
        from adaptertools.algebra.fold import as_bits

        return as_bits(compute(as_tensor(factor.bits(), factor.dtype)))

    return replace(
        factor,
        dtype=dtype,
        size=nbytes(dtype, prod(factor.shape)),
        bits=bits,
        read=lambda: as_tensor(bits(), dtype),
        read_flat=lambda start, stop: as_tensor(bits().reshape(-1)[start:stop], dtype),
    )
