"""Values times a constant, and values in another dtype: rounded once."""

from __future__ import annotations

from typing import Any

import torch

from adaptertools.algebra.rounding import round_to


def folded(values: torch.Tensor, factor: float, out: torch.dtype) -> torch.Tensor:
    """Return `values` · factor in dtype `out`, computed in F64 and rounded once.

    Raises `OverflowError` where a finite value becomes an infinite one.
    """
    return _rounded(values, values.double() * factor, out)


def gated(values: torch.Tensor, gate: torch.Tensor, out: torch.dtype) -> torch.Tensor:
    """Return the columns of `values` [out, rank] times `gate` [rank] (of AdaLoRA)."""
    return _rounded(values, values.double() * gate.double().flatten(), out)


def _rounded(values: torch.Tensor, wide: torch.Tensor, out: torch.dtype) -> torch.Tensor:
    result = torch.empty(wide.shape, dtype=out)
    round_to(result, wide)
    if bool((values.isfinite() & ~result.isfinite()).any()):
        raise OverflowError(f"a value of {float(wide.abs().max()):.3g} is too large for it")
    return result


def as_bits(values: torch.Tensor) -> Any:
    """Return the raw bits of a tensor as a numpy array of unsigned integers."""
    words = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}
    return values.contiguous().view(words[values.element_size()]).numpy()
