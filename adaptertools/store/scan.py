"""A look at a tensor's values without torch: is everything finite, is everything zero?"""

from __future__ import annotations

from dataclasses import dataclass

from adaptertools.store.read import read_bytes, read_tensor
from adaptertools.store.slot import Slot

# dtype → (unsigned word, mask of the exponent bits, mask of all bits but the sign)
_BITS = {
    "BF16": ("u2", 0x7F80, 0x7FFF),
    "F16": ("u2", 0x7C00, 0x7FFF),
    "F32": ("u4", 0x7F800000, 0x7FFFFFFF),
    "F64": ("u8", 0x7FF0000000000000, 0x7FFFFFFFFFFFFFFF),
}
_STEP = 1 << 24


@dataclass(frozen=True, slots=True)
class Scan:
    """What a look found; a tensor of integers is finite."""

    finite: bool
    zero: bool


def scan(slot: Slot) -> Scan:
    """Read a tensor once, 16 MiB at a time, and say whether it is finite and whether it is zero."""
    import numpy as np

    if slot.held is not None:
        held = read_tensor(slot)
        return Scan(bool(held.isfinite().all()), not bool(held.any()))
    if slot.dtype not in _BITS:
        return Scan(finite=True, zero=False)
    word, exponent, value = _BITS[slot.dtype]
    finite, zero = True, True
    for start in range(0, slot.size, _STEP):
        bits = np.frombuffer(read_bytes(slot, start, min(_STEP, slot.size - start)), "<" + word)
        finite = finite and not bool(((bits & exponent) == exponent).any())
        zero = zero and not bool((bits & value).any())
    return Scan(finite, zero)
