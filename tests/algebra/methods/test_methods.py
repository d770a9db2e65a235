"""What single methods promise, against their definitions written out densely."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptertools.algebra.methods import sparsify
from adaptertools.algebra.methods.tsv import polar_factor
from adaptertools.algebra.terms import Term
from adaptertools.errors import AdapterError

from .draws import CLOSE, SEEDS, dense, examples, generator, matrix, term_lists
from .golden import as_terms, key_for, run, tensor

SOME = examples(40)
POSITIVE = st.sampled_from((1.0, 0.5, 2.0))


def changes(count: int, rows: int = 5, columns: int = 4, seed: int = 1) -> list[torch.Tensor]:
    rng = generator(seed)
    return [matrix(rng, rows, columns) for _ in range(count)]


@SOME
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(0, 31))
def test_the_largest_and_the_first_of_equals(values: list[int], kept: int) -> None:
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:kept]
    mask = sparsify.largest(tensor([values]).abs(), kept)
    assert mask.shape == (1, len(values))
    assert mask.flatten().nonzero().flatten().tolist() == sorted(order)


@pytest.mark.parametrize(
    ("count", "density", "kept"),
    [(10, 0.5, 5), (10, 0.59, 5), (10, 0.01, 1), (10, 0.0, 0), (100, 0.29, 28), (10, 1.0, 10)],
)
def test_how_many_are_kept(count: int, density: float, kept: int) -> None:
    """⌊ρN⌋ of the floating product (0.29 · 100 is below 29), at least one for a density above 0."""
    assert sparsify.count_kept(count, density) == kept


@SOME
@given(term_lists(weights=st.sampled_from((1.0, -0.5, 2.0))))
def test_linear_divides_as_told(terms: list[Term]) -> None:
    exact, absolute = dense(terms), sum(abs(t.weight) for t in terms)
    torch.testing.assert_close(run("linear", terms), exact, **CLOSE)
    torch.testing.assert_close(run("linear", terms, params={"lambda": -2}), -2 * exact, **CLOSE)
    got = run("linear", terms, params={"normalize": "abs"})
    torch.testing.assert_close(got, exact / absolute, **CLOSE)


def test_weight_zero_adds_no_rank() -> None:
    from adaptertools.algebra.methods.linear import combined

    terms = as_terms(changes(2), [1.0, 1.0])
    up, down = combined(terms, [0.0, 2.0])
    assert up.shape == (5, 4) and torch.equal(up @ down, 2 * terms[1].up)
    up, down = combined(terms, [0.0, 0.0])
    assert up.shape == (5, 0) and down.shape == (0, 4)


@pytest.mark.parametrize("name", ["average", "karcher", "multislerp"])
def test_a_mean_needs_a_sum(name: str) -> None:
    with pytest.raises(AdapterError) as caught:
        run(name, as_terms(changes(2), [0.0, 0.0]))
    assert caught.value.code == "AT500" and "come to zero" in caught.value.message


@pytest.mark.parametrize("name", ["ties", "linear", "dare_ties", "breadcrumbs"])
def test_a_signed_divisor_is_refused(name: str) -> None:
    params = {"normalize": "sum"}
    with pytest.raises(AdapterError, match="both signs"):
        run(name, changes(2), [1.0, -1.0], params)
    run(name, changes(2), [-1.0, -1.0], params)
    run(name, changes(2), [1.0, -1.0], {"normalize": "abs"})


@pytest.mark.parametrize("name", ["linear", "ties", "tsv", "knots", "core_space", "nuslerp"])
def test_other_shapes_are_refused(name: str) -> None:
    rng = generator(1)
    terms = [Term(matrix(rng, 4, 2), matrix(rng, 2, n), 1.0) for n in (5, 6)]
    with pytest.raises(AdapterError, match="other shapes"):
        run(name, terms)


@SOME
@given(SEEDS, st.sampled_from((0.3, 0.5, 1.0)), st.sampled_from(("sum", "count")))
def test_ties_by_its_steps(seed: int, density: float, elect: str) -> None:
    """Trim, elect, merge, element by element in plain Python."""
    given_changes, weights = changes(3, seed=seed), [1.0, 0.5, -0.7]
    trimmed = [sparsify.trimmed(change, density).flatten().tolist() for change in given_changes]
    expected = []
    for values in zip(*trimmed, strict=True):
        weighted = [w * v for w, v in zip(weights, values, strict=True)]
        votes = weighted if elect == "sum" else [math.copysign(1, v) if v else 0 for v in weighted]
        sign = 1 if sum(votes) >= 0 else -1
        agree = [i for i, v in enumerate(weighted) if v * sign > 0]
        divisor = sum(abs(weights[i]) for i in agree) or 1
        expected.append(sum(weighted[i] for i in agree) / divisor)
    got = run("ties", given_changes, weights, {"density": density, "elect": elect})
    torch.testing.assert_close(got.flatten(), tensor(expected), **CLOSE)


@pytest.mark.parametrize("name", ["ties", "dare_ties", "della", "breadcrumbs_ties", "magnitude"])
def test_lambda_is_a_factor(name: str) -> None:
    given_changes, weights = changes(2), [1.0, 0.5]
    one, half = (run(name, given_changes, weights, {"lambda": f}) for f in (1.0, 0.5))
    assert one.any() and torch.equal(half, one / 2)


@pytest.mark.parametrize("name", ["linear", "ties", "magnitude"])
def test_weights_of_zero_leave_nothing(name: str) -> None:
    """And are not divided by."""
    assert not run(name, changes(2), [0.0, 0.0], {"normalize": "abs"}).any()


def test_a_tie_of_signs_is_plus() -> None:
    """Opposite equal values: the sum is zero, plus wins; a zeroed element never agrees."""
    given_changes = [tensor([[1.0, 0.0]]), tensor([[-1.0, -2.0]])]
    assert run("ties", given_changes, [1.0, 1.0]).tolist() == [[1.0, -2.0]]


def test_breadcrumbs_drops_the_largest_and_the_smallest() -> None:
    change = tensor([[5.0, -4.0, 3.0, -2.0, 1.0]])
    params = {"density": 0.4, "gamma": 0.2}
    assert run("breadcrumbs", [change], [1.0], params).tolist() == [[0, -4.0, 3.0, 0, 0]]


def test_breadcrumbs_that_drops_none_of_the_largest() -> None:
    """⌊γN⌋ = 0 keeps the largest; mergekit's slice [n:-0] is empty and leaves nothing at all."""
    change = tensor([[5.0, -4.0, 3.0, -2.0, 1.0]])
    params = {"density": 0.4, "gamma": 0.01}
    assert run("breadcrumbs", [change], [1.0], params).tolist() == [[5.0, -4.0, 0, 0, 0]]
    params = {"density": 0.8, "gamma": 0.5}
    assert run("breadcrumbs", [change], [1.0], params).tolist() == [[0, -4.0, 3.0, -2.0, 1.0]]


def test_della_in_a_row_of_one() -> None:
    got = sparsify.keep_probabilities(tensor([[3.0], [1.0]]), 0.6, 0.2)
    assert got.tolist() == [[0.6], [0.6]]
    kept = run("della", [tensor([[3.0], [1.0]])], [1.0], {"density": 0.0})
    assert not kept.any()


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_slerp_ends_at_its_ends(t: float) -> None:
    terms = as_terms(changes(2), [1.0, -2.0])
    wanted = terms[0].up if t == 0 else -2 * terms[1].up
    torch.testing.assert_close(run("slerp", terms, params={"t": t}), wanted, **CLOSE)
    base = changes(1, seed=9)[0]
    whole = run("slerp_weights", terms, params={"t": t}, base=base)
    torch.testing.assert_close(whole, wanted, **CLOSE)


@SOME
@given(term_lists(least=2, most=2, weights=POSITIVE))
def test_slerp_of_equal_lengths_keeps_the_length(terms: list[Term]) -> None:
    lengths = [float((t.up @ t.down).norm()) for t in terms]
    same = [Term(t.up / length, t.down, t.weight) for t, length in zip(terms, lengths, strict=True)]
    cosine = float(((same[0].up @ same[0].down) * (same[1].up @ same[1].down)).sum())
    if abs(cosine) < 0.999:
        assert float(run("nuslerp", same).norm()) == pytest.approx(1, abs=1e-9)


def test_slerp_of_colinear_changes_is_linear() -> None:
    one = changes(1)[0]
    near = one + 1e-4 * changes(1, seed=2)[0]
    got = run("slerp", [one, near], [1.0, 1.0], {"t": 0.25})
    assert torch.equal(got, run("linear", [one, near], [0.75, 0.25]))
    opposite = run("nuslerp", [one, -one], [3.0, 1.0])
    torch.testing.assert_close(opposite, 0.5 * one, **CLOSE)


@pytest.mark.parametrize("per", ["row", "column"])
@pytest.mark.parametrize("name", ["nuslerp", "nuslerp_weights"])
def test_nuslerp_of_each_row_or_column(per: str, name: str) -> None:
    """As if each row (column) were a tensor of its own, with a row of zeros scaled linearly."""
    one, other = changes(2)
    one[2], one[:, 1] = 0, 0
    base = torch.zeros_like(one)
    got = run(name, [one, other], [1.0, 2.0], {"per": per}, base=base)
    for place in range(one.shape[0 if per == "row" else 1]):
        pair = [
            c[place : place + 1] if per == "row" else c[:, place : place + 1] for c in (one, other)
        ]
        alone = run("nuslerp", pair, [1.0, 2.0])
        if not pair[0].any():
            alone = pair[1] * (2 / 3)
        part = got[place : place + 1] if per == "row" else got[:, place : place + 1]
        torch.testing.assert_close(part, alone, **CLOSE)


def published_multislerp(given: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """Multi-SLERP as published, with its step along the tangent (ε = 0)."""
    share = tensor(weights) / sum(weights)
    flat = torch.stack([change.flatten() for change in given])
    sizes = flat.norm(dim=1, keepdim=True)
    unit = flat / sizes
    mean = (unit * share[:, None]).sum(0)
    mean = mean / mean.norm()
    tangent = ((unit - (unit @ mean)[:, None] * mean) * share[:, None]).sum(0)
    length = tangent.norm() + 1e-300
    result = mean * length.cos() + tangent * (length.sin() / length)
    return (result * (sizes[:, 0] * share).sum()).reshape(given[0].shape)


@SOME
@given(term_lists(least=2, weights=POSITIVE))
def test_multislerp_is_its_normalised_mean(terms: list[Term]) -> None:
    """The published tangent step is zero, so leaving it out changes nothing."""
    whole = published_multislerp([t.up @ t.down for t in terms], [t.weight for t in terms])
    got = run("multislerp", terms, params={"eps": 0})
    torch.testing.assert_close(got, whole, rtol=1e-6, atol=1e-8)


def test_multislerp_of_opposites() -> None:
    """Two that cancel: linear. More: refused."""
    one, other = changes(2)
    got = run("multislerp", [one, -2 * one], [1.0, 1.0])
    torch.testing.assert_close(got, -0.5 * one, **CLOSE)
    with pytest.raises(AdapterError, match="no direction"):
        run("multislerp", [one, -one, other, -other], [1.0] * 4)


@SOME
@given(term_lists(least=2, weights=POSITIVE))
def test_karcher_is_where_the_ways_cancel(terms: list[Term]) -> None:
    """At the mean, Σ wᵢ log(δᵢ) = 0, and its length is the mean length."""
    flat = torch.stack([(t.up @ t.down).flatten() for t in terms])
    share = tensor([t.weight for t in terms]) / sum(t.weight for t in terms)
    sizes = flat.norm(dim=1)
    unit = flat / sizes[:, None]
    if float((unit @ unit.T).min()) < 0:
        return
    got = run("karcher", terms, params={"max_iter": 300, "tol": 1e-10}).flatten()
    assert float(got.norm()) == pytest.approx(float((share * sizes).sum()), rel=1e-9)
    at = got / got.norm()
    dots = (unit @ at).clamp(-1, 1)
    away = unit - dots[:, None] * at
    theta = torch.atan2(away.norm(dim=1), dots)
    way = away / away.norm(dim=1, keepdim=True).clamp(min=1e-12) * theta[:, None]
    assert float((way * share[:, None]).sum(0).norm()) < 1e-6


def test_karcher_refuses_what_has_no_meaning() -> None:
    with pytest.raises(AdapterError, match="no negative weight"):
        run("karcher", changes(2), [1.0, -0.5])


def test_model_stock_of_agreeing_and_of_independent_changes() -> None:
    one = changes(1)[0]
    torch.testing.assert_close(run("model_stock", [one, one], [1.0, 1.0]), one, **CLOSE)
    apart = [torch.zeros_like(one), torch.zeros_like(one)]
    apart[0][0], apart[1][1] = 1, 1
    assert not run("model_stock", apart, [1.0, 1.0]).any()
    tiny = run("model_stock", [one * 1e-9, one * 1e-9], [1.0, 1.0])
    torch.testing.assert_close(tiny * 1e9, one, **CLOSE)


def test_model_stock_of_changes_that_disagree() -> None:
    """The base is left alone; without clamp, t is negative, and 0 where they cancel."""
    one, other = torch.zeros(2, 2, 2, dtype=torch.float64)
    one[0, 0], other[0, 0], other[0, 1] = 1, -0.6, 0.8
    assert not run("model_stock", [one, other], [1.0, 1.0]).any()
    # t = 2 · (−0.6) / (1 − 0.6)
    got = run("model_stock", [one, other], [1.0, 1.0], {"clamp": False})
    torch.testing.assert_close(got, -3 * (one + other) / 2, **CLOSE)
    assert not run("model_stock", [one, -one], [1.0, 1.0], {"clamp": False}).any()


@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock_of_negated_weights(filter_wise: bool) -> None:
    """A weight of −1 is the negated adapter, in the cosine too."""
    one, other = changes(2)
    params: dict[str, object] = {"filter_wise": filter_wise, "clamp": False}
    got = run("model_stock", [one, other], [1.0, -1.0], params)
    torch.testing.assert_close(got, run("model_stock", [one, -other], [1.0, 1.0], params), **CLOSE)


def test_sce_does_not_depend_on_the_scale() -> None:
    """mergekit weighs equally where Σ mean(δ²) is below 10⁻⁶, as it is of most LoRAs."""
    one, other = changes(2)
    whole = run("sce", [one, 3 * other], [1.0, 1.0], {"select_topk": 0.5})
    small = run("sce", [one * 1e-6, other * 3e-6], [1.0, 1.0], {"select_topk": 0.5})
    torch.testing.assert_close(small * 1e6, whole, **CLOSE)


@SOME
@given(term_lists(least=2, weights=POSITIVE))
def test_knots_and_core_space_of_a_sum_are_the_sum(terms: list[Term]) -> None:
    for name in ("knots", "core_space"):
        got = run(name, terms, params={"inner": "linear"})
        torch.testing.assert_close(got, dense(terms), rtol=1e-9, atol=1e-10)
    got = run("core_space", terms, params={"inner": "linear", "basis": "factors"})
    torch.testing.assert_close(got, dense(terms), rtol=1e-9, atol=1e-10)


@SOME
@given(term_lists(least=2, weights=POSITIVE), st.sampled_from(("ties", "dare_ties")))
def test_knots_by_a_dense_svd(terms: list[Term], inner: str) -> None:
    """[δ₁ … δ_k] = U S [V₁ᵀ …] in full, the inner method on S Vᵢᵀ, U times the result."""
    given_changes = [t.up @ t.down for t in terms]
    u, sigma, vh = torch.linalg.svd(torch.cat(given_changes, 1), full_matrices=False)
    kept = int((sigma > 1e-10).sum())
    parts = list((sigma[:kept, None] * vh[:kept]).split(given_changes[0].shape[1], 1))
    params = {"density": 0.5}
    merged = run(inner, parts, [t.weight for t in terms], params)
    got = run("knots", terms, params={"inner": inner, **params})
    torch.testing.assert_close(got, u[:, :kept] @ merged, rtol=1e-8, atol=1e-9)


def test_knots_drops_small_directions() -> None:
    rng = generator(4)
    u, v = torch.linalg.qr(matrix(rng, 6, 2)).Q, torch.linalg.qr(matrix(rng, 5, 2)).Q
    terms = [Term(u * tensor([1.0, 1e-6]), v.T)]
    got = run("knots", terms, params={"inner": "linear", "drop": 1e-5})
    torch.testing.assert_close(got, torch.outer(u[:, 0], v[:, 0]), **CLOSE)
    whole = run("knots", terms, params={"inner": "linear"})
    torch.testing.assert_close(whole, dense(terms), rtol=1e-12, atol=1e-14)


def test_core_space_with_a_spectral_method_within() -> None:
    rng = generator(4)
    terms = [Term(matrix(rng, 7, 2), matrix(rng, 2, 6)) for _ in range(2)]
    for inner, alone in (("tsv", "tsv"), ("iso_c", "iso_c_lowrank")):
        params = {"keep": 2} if inner == "tsv" else {}
        got = run("core_space", terms, params={"inner": inner, **params})
        torch.testing.assert_close(got, run(alone, terms, params=params), rtol=1e-8, atol=1e-9)


def test_iso_makes_singular_values_equal() -> None:
    rng = generator(4)
    terms = [Term(matrix(rng, 7, 2), matrix(rng, 2, 6)) for _ in range(2)]
    before = torch.linalg.svdvals(dense(terms))
    low = torch.linalg.svdvals(run("iso_c_lowrank", terms))
    torch.testing.assert_close(low[:4], before[:4].mean().expand(4), **CLOSE)
    assert float(low[4:].max()) < 1e-12
    full = torch.linalg.svdvals(run("iso_c", terms))
    torch.testing.assert_close(full, before.mean().expand(6), **CLOSE)


def test_tsv_of_orthogonal_tasks_is_their_sum() -> None:
    """And the same adapter twice counts once: no direction is chosen by chance."""
    one, other = torch.zeros(2, 6, 6, dtype=torch.float64)
    one[0, 0], other[1, 1] = 3, 2
    torch.testing.assert_close(run("tsv", [one, other], [1.0, -1.0]), one - other, **CLOSE)
    torch.testing.assert_close(run("tsv", [one, one], [1.0, 1.0]), one, **CLOSE)


def test_polar_factor() -> None:
    wide = matrix(generator(8), 6, 3)
    got = polar_factor(wide)
    torch.testing.assert_close(got.T @ got, torch.eye(3, dtype=torch.float64), **CLOSE)
    middle = got.T @ wide
    torch.testing.assert_close(middle, middle.T, **CLOSE)
    assert float(torch.linalg.eigvalsh(middle).min()) > 0


def test_ram_keeps_the_unique_and_averages_the_shared() -> None:
    given_changes = [tensor([[1.0, 2.0, 0.0]]), tensor([[0.0, 4.0, 1e-6]])]
    assert run("ram", given_changes, [1.0, 1.0]).tolist() == [[1.0, 3.0, 0.0]]
    # shared / unique is 1 and ∞, both clipped to α = 0.2: unique elements times 1.02
    got = run("ramplus_tl", given_changes, [1.0, 1.0])
    torch.testing.assert_close(got, tensor([[1.02, 3.0, 0.0]]), **CLOSE)


def test_nearswap_moves_by_at_most_t() -> None:
    got = run("nearswap", [tensor([[0.5, -2.0, 0.05]])], [1.0], {"t": 0.1}, base=torch.zeros(1, 3))
    assert got.tolist() == [[0.1, -0.1, 0.05]]


def test_ids_must_be_as_many_as_changes() -> None:
    with pytest.raises(ValueError, match="one id"):
        run("ties", changes(2), [1.0, 1.0], key=key_for(1))
