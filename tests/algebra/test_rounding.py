"""round_to against correct rounding: ties, denormals, overflow, signed zeros, and random bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptertools.algebra.norms import low_rank_norm
from adaptertools.algebra.rounding import round_to

from .exact import FORMATS, round_once, step
from .layers import examples

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
SMALL = ("BF16", "F16", "F32")


def rounded(values: np.ndarray, dtype: str, source: torch.dtype = torch.float64) -> np.ndarray:
    """Return what the library rounds `values` to, as fp64."""
    out = torch.empty(values.shape, dtype=TORCH[dtype])
    round_to(out, torch.from_numpy(values.copy()).to(source))
    return out.double().numpy()


def assert_same(got: np.ndarray, wanted: np.ndarray, values: np.ndarray) -> None:
    """Assert equality, signs of zeros included, naming the first difference."""
    same = (got == wanted) & (np.signbit(got) == np.signbit(wanted))
    first = int(np.argmin(same))
    told = f"{values[first].hex()}: {got[first].hex()}, correct is {wanted[first].hex()}"
    assert same.all(), told


def hard_values(dtype: str) -> np.ndarray:
    """Return ties between neighbours, a hair beside them, and values around every limit."""
    bits, least, largest = FORMATS[dtype]
    rng = np.random.default_rng(1)
    grid = round_once(np.ldexp(1 + rng.random(4000), rng.integers(least - bits, 100, 4000)), dtype)
    grid = grid[np.isfinite(grid)]
    limits = [0.0, 2.0**least, 2.0 ** (least - bits + 1), 2.0 ** (least - bits), largest]
    grid = np.concatenate([grid, limits])
    ties = grid + step(grid, dtype) / 2
    hair = [np.nextafter(ties, 0), np.nextafter(ties, np.inf), ties * (1 + 2.0**-30)]
    values = np.concatenate([grid, ties, *hair, [largest * 1.5, 2.0**-160, 2.0**-1060, 1e300]])
    return np.concatenate([values, -values])


@pytest.mark.parametrize("dtype", SMALL)
def test_hard_values_are_rounded_correctly(dtype: str) -> None:
    """Every tie goes to even and every hair beside a tie decides, at all magnitudes."""
    values = hard_values(dtype)
    assert_same(rounded(values, dtype), round_once(values, dtype), values)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_the_hard_values_are_hard(dtype: str) -> None:
    """torch's own conversion, by way of F32, fails on them: else the test above tells nothing."""
    values = hard_values(dtype)
    direct = torch.from_numpy(values).to(TORCH[dtype]).double().numpy()
    assert np.mean(direct != round_once(values, dtype)) > 0.1


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@examples(150)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=64))
def test_random_bits(dtype: str, words: list[int]) -> None:
    """Any finite or infinite F64 is rounded correctly, and NaN stays NaN."""
    values = np.array(words, np.uint64).view(np.float64)
    got = rounded(values, dtype)
    assert np.array_equal(np.isnan(got), np.isnan(values))
    kept = ~np.isnan(values)
    limited = np.clip(values[kept], -1e308, 1e308)
    wanted = np.where(np.isinf(values[kept]), values[kept], round_once(limited, dtype))
    assert np.array_equal(got[kept], wanted)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@examples(100)
@given(st.data())
def test_near_ties(dtype: str, data: st.DataObject) -> None:
    """A tie plus any smaller amount, down to the last bit of F64."""
    bits, _, _ = FORMATS[dtype]
    whole = data.draw(st.integers(2 ** (bits - 1), 2**bits - 1))
    exponent = data.draw(st.integers(-10, 6))
    below = data.draw(st.integers(bits + 2, 52))
    sign = data.draw(st.sampled_from((-1, 0, 1)))
    value = np.ldexp(whole + 0.5 + sign * 2.0 ** (bits - 1 - below), exponent - bits)
    values = np.array([value, -value])
    assert_same(rounded(values, dtype), round_once(values, dtype), values)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_from_f32(dtype: str) -> None:
    """F32 values round once too."""
    with np.errstate(over="ignore"):
        values = hard_values(dtype).astype(np.float32).astype(np.float64)
    values = values[np.isfinite(values)]
    assert_same(rounded(values, dtype, torch.float32), round_once(values, dtype), values)


SIDE = st.integers(1, 8)


@examples(100)
@given(
    SIDE,
    SIDE,
    st.lists(
        st.tuples(st.integers(1, 4), st.sampled_from((0, 1)), st.floats(-3, 3)),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 2**32 - 1),
)
def test_low_rank_norm_is_the_dense_norm(
    rows: int, columns: int, pieces: list[tuple[int, int, float]], seed: int
) -> None:
    """‖Σ sLR‖ from the factors equals the norm of the dense sum, pieces added where they meet."""
    rng = np.random.default_rng(seed)
    dense = np.zeros((2 * rows, columns))
    given_pieces = []
    for rank, half, scale in pieces:
        left, right = rng.standard_normal((rows, rank)), rng.standard_normal((rank, columns))
        dense[half * rows : (half + 1) * rows] += scale * (left @ right)
        made = (torch.from_numpy(left), torch.from_numpy(right))
        given_pieces.append((half * rows, scale, *made))
    size = sum(abs(s) * np.linalg.norm(p) * np.linalg.norm(q) for _, s, p, q in given_pieces)
    got = low_rank_norm(given_pieces)
    assert abs(got - np.linalg.norm(dense)) <= 1e-7 * size
    if np.linalg.norm(dense) > size / 100:
        assert got == pytest.approx(np.linalg.norm(dense), rel=1e-9)
