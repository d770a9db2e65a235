"""Exact composition: low-rank changes add up as a concatenation of ranks, without any rounding.

ΔW = Σ cᵢ BᵢAᵢ = [B₁ … Bₖ] diag(c) [A₁; …; Aₖ]. A common c stays the scale, so that no factor is
touched; else the others are multiplied into their B (exact for powers of two, else in F32).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adaptertools.adapter.model import Factor, LowRank
from adaptertools.composition.results import combined
from adaptertools.conversion.values import cast, common_dtype, gated, scaled
from adaptertools.errors import AdapterError
from adaptertools.formats.factors import concatenated

LARGEST = 1e30


@dataclass(frozen=True, slots=True)
class Part:
    """One adapter's change of a target, and the weight given to it."""

    update: LowRank
    weight: float

    @property
    def coefficient(self) -> float:
        return self.update.scale * self.weight


def concatenate(parts: Sequence[Part]) -> LowRank:
    """Return one update whose ΔW is the weighted sum of those of `parts`."""
    parts = [Part(_plain(part.update), part.weight) for part in parts]
    scale = max(abs(p.coefficient) for p in parts) or 1.0
    if not scale < LARGEST:
        raise AdapterError(
            "AT500",
            f"the weights give it the scale {scale:g}, which no format holds",
            key=parts[0].update.target.name,
        )
    ratios = [part.coefficient / scale for part in parts]
    dtype = common_dtype([f.dtype for p in parts for f in (p.update.down, p.update.up)])
    if dtype in ("BF16", "F16") and not all(_exact(ratio, dtype) for ratio in ratios):
        dtype = "F32"
    first = parts[0].update
    down_axis, up_axis = (0, 1) if first.experts is None else (1, 2)
    down = concatenated([cast(p.update.down, dtype) for p in parts], down_axis)
    ups = [
        scaled(cast(part.update.up, dtype), ratio)
        for part, ratio in zip(parts, ratios, strict=True)
    ]
    rank = sum(part.update.rank for part in parts)
    alone = len(parts) == 1 and parts[0].weight == 1.0
    return replace(
        first,
        down=down,
        up=concatenated(ups, up_axis),
        scale=scale,
        rank=rank,
        alpha=first.alpha if alone else None,
        bias=_bias(parts, ratios, dtype),
    )


def _plain(update: LowRank) -> LowRank:
    """Return the update with AdaLoRA's singular values in its `up`."""
    if update.gate is None:
        return update
    return replace(update, up=gated(update.up, update.gate), gate=None)


def _exact(ratio: float, dtype: str) -> bool:
    """Say whether multiplying by a ratio only moves the exponent, far from the end of its range."""
    if ratio == 0.0 or abs(ratio) == 1.0:
        return True
    return dtype == "BF16" and abs(math.frexp(ratio)[0]) == 0.5 and abs(ratio) > 2.0**-32


def _bias(parts: Sequence[Part], ratios: Sequence[float], dtype: str) -> Factor | None:
    """Return the sum of the biases, which share the scale of ΔW."""
    biased = [
        (part.update.bias, ratio)
        for part, ratio in zip(parts, ratios, strict=True)
        if part.update.bias is not None
    ]
    if len(biased) == 1 and biased[0][1] == 1.0:
        return biased[0][0]
    return combined(biased, dtype=dtype) if biased else None
