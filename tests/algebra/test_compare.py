"""Low-rank changes compared and measured, against the dense matrices in numpy fp64."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptertools.algebra.compare import (
    DENSE,
    Delta,
    Spectrum,
    delta,
    liken,
    norm,
    sample_rows,
    sign_conflict,
    spectra,
)
from adaptertools.algebra.tally import Tally

SIZES = st.tuples(*[st.integers(2, 24)] * 2, *[st.integers(1, 6)] * 2, st.integers(0, 2**31))


def draw(rng: np.random.Generator, out: int, into: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.standard_normal((out, rank)), rng.standard_normal((rank, into))


def made(up: np.ndarray, down: np.ndarray, scale: float = 1.0) -> Delta:
    return delta(torch.from_numpy(up), torch.from_numpy(down), scale)


@settings(deadline=None, max_examples=60)
@given(SIZES)
def test_norms_inner_product_and_distance(sizes: tuple[int, ...]) -> None:
    """As the dense matrices have them, with ranks of any size against the shape."""
    out, into, r, q, seed = sizes
    rng = np.random.default_rng(seed)
    (b, a), (d, c) = draw(rng, out, into, r), draw(rng, out, into, q)
    x, y = -1.5 * b @ a, 0.25 * d @ c
    found = liken(made(b, a, -1.5), made(d, c, 0.25))
    assert found.norms == pytest.approx((np.linalg.norm(x), np.linalg.norm(y)), rel=1e-12)
    bound = 1e-12 * found.norms[0] * found.norms[1]
    assert found.inner == pytest.approx((x * y).sum(), abs=bound)
    assert found.distance == pytest.approx(np.linalg.norm(x - y), rel=1e-12)
    assert found.cosine == pytest.approx((x * y).sum() / math.prod(found.norms), abs=1e-12)
    assert norm(made(b, a, -1.5)) == pytest.approx(np.linalg.norm(x), rel=1e-12)


@settings(deadline=None, max_examples=40)
@given(SIZES)
def test_both_sides_overlap_as_the_dense_spaces_do(sizes: tuple[int, ...]) -> None:
    """Cosines of the angles between column spaces, and between row spaces."""
    out, into, r, q, seed = sizes
    rng = np.random.default_rng(seed)
    (b, a), (d, c) = draw(rng, out, into, r), draw(rng, out, into, q)
    found = liken(made(b, a), made(d, c))
    i, j = min(r, out, into), min(q, out, into)
    (u, _, v), (p, _, w) = np.linalg.svd(b @ a), np.linalg.svd(d @ c)
    for side, one, other, extent in (
        (found.output, u[:, :i], p[:, :j], out),
        (found.input, v[:i].T, w[:j].T, into),
    ):
        assert side is not None
        cosines = np.linalg.svd(one.T @ other, compute_uv=False)
        np.testing.assert_allclose(side.cosines, np.minimum(cosines, 1), atol=1e-7)
        assert side.share == pytest.approx((cosines**2).sum() / min(i, j), abs=1e-7)
        assert side.chance == pytest.approx(max(i, j) / extent)


def test_a_shared_half_is_seen_on_its_side_only() -> None:
    """Two of four output directions in common, no input direction."""
    left = np.eye(16)
    one = made(left[:, :4], left[:4])
    other = made(left[:, 2:6], left[8:12])
    found = liken(one, other)
    assert found.output is not None
    assert found.input is not None
    assert (found.output.share, found.input.share) == pytest.approx((0.5, 0.0))
    assert found.output.chance == 0.25


@settings(deadline=None, max_examples=40)
@given(SIZES, st.integers(0, 4))
def test_factors_do_not_matter(sizes: tuple[int, ...], more: int) -> None:
    """B G, G⁻¹ A, padded with zero ranks, is the same change, and shares all its directions."""
    out, into, r, _, seed = sizes
    rng = np.random.default_rng(seed)
    b, a = draw(rng, out, into, r)
    g = np.linalg.qr(rng.standard_normal((r, r)))[0] * rng.uniform(0.5, 2, r)
    other = np.hstack([b @ g, np.zeros((out, more))])
    rest = np.vstack([np.linalg.inv(g) @ a, rng.standard_normal((more, into))])
    found = liken(made(b, a), made(other, rest))
    assert found.relative < 1e-13
    assert found.cosine == pytest.approx(1.0, abs=1e-13)
    for side in (found.output, found.input):
        assert side is not None
        assert side.share == pytest.approx(1.0, abs=1e-6)
        assert len(side.cosines) == min(r, out, into)


def test_a_small_distance_is_not_lost() -> None:
    """Where ‖a‖² + ‖b‖² − 2⟨a, b⟩ has no digit left: a distance of 1e-12 of the size."""
    rng = np.random.default_rng(1)
    b, a = draw(rng, 300, 200, 8)
    step = rng.standard_normal((300, 1)), rng.standard_normal((1, 200))
    tiny = 1e-12 * np.linalg.norm(b @ a) / np.linalg.norm(step[0] @ step[1])
    other = made(np.hstack([b, tiny * step[0]]), np.vstack([a, step[1]]))
    found = liken(made(b, a), other)
    assert found.relative == pytest.approx(1e-12, rel=1e-2, abs=0)
    gram = found.norms[0] ** 2 + found.norms[1] ** 2 - 2 * found.inner
    assert math.sqrt(max(gram, 0)) / found.norms[0] != pytest.approx(1e-12, rel=0.5, abs=0)


def test_experts_kernels_and_gates() -> None:
    """A stack is one long vector; a kernel is part of the input; a gate multiplies the ranks."""
    rng = np.random.default_rng(2)
    up, down = rng.standard_normal((3, 6, 2)), rng.standard_normal((3, 2, 5))
    other = rng.standard_normal((3, 2, 5))
    x, y = up @ down, up @ other
    one = delta(torch.from_numpy(up), torch.from_numpy(down), 1.0, stacked=True)
    two = delta(torch.from_numpy(up), torch.from_numpy(other), 1.0, stacked=True)
    found = liken(one, two)
    assert found.distance == pytest.approx(np.linalg.norm(x - y))
    assert found.output is not None
    assert found.output.share == pytest.approx(1.0)
    conflict = sign_conflict(one, two, "x")
    assert conflict is not None
    assert conflict.share == pytest.approx((x * y < 0).mean())
    each = spectra(one)
    assert each is not None
    for got, want in zip(each, x, strict=True):
        np.testing.assert_allclose(got.values, np.linalg.svd(want, compute_uv=False)[:2])
    kernel, gate = rng.standard_normal((2, 5, 3, 3)), np.array([2.0, -0.5])
    conv = delta(torch.from_numpy(up[0]), torch.from_numpy(kernel), 0.5, torch.from_numpy(gate))
    want = 0.5 * np.einsum("or,r,rikl->oikl", up[0], gate, kernel)
    assert norm(conv) == pytest.approx(np.linalg.norm(want))


def test_what_is_not_finite_is_infinitely_far() -> None:
    """No exception, and never a small number."""
    good = made(np.ones((4, 1)), np.ones((1, 4)))
    for value in (math.nan, math.inf):
        bad = made(np.full((4, 1), value), np.ones((1, 4)))
        assert liken(good, bad).relative == math.inf
        assert liken(bad, bad).relative == math.inf
        assert norm(bad) == math.inf
        assert spectra(bad) is None
    zero = made(np.zeros((4, 1)), np.ones((1, 4)))
    assert liken(zero, zero).relative == 0.0
    assert (liken(good, zero).relative, liken(good, zero).cosine) == (1.0, None)
    assert liken(good, zero).output is None


# --- signs ---------------------------------------------------------------------------------------


def test_signs_of_a_small_tensor_are_counted() -> None:
    """Every element, by number and by |ab|."""
    rng = np.random.default_rng(3)
    (b, a), (d, c) = draw(rng, 40, 30, 3), draw(rng, 40, 30, 3)
    x, y = b @ a, d @ c
    found = sign_conflict(made(b, a), made(d, c), "x")
    assert found is not None
    assert found.share == pytest.approx((x * y < 0).mean())
    assert found.weighted == pytest.approx(np.abs(x * y)[x * y < 0].sum() / np.abs(x * y).sum())
    assert (found.rows, found.sampled, found.margin) == (40, 40, 0.0)
    flipped = sign_conflict(made(b, a), made(b, a, -2.0), "x")
    assert flipped is not None
    assert (flipped.share, flipped.weighted) == (1.0, 1.0)
    same = sign_conflict(made(b, a), made(b, a), "x")
    assert same is not None
    assert (same.share, same.weighted) == (0.0, 0.0)
    assert sign_conflict(made(b * 0, a), made(b, a), "x") is None


def test_signs_of_a_large_tensor_are_estimated() -> None:
    """From some rows, with a margin that holds; the same ones every time."""
    rng = np.random.default_rng(4)
    (b, a), (d, c) = draw(rng, 2000, 1024, 2), draw(rng, 2000, 1024, 2)
    truth = ((b @ a) * (d @ c) < 0).mean()
    found = sign_conflict(made(b, a), made(d, c), "x")
    assert found is not None
    assert found.sampled == DENSE // 1024
    assert 0 < found.margin < 0.05
    assert found.share != truth
    assert abs(found.share - truth) < 2 * found.margin
    assert sign_conflict(made(b, a), made(d, c), "x") == found
    assert sign_conflict(made(b, a), made(d, c), "y") != found


def test_sampled_rows() -> None:
    """One from each of equal runs; the draw is pinned."""
    rows = sample_rows("model.layers.0.q_proj.weight", 4096, 64)
    assert [row // 64 for row in rows] == list(range(64))
    assert rows[:6] == [54, 78, 159, 214, 308, 358]
    assert sample_rows("x", 10, 16) == list(range(10))
    odd = sample_rows("x", 1000, 7)
    assert all(one < other for one, other in pairwise(odd))
    assert odd != sample_rows("y", 1000, 7)


# --- spectra -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(SIZES)
def test_singular_values(sizes: tuple[int, ...]) -> None:
    """Those of the dense matrix; rounding is not counted as rank."""
    out, into, r, more, seed = sizes
    b, a = draw(np.random.default_rng(seed), out, into, r)
    found = spectra(made(np.hstack([b] + [b[:, :1]] * more), np.vstack([a] + [a[:1]] * more), 0.5))
    assert found is not None
    dense = 0.5 * (b @ a + more * b[:, :1] @ a[:1])
    want = np.linalg.svd(dense, compute_uv=False)[: min(r, out, into)]
    np.testing.assert_allclose(found[0].values, want, rtol=1e-8, atol=1e-12 * want[0])
    assert found[0].norm == pytest.approx(np.linalg.norm(dense))


def test_what_a_spectrum_says() -> None:
    """Energy ranks, stable and entropy rank of known values."""
    flat = Spectrum((2.0,) * 10)
    assert (flat.energy_rank(0.9), flat.energy_rank(0.99)) == (9, 10)
    assert (flat.stable_rank, flat.entropy_rank) == pytest.approx((10, 10))
    steep = Spectrum((3.0, 1.0))
    assert (steep.energy_rank(0.9), steep.energy_rank(0.91)) == (1, 2)
    assert steep.stable_rank == pytest.approx(10 / 9)
    assert steep.entropy_rank == pytest.approx(math.exp(-0.9 * math.log(0.9) - 0.1 * math.log(0.1)))
    tie = Spectrum(tuple(math.sqrt(5 * energy) for energy in (5, 4, 1)))
    assert tie.energy_rank(0.9) == 2
    none = Spectrum(())
    assert (none.energy_rank(0.9), none.stable_rank, none.entropy_rank, none.top) == (0, 0, 0, 0)


# --- element by element --------------------------------------------------------------------------


def test_tally_adds_up_over_blocks() -> None:
    """As over the whole, in mixed dtypes."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal(1000).astype(np.float32)
    y = torch.from_numpy(x).bfloat16()
    seen = Tally()
    for start in (0, 600):
        stop = 600 if not start else 1000
        seen.add(torch.from_numpy(x[start:stop]), y[start:stop])
    wide = y.double().numpy()
    assert (seen.elements, seen.equal) == (1000, int((x == wide).sum()))
    assert seen.relative == pytest.approx(
        np.linalg.norm(x - wide) / max(np.linalg.norm(x.astype(float)), np.linalg.norm(wide))
    )
    assert seen.largest == np.abs(x - wide).max()
    assert seen.rounded == 1000
    seen.add(torch.tensor([1.0]), torch.tensor([2.0]))
    assert seen.rounded == 1000
    seen.add(torch.tensor([math.nan]), torch.tensor([math.nan]))
    assert (seen.relative, seen.largest) == (math.inf, math.inf)
