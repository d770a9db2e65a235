"""The reference: one correct rounding of fp64 values to a stored dtype, and distances in ulps.

Free of torch and of the library: a format is its significant bits and its least exponent.
"""

from __future__ import annotations

import numpy as np
from builders import Tensor, bf16_bytes, decode

# significant bits, least normal exponent, largest finite value
FORMATS = {
    "BF16": (8, -126, float.fromhex("0x1.fep127")),
    "F16": (11, -14, 65504.0),
    "F32": (24, -126, float.fromhex("0x1.fffffep127")),
    "F64": (53, -1022, float.fromhex("0x1.fffffffffffffp1023")),
}
UNIT = {name: 2.0**-bits for name, (bits, _, _) in FORMATS.items()}


def step(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return the distance of neighbouring numbers of `dtype` around each value."""
    bits, least, _ = FORMATS[dtype]
    exponent = np.frexp(values)[1] - 1
    return np.ldexp(1.0, np.maximum(exponent, least) - (bits - 1))


def round_once(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round fp64 values to the nearest number of `dtype`, ties to even, in one step."""
    if dtype == "F64":
        return values
    unit = step(values, dtype)
    rounded = np.rint(values / unit) * unit
    return np.where(np.abs(rounded) > FORMATS[dtype][2], np.copysign(np.inf, values), rounded)


def store(values: np.ndarray, dtype: str) -> tuple[np.ndarray, Tensor]:
    """Return values rounded to `dtype`, and the tensor that stores them."""
    kept = round_once(np.asarray(values, np.float64), dtype)
    if dtype == "BF16":
        return kept, (dtype, kept.shape, bf16_bytes(kept.astype(np.float32)))
    narrow = {"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]
    return kept, (dtype, kept.shape, kept.astype(narrow).tobytes())


def load(tensor: Tensor) -> np.ndarray:
    """Return a stored tensor as fp64, which holds all of them exactly."""
    return decode(tensor).astype(np.float64)


def equal_share(got: np.ndarray, exact: np.ndarray, dtype: str) -> float:
    """Return the share of elements that are the exact value rounded once."""
    return float(np.mean(got == round_once(exact, dtype)))


def check(got: np.ndarray, exact: np.ndarray, mass: np.ndarray, dtype: str, compute: str) -> None:
    """Assert one rounding everywhere, and at most one ulp where the terms do not cancel.

    `mass` is the sum of the absolute values of all terms of an element, times the count of their
    roundings: what the compute dtype may lose is its unit times the mass.
    """
    assert got.shape == exact.shape
    error = np.abs(got - exact)
    allowed = 0.5 * step(exact, dtype) * (1 + 1e-9) + UNIT[compute] * mass
    worst = np.unravel_index(np.argmax(error - allowed), error.shape) if error.size else ()
    assert (error <= allowed).all(), (
        f"{dtype} by {compute}: at {worst} {got[worst]!r}, exact {exact[worst]!r}, "
        f"off by {error[worst]:.3e}, allowed {allowed[worst]:.3e}"
    )
    whole = np.abs(exact) >= mass / 256
    ulps = np.abs(got - round_once(exact, dtype)) / step(exact, dtype)
    if dtype != "F64":
        assert (ulps[whole] <= 1).all(), f"{dtype}: {ulps[whole].max()} ulps"
