"""Which dtype to compute in: always wider than what is stored. Free of torch."""

from __future__ import annotations


def compute_dtype(stored: str, word: str = "auto") -> str:
    """Return the dtype to compute in: always wider than what is stored.

    `auto` is F32 for BF16 (16 guard bits) and F64 for F16 and F32: an F16 value keeps 11 bits, so
    F32 would leave 13 guard bits and one result in 16,000 would be rounded twice.
    """
    if word != "auto":
        return {"f32": "F32", "f64": "F64"}[word]
    return "F32" if stored == "BF16" else "F64"
