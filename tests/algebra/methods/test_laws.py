"""What holds for every method, or for those that promise it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptertools.algebra.methods.registry import REGISTRY, declared
from adaptertools.algebra.randomness import Key
from adaptertools.algebra.recompress import recompress_terms
from adaptertools.algebra.terms import Term

from .draws import CLOSE, SEEDS, dense, examples, matrix, refactored, term_lists
from .golden import key_for, run

SOME = examples(25)
POSITIVE = st.sampled_from((1.0, 0.5, 2.0))
# a method with parameters that make it do something
BUSY: dict[str, Mapping[str, object]] = {
    "linear": {"lambda": 0.7},
    "average": {},
    "multislerp": {},
    "karcher": {},
    "model_stock": {"filter_wise": True, "clamp": False},
    "knots": {"inner": "ties", "density": 0.5},
    "core_space": {"inner": "ties", "density": 0.5},
    "tsv": {},
    "iso_c_lowrank": {},
    "magnitude": {"density": 0.5},
    "ties": {"density": 0.5},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "della_linear": {"density": 0.5, "epsilon": 0.2},
    "della": {"density": 0.5, "epsilon": 0.2},
    "breadcrumbs": {"density": 0.5, "gamma": 0.2},
    "breadcrumbs_ties": {"density": 0.5, "gamma": 0.2},
    "sce": {"select_topk": 0.5},
    "ram": {"epsilon": 0.5},
    "ramplus_tl": {"epsilon": 0.5},
    "slerp": {"t": 0.3},
    "nuslerp": {"per": "row"},
    "multislerp_weights": {},
    "karcher_weights": {},
}
SHARES = {"average", "karcher", "multislerp", "karcher_weights", "multislerp_weights"}
ORDERED = {"slerp", "nuslerp", "slerp_weights", "nuslerp_weights"}
# these change a single adapter by design, or their result is not of the changes alone
NO_IDENTITY = {"iso_c", "iso_c_lowrank", "arcee_fusion", "nearswap", "slerp_weights"}
ALONE = [m.name for m in REGISTRY.values() if m.least == 1 and m.name not in NO_IDENTITY]
LOW_RANK = [m.name for m in REGISTRY.values() if m.kind == "low_rank"]
DENSE = [m.name for m in REGISTRY.values() if m.kind == "dense" and m.name != "iso_c"]


def base_for(terms: list[Term]) -> torch.Tensor:
    return matrix(torch.Generator().manual_seed(1), terms[0].up.shape[0], terms[0].down.shape[1])


@pytest.mark.parametrize("name", ALONE)
@SOME
@given(term_lists(most=1))
def test_one_adapter_of_weight_one_is_itself(name: str, terms: list[Term]) -> None:
    one = [replace(terms[0], weight=1.0)]
    got = run(name, one, base=base_for(one))
    torch.testing.assert_close(got, dense(one), **CLOSE)


@pytest.mark.parametrize("name", sorted({*ALONE, "iso_c_lowrank"} - SHARES))
@SOME
@given(term_lists(most=1))
def test_minus_one_negates(name: str, terms: list[Term]) -> None:
    params = dict(BUSY[name])
    one = run(name, terms, [1.0], params)
    torch.testing.assert_close(run(name, terms, [-1.0], params), -one, **CLOSE)


@SOME
@given(term_lists(), SEEDS)
def test_an_adapter_and_its_negation_cancel(terms: list[Term], seed: int) -> None:
    """Also when it is factored otherwise: what is left is rounding and has rank zero."""
    both = [*terms, *(replace(t, weight=-t.weight) for t in refactored(terms, seed))]
    found = recompress_terms(both)
    assert found.rank == 0 and found.energy == 0
    assert recompress_terms(terms).rank > 0


@pytest.mark.parametrize(
    "name", sorted(set(REGISTRY) - ORDERED - {"iso_c", "nearswap", "arcee_fusion"})
)
@SOME
@given(term_lists(least=2, weights=POSITIVE), SEEDS)
def test_the_order_of_adapters_does_not_matter(name: str, terms: list[Term], seed: int) -> None:
    """Dense changes: bit for bit. Low rank: to rounding, as their factors stand in order."""
    order = list(range(len(terms)))
    random.Random(seed).shuffle(order)
    key, method = key_for(len(terms)), REGISTRY[name]
    moved = replace(key, adapters=tuple(key.adapters[i] for i in order))
    base, params = base_for(terms), dict(BUSY[name])
    one = run(name, terms, params=params, key=key, base=base)
    other = run(name, [terms[i] for i in order], params=params, key=moved, base=base)
    if method.kind == "dense":
        assert torch.equal(one, other)
    else:
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("name", LOW_RANK)
@SOME
@given(term_lists(least=2, weights=POSITIVE), SEEDS)
def test_factors_do_not_matter(name: str, terms: list[Term], seed: int) -> None:
    """(BG, G⁻¹A) is the same adapter as (B, A)."""
    used = terms[: REGISTRY[name].most or len(terms)]
    params = dict(BUSY[name])
    one, other = (run(name, given, params=params) for given in (used, refactored(used, seed)))
    torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)


def test_factors_do_matter_to_methods_on_factors() -> None:
    """The control: PEFT's linear and TIES, and the published bases of Core Space."""
    rng = torch.Generator().manual_seed(3)
    terms = [Term(matrix(rng, 5, 2), matrix(rng, 2, 6)) for _ in range(2)]
    for name, params, compat in (
        ("linear", {}, "peft"),
        ("ties", {"density": 0.5}, "peft"),
        ("core_space", {"basis": "factors", "density": 0.5}, ""),
    ):
        one, other = (
            run(name, given, params=dict(params), compat=compat)
            for given in (terms, refactored(terms, 4))
        )
        assert (one - other).norm() > 0.05 * one.norm(), name


@pytest.mark.parametrize("name", LOW_RANK)
@SOME
@given(term_lists(least=2, most=2, weights=POSITIVE))
def test_low_rank_is_what_the_dense_changes_give(name: str, terms: list[Term]) -> None:
    """A change as (ΔW, I) is the same as by its factors; the rank is at most the sum of ranks."""
    wide = [
        Term(t.up @ t.down, torch.eye(t.down.shape[1], dtype=torch.float64), t.weight)
        for t in terms
    ]
    one, other = (run(name, given, params=dict(BUSY[name])) for given in (terms, wide))
    torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)
    assert int(torch.linalg.matrix_rank(one, rtol=1e-9)) <= sum(t.up.shape[1] for t in terms)


@pytest.mark.parametrize("name", sorted(set(LOW_RANK) - ORDERED))
@SOME
@given(term_lists(least=2, weights=POSITIVE))
def test_an_absent_adapter_is_zero(name: str, terms: list[Term]) -> None:
    """Rank zero is the same as factors of zeros."""
    first = terms[0]
    absent = Term(first.up[:, :0], first.down[:0])
    zeros = Term(torch.zeros_like(first.up), torch.zeros_like(first.down))
    params = dict(BUSY[name])
    one, other = (run(name, [*terms, more], params=params) for more in (absent, zeros))
    torch.testing.assert_close(one, other, **CLOSE)
    assert one.isfinite().all()


@pytest.mark.parametrize("name", sorted(set(REGISTRY) - {"arcee_fusion", "nearswap"}))
def test_nothing_composes_to_nothing(name: str) -> None:
    """All changes zero: the result is zero and finite."""
    terms = [Term(torch.zeros(4, 2).double(), torch.zeros(2, 5).double()) for _ in range(2)]
    got = run(name, terms, params=dict(BUSY.get(name, {})), base=base_for(terms))
    torch.testing.assert_close(got, torch.zeros_like(got), **CLOSE)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_no_step_is_in_single_precision(name: str) -> None:
    """What torch would make fp32 by default (a bool times a float, a ratio of counts) is fp64."""
    rng = torch.Generator().manual_seed(5)
    count = REGISTRY[name].most or 3
    terms = [
        Term(matrix(rng, 6, 2), matrix(rng, 2, 7), weight) for weight in (0.7, 1.1, 0.3)[:count]
    ]
    params, base = dict(BUSY.get(name, {})), base_for(terms)
    params |= {"normalize": "abs"} if "normalize" in declared(REGISTRY[name], params) else {}
    one = run(name, terms, params=params, base=base)
    torch.set_default_dtype(torch.float64)
    try:
        other = run(name, terms, params=params, base=base)
    finally:
        torch.set_default_dtype(torch.float32)
    assert one.dtype == torch.float64 and torch.equal(one, other)


@pytest.mark.parametrize("name", DENSE)
@SOME
@given(term_lists(most=3, weights=POSITIVE), st.integers(1, 5))
def test_row_blocks_give_the_same_bits(name: str, terms: list[Term], height: int) -> None:
    """Of methods that say so, random ones too; the others say that they need the whole."""
    method, params = REGISTRY[name], dict(BUSY[name])
    whole = run(name, terms, params=params)
    if not method.by_rows(params):
        return
    changes = [t.up @ t.down for t in terms]
    weights = [t.weight for t in terms]
    key = key_for(len(terms))
    parts = []
    for row in range(0, whole.shape[0], height):
        at: Key = replace(key, start=row * whole.shape[1])
        block = [change[row : row + height] for change in changes]
        parts.append(run(name, block, weights, params, key=at))
    assert torch.equal(torch.cat(parts), whole)


def test_which_methods_take_row_blocks() -> None:
    """A norm over the whole tensor cannot be had from a block."""
    named = {name for name in REGISTRY if REGISTRY[name].by_rows({"rescale": "prob"})}
    assert named == {*("dare_linear", "dare_ties", "della", "della_linear", "ram", "nearswap")}
    assert not REGISTRY["dare_linear"].by_rows({"rescale": "l1"})
