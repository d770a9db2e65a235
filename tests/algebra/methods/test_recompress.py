"""Recompression against dense SVDs: the error known beforehand, the least rank, the split."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptertools.algebra import products, recompress
from adaptertools.algebra.gram import cosine, dense_gram, gram, inner, norms
from adaptertools.algebra.range_finder import dense_to_low_rank
from adaptertools.algebra.recompress import Rule, Spectrum, choose_rank, split, truncated
from adaptertools.algebra.terms import Term
from adaptertools.errors import AdapterError

from .draws import CLOSE, SEEDS, dense, examples, generator, matrix, refactored, term_lists
from .golden import key_for

SPLITS = st.sampled_from(("balanced", "up", "down"))


@examples(80)
@given(term_lists(), SPLITS)
def test_nothing_is_lost_without_a_rule(terms: list[Term], how: recompress.Split) -> None:
    found = recompress.recompress_terms(terms)
    up, down = split(found, how)
    exact = dense(terms)
    assert float((up @ down - exact).norm()) <= 1e-12 * found.parts
    assert found.energy == pytest.approx(float(exact.square().sum()), rel=1e-9, abs=1e-18)
    assert found.error == 0 and found.rank <= min(exact.shape)


@examples(80)
@given(term_lists(), st.integers(1, 12))
def test_the_error_is_the_discarded_energy(terms: list[Term], rank: int) -> None:
    """And no approximation of that rank is nearer: Eckart and Young's bound is met."""
    cut = truncated(recompress.recompress_terms(terms), rank)
    exact = dense(terms)
    gap = float((torch.matmul(*split(cut)) - exact).norm())
    best = math.sqrt(float(torch.linalg.svdvals(exact)[rank:].square().sum()))
    assert gap == pytest.approx(cut.error, abs=1e-10 * cut.parts)
    assert gap == pytest.approx(best, abs=1e-10 * cut.parts)
    assert cut.rank <= rank
    assert cut.relative_error == pytest.approx(gap / float(exact.norm()), abs=1e-8)


@examples(40)
@given(term_lists(), SEEDS)
def test_factors_do_not_matter(terms: list[Term], seed: int) -> None:
    one, other = (recompress.recompress_terms(t) for t in (terms, refactored(terms, seed)))
    torch.testing.assert_close(one.sigma, other.sigma, rtol=1e-8, atol=1e-10)


@examples(40)
@given(term_lists())
def test_orthonormal_and_signed(terms: list[Term]) -> None:
    found = recompress.recompress_terms(terms)
    eye = torch.eye(found.rank, dtype=torch.float64)
    for vectors in (found.u, found.v):
        torch.testing.assert_close(vectors.T @ vectors, eye, **CLOSE)
    if found.rank:
        largest = found.u.abs().argmax(0, keepdim=True)
        assert (found.u.gather(0, largest) > 0).all()
    up, down = split(found, "up")
    torch.testing.assert_close(down @ down.T, eye, **CLOSE)
    up, down = split(found, "down")
    torch.testing.assert_close(up.T @ up, eye, **CLOSE)
    up, down = split(found)
    torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1), **CLOSE)


def test_the_first_of_equals_gets_the_sign() -> None:
    u, v = recompress.signed(torch.tensor([[-0.5], [0.5]]), torch.tensor([[1.0]]))
    assert u.flatten().tolist() == [0.5, -0.5] and v.tolist() == [[-1.0]]


def keeps(sigma: list[float], rule: Rule, kept: int) -> bool:
    """Say by its definition whether `kept` triplets qualify."""
    squares, value = [s * s for s in sigma], rule.value
    tail = sum(squares[kept:])
    return {
        "rank": kept >= min(value, len(sigma)),
        "energy": sum(squares[:kept]) >= value * sum(squares),
        "fro": sum(squares[:kept]) >= value**2 * sum(squares),
        "sum": sum(sigma[:kept]) >= value * sum(sigma),
        "ratio": all(s <= sigma[0] / value for s in sigma[kept:]),
        "sv_min": all(s <= value for s in sigma[kept:]),
        "max_error": math.sqrt(tail) <= value * math.sqrt(sum(squares)),
    }[rule.name]


VALUES = st.sampled_from((0.01, 0.3, 0.5, 0.77, 0.9, 0.95, 0.999))


@examples(200)
@given(
    st.sampled_from(("rank", "energy", "fro", "sum", "ratio", "sv_min", "max_error")),
    VALUES,
    st.lists(st.floats(1e-3, 4.0), min_size=1, max_size=9),
    st.none() | st.integers(1, 4),
)
def test_the_least_rank_that_qualifies(
    name: recompress.RuleName, value: float, drawn: list[float], most: int | None
) -> None:
    sigma = sorted(drawn, reverse=True)
    scaled = {"rank": math.ceil(value * 9), "ratio": 1 / value}.get(name, value)
    rule = Rule(name, scaled, most)
    least = next((k for k in range(1, len(sigma) + 1) if keeps(sigma, rule, k)), len(sigma))
    got = choose_rank(torch.tensor(sigma, dtype=torch.float64), rule)
    edge = any(abs(a - b) < 1e-12 for a in sigma for b in sigma if a is not b)
    assert got == min(least, most or least) or edge


@pytest.mark.parametrize(
    ("name", "value"),
    [("energy", 1.1), ("fro", -0.1), ("rank", 0), ("ratio", 0.5), ("max_error", 2)],
)
def test_a_rule_out_of_bounds_is_refused(name: recompress.RuleName, value: float) -> None:
    with pytest.raises(AdapterError, match=name):
        Rule(name, value)
    with pytest.raises(AdapterError, match="at least 1"):
        Rule("rank", 1, most=0)


@pytest.mark.parametrize(
    ("rule", "missed", "kept"),
    [
        (Rule("energy", 0.9), 0.0, 2),
        (Rule("energy", 0.9), 4.0, 3),
        (Rule("energy", 0.5), 4.0, 1),
        (Rule("max_error", 0.5), 0.0, 2),
        (Rule("max_error", 0.53), 4.0, 2),
        (Rule("max_error", 0.5), 4.0, 3),
    ],
)
def test_what_is_not_in_the_triplets_counts(rule: Rule, missed: float, kept: int) -> None:
    """Of σ = 3, 2, 1 the energy is 14, and 18 with what a sketch has missed; 9 is half of that."""
    sigma = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    assert choose_rank(sigma, rule, missed) == kept
    spectrum = Spectrum(torch.eye(3), sigma, torch.eye(3), 14 + missed, missed)
    cut = truncated(spectrum, rule)
    assert cut.rank == kept
    assert cut.discarded == pytest.approx(14 + missed - sum(s * s for s in (3, 2, 1)[:kept]))


def test_a_zero_change() -> None:
    zero = Term(torch.zeros(4, 2), torch.ones(2, 3))
    found = truncated(recompress.recompress_terms([zero]), Rule("energy", 0.9))
    assert found.rank == 0 and found.relative_error == 0 and found.cancellation == 1
    up, down = recompress.padded(split(found), 1)
    assert up.shape == (4, 1) and down.shape == (1, 3) and not up.any() and not down.any()
    absent = recompress.recompress([torch.zeros(4, 0)], [torch.zeros(0, 3)])
    assert absent.rank == 0


def test_cancellation_is_told() -> None:
    rng = generator(5)
    up, down = matrix(rng, 6, 2), matrix(rng, 2, 5)
    nearly = Term(up * (1 + 1e-5), down, -1.0)
    found = recompress.recompress_terms([Term(up, down), nearly])
    assert found.cancellation == pytest.approx(2e5, rel=1e-3)
    assert recompress.recompress_terms([Term(up, down)]).cancellation == pytest.approx(1)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(AdapterError, match="not finite"):
        recompress.recompress([torch.full((3, 1), float("nan"))], [torch.ones(1, 3)])


def test_lapack_that_does_not_converge(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way has the same singular values, small ones too; other errors pass."""
    rng = generator(6)
    u, v = torch.linalg.qr(matrix(rng, 7, 4)).Q, torch.linalg.qr(matrix(rng, 5, 4)).Q
    sigma = torch.tensor([3.0, 1.0, 1e-5, 1e-9], dtype=torch.float64)
    whole = u * sigma @ v.T

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("linalg.svd: The algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "svd", fail)
    left, found, right = recompress.small_svd(whole)
    torch.testing.assert_close(found[:4], sigma, rtol=1e-6, atol=1e-14)
    torch.testing.assert_close(left * found @ right.T, whole, **CLOSE)

    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch.linalg, "svd", crash)
    with pytest.raises(RuntimeError, match="out of memory"):
        recompress.small_svd(whole)


def test_ranks_shared_by_a_budget() -> None:
    """What a value costs is m + n; the most energy for each value first."""

    def spectrum(rows: int, columns: int, sigma: list[float]) -> Spectrum:
        values, rank = torch.tensor(sigma), len(sigma)
        return Spectrum(torch.zeros(rows, rank), values, torch.zeros(columns, rank), 1.0)

    spectra = [spectrum(5, 5, [3.0, 1.0]), spectrum(20, 20, [4.0, 3.0])]
    # by σ²/(m+n): 0.9, 0.4, 0.225, 0.1
    assert recompress.share_ranks(spectra, 9) == [0, 0]
    assert recompress.share_ranks(spectra, 10) == [1, 0]
    assert recompress.share_ranks(spectra, 50) == [1, 1]
    assert recompress.share_ranks(spectra, 89) == [1, 1]
    assert recompress.share_ranks(spectra, 100) == [2, 2]


@examples(40)
@given(term_lists(least=2))
def test_inner_products(terms: list[Term]) -> None:
    changes = [t.up @ t.down for t in terms]
    found = gram([t.factors for t in terms])
    torch.testing.assert_close(found, dense_gram(changes), rtol=1e-9, atol=1e-10)
    assert inner(terms[0].factors, terms[1].factors) == pytest.approx(
        float((changes[0] * changes[1]).sum()), rel=1e-9, abs=1e-10
    )
    sizes = torch.stack([change.norm() for change in changes])
    torch.testing.assert_close(norms(found), sizes, rtol=1e-7, atol=1e-9)
    assert float(cosine(found).abs().max()) <= 1


@examples(30)
@given(st.integers(1, 4), st.integers(1, 5), SEEDS)
def test_loha_and_lokr(rank: int, size: int, seed: int) -> None:
    rng = generator(seed)
    one = matrix(rng, size, rank), matrix(rng, rank, size + 1)
    other = matrix(rng, size, rank + 1), matrix(rng, rank + 1, size + 1)
    left, right = one[0] @ one[1], other[0] @ other[1]
    up, down = products.hadamard_factors(one, other)
    torch.testing.assert_close(up @ down, left * right, **CLOSE)
    assert up.shape[1] == rank * (rank + 1)
    up, down = products.kronecker_factors(one, other)
    torch.testing.assert_close(up @ down, torch.kron(left, right), **CLOSE)


def planted(seed: int, rows: int, columns: int, rank: int, noise: float) -> torch.Tensor:
    rng = generator(seed)
    low = matrix(rng, rows, rank) @ matrix(rng, rank, columns)
    return low + noise * matrix(rng, rows, columns)


RULES = [
    Rule("rank", 8),
    Rule("energy", 0.9),
    Rule("energy", 0.999, most=12),
    Rule("fro", 0.9),
    Rule("max_error", 0.3),
    Rule("ratio", 3.0),
    Rule("sv_min", 60.0),
    Rule("sum", 0.4),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{r.name}-{r.value}")
@pytest.mark.parametrize(("rows", "columns"), [(300, 260), (260, 420)])
def test_a_sketch_is_as_good_as_a_full_svd(rule: Rule, rows: int, columns: int) -> None:
    """The same rank, an error that is true and within a thousandth of the best."""
    change = planted(1, rows, columns, 10, 0.5)
    quick = dense_to_low_rank(change, rule, key_for(1))
    full = dense_to_low_rank(change, rule, key_for(1), full=True)
    assert quick.rank == full.rank
    gap = float((torch.matmul(*split(quick)) - change).norm())
    assert gap == pytest.approx(quick.error, rel=1e-9)
    assert gap <= full.error * 1.001
    assert quick.energy == pytest.approx(float(change.square().sum()), rel=1e-12)


def test_a_search_goes_on_until_the_rule_is_met() -> None:
    """Of a flat spectrum the first guess holds too little: more are taken."""
    change = planted(2, 700, 600, 90, 0.01)
    rule = Rule("energy", 0.99)
    found = dense_to_low_rank(change, rule, key_for(1))
    assert found.relative_error**2 <= 0.01
    assert found.rank == dense_to_low_rank(change, rule, key_for(1), full=True).rank > 64


def test_a_low_rank_change_is_found_exactly() -> None:
    change = planted(3, 200, 150, 6, 0.0)
    found = dense_to_low_rank(change, Rule("energy", 1.0), key_for(1))
    assert found.rank == 6
    assert float((torch.matmul(*split(found)) - change).norm()) <= 1e-12 * float(change.norm())


def test_a_sketch_is_the_same_each_time() -> None:
    change = planted(4, 120, 100, 5, 0.2)
    one, other = (dense_to_low_rank(change, Rule("rank", 4), key_for(1)) for _ in range(2))
    assert torch.equal(one.u, other.u) and torch.equal(one.sigma, other.sigma)
    narrow = dense_to_low_rank(change.float(), Rule("rank", 4), key_for(1))
    torch.testing.assert_close(narrow.sigma, one.sigma, rtol=1e-5, atol=1e-5)
