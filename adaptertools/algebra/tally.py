"""Two tensors compared element by element, block after block, in fp64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from adaptertools.algebra.compare import relative


@dataclass(slots=True)
class Tally:
    """Sums over all blocks added: `gap`, `square_*` and `inner` of values, `largest` of |a − b|.

    `rounded` counts elements that are equal once the wider one is rounded to the other's dtype.
    """

    elements: int = 0
    equal: int = 0
    gap: float = 0.0
    square_a: float = 0.0
    square_b: float = 0.0
    inner: float = 0.0
    largest: float = 0.0
    rounded: int = 0

    def add(self, one: torch.Tensor, other: torch.Tensor) -> None:
        """Add a block of each, of the same number of elements and any dtypes of real numbers."""
        a, b = one.flatten().double(), other.flatten().double()
        self.elements += a.numel()
        if not a.numel():
            return
        self.square_a += float(a @ a)
        self.square_b += float(b @ b)
        self.inner += float(a @ b)
        equal = int((a == b).sum())
        self.equal += equal
        self.rounded += equal if one.dtype == other.dtype else _rounded(one, other)
        b.sub_(a)
        self.gap += float(b @ b)
        far = float(b.abs_().max())
        self.largest = max(self.largest, math.inf if math.isnan(far) else far)

    @property
    def norms(self) -> tuple[float, float]:
        return math.sqrt(self.square_a), math.sqrt(self.square_b)

    @property
    def relative(self) -> float:
        """‖a − b‖ in units of the larger norm; infinite where a value is not finite."""
        return relative(math.sqrt(self.gap), self.norms)

    @property
    def cosine(self) -> float | None:
        size = math.sqrt(self.square_a) * math.sqrt(self.square_b)
        return max(-1.0, min(1.0, self.inner / size)) if size else None


def _rounded(one: torch.Tensor, other: torch.Tensor) -> int:
    wide, narrow = (one, other) if one.element_size() > other.element_size() else (other, one)
    return int((wide.flatten().to(narrow.dtype).double() == narrow.flatten().double()).sum())


def count_equal(one: torch.Tensor, other: torch.Tensor) -> int:
    """Return how many elements of two tensors of one dtype are equal."""
    return int((one.flatten() == other.flatten()).sum())


def is_constant(values: torch.Tensor, value: float) -> bool:
    """Say whether every element is `value`."""
    return bool((values == value).all())
