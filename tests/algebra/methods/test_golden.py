"""Every worked case that is about methods, spectra or randomness; the others are named."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch

from adaptertools.algebra import gram, recompress
from adaptertools.algebra.methods import sparsify
from adaptertools.algebra.randomness import Key

from . import golden
from .golden import CASES, SHARED, tensor

MERGEKIT_WHOLE = ("slerp", "karcher", "nuslerp_nobase", "arcee_fusion", "nearswap")
# what is not of this room, by the room that it is of
ELSEWHERE = {
    "IA3, DoRA and whole layers": (
        *("np_ia3_product", "np_ia3_power", "np_ia3_linear", "np_lora_then_ia3_out"),
        *("np_ia3_then_lora", "np_lora_then_ia3_in", "np_dora_normal_form", "peft_ia3_weighted"),
        *("peft_ia3_two_merged", "peft_dora_merge"),
    ),
    "diff and unmerge": (
        *("np_principal_angles", "np_spectrum_stats", "np_sign_conflict"),
        "np_bf16_swallow_unmerge",
    ),
    "layouts": ("np_conv", "np_embedding"),
    "a peer's trap, not a method": ("np_kohya_merge_lora_trap",),
}
TESTED: set[str] = set()


def cases(*names: str) -> pytest.MarkDecorator:
    """Parametrize over cases, and remember that they are tested."""
    assert CASES.keys() >= set(names), set(names) - CASES.keys()
    TESTED.update(names)
    return pytest.mark.parametrize("case", [CASES[name] for name in names], ids=names)


@cases("np_concat_two", "np_concat_mixed_rank_negative", "np_negation")
def test_the_sum_is_exact(case: dict[str, Any]) -> None:
    got = golden.run("linear", golden.terms(case))
    assert torch.equal(got, tensor(case["expected"]["delta"]))


@cases("np_rslora_scale", "peft_rslora_identity")
def test_one_adapter_stays_what_it_is(case: dict[str, Any]) -> None:
    got = golden.run("linear", [golden.term("x1", rslora=True)])
    golden.check(case, got, "delta")


@cases("np_block_weights")
def test_weights_by_layer(case: dict[str, Any]) -> None:
    for layer, (_, weights) in zip(
        ("layers.0.q", "layers.1.q"), case["params"]["rules"], strict=True
    ):
        got = golden.run("cat", [golden.term("x1"), golden.term("x2")], weights)
        golden.check(case, got, layer)


@cases("np_recompress_r1", "np_recompress_r2", "np_recompress_r3")
def test_recompression(case: dict[str, Any]) -> None:
    whole = recompress.recompress_terms(golden.terms(case))
    golden.check(case, whole.sigma, "singular_values")
    cut = recompress.truncated(whole, case["params"]["rank"])
    up, down = recompress.split(cut, "balanced")
    golden.check(case, up @ down, "delta")
    golden.check(case, up, "B")
    golden.check(case, down, "A")
    golden.check(case, cut.error, "error_fro")
    rest = whole.sigma[cut.rank :]
    golden.check(case, rest.max() if rest.numel() else 0.0, "error_spectral")


@cases("np_rank_rules")
def test_rank_rules(case: dict[str, Any]) -> None:
    sigma = tensor(case["inputs"]["S"])
    for rule, kept in case["expected"]["ours"].items():
        name, value = rule.split("_")
        assert recompress.choose_rank(sigma, recompress.Rule(name, float(value))) == kept, rule


@cases("peft_energy_cutoff")
def test_the_energy_rule_is_pefts(case: dict[str, Any]) -> None:
    sigma = tensor(case["inputs"]["S"])
    for share, kept in case["expected"].items():
        assert recompress.choose_rank(sigma, recompress.Rule("energy", float(share))) == kept, share


@cases("np_gram_cosine")
def test_gram(case: dict[str, Any]) -> None:
    products = gram.gram([t.factors for t in golden.terms(case)])
    golden.check(case, products, "gram")
    golden.check(case, gram.norms(products), "norms")
    golden.check(case, gram.cosine(products), "cosine")


@cases("np_ties_1.0_norm", "np_ties_0.5_norm", "np_ties_0.5_sum")
def test_ties(case: dict[str, Any]) -> None:
    given = case["params"]
    params = {"density": given["density"], "normalize": "sum" if given["normalize"] else "none"}
    golden.check(case, golden.run("ties", golden.deltas(case), case["weights"], params), "delta")


@cases("np_dare_mask_prob", "mergekit_l1_rescale_mask")
def test_rescaling(case: dict[str, Any]) -> None:
    delta = tensor(SHARED[case["inputs"]["delta"]])
    mask = tensor(case["inputs"]["mask"]).bool()
    density = case["params"].get("density", 0.5)
    golden.check(case, sparsify.rescaled(delta, mask, case["params"]["rescale"], density), "delta")


@cases("np_della_probs")
def test_della_probabilities(case: dict[str, Any]) -> None:
    delta, params = tensor(SHARED[case["inputs"]["delta"]]), case["params"]
    got = sparsify.keep_probabilities(delta, params["density"], params["epsilon"])
    golden.check(case, got, "keep_prob")


@cases("np_knots_sum")
def test_knots_of_a_sum_is_the_sum(case: dict[str, Any]) -> None:
    given = golden.terms(case)
    golden.check(case, golden.run("knots", given, params={"inner": "linear"}), "delta")
    wide = torch.cat([t.up @ t.down for t in given], 1)
    golden.check(case, torch.linalg.svdvals(wide), "singular_values")


@cases("np_iso_c")
def test_iso_c(case: dict[str, Any]) -> None:
    changes = golden.deltas(case)
    golden.check(case, golden.run("iso_c", changes, [1.0] * 3), "delta")
    golden.check(case, golden.run("iso_c_lowrank", changes, [1.0] * 3), "delta")


@cases("np_tsv_m")
def test_tsv(case: dict[str, Any]) -> None:
    golden.check(case, golden.run("tsv", golden.deltas(case), [1.0] * 3), "delta")
    keep = {"keep": case["params"]["keep_per_task"]}
    golden.check(case, golden.run("tsv", golden.deltas(case), [1.0] * 3, keep), "delta")


@cases("np_extract_r2")
def test_extraction(case: dict[str, Any]) -> None:
    from adaptertools.algebra.range_finder import dense_to_low_rank

    change = tensor(case["inputs"]["tuned"]) - tensor(SHARED["W"])
    rule = recompress.Rule("rank", case["params"]["rank"])
    found = dense_to_low_rank(change, rule, golden.key_for(0), full=True)
    golden.check(case, torch.matmul(*recompress.split(found)), "delta")
    golden.check(case, found.relative_error, "residual_rel")
    golden.check(case, recompress.dense_spectrum(change).sigma, "singular_values")


@cases(*golden.ids(["peft_linear", "peft_cat", "peft_svd", "peft_ties", "peft_magnitude"]))
def test_peft(case: dict[str, Any]) -> None:
    known = ("density", "majority_sign_method", "svd_rank")
    dense = case["method"].endswith("_svd")
    params = {name: case["params"][name] for name in known if name in case["params"]}
    if dense:
        del params["svd_rank"]
    golden.check(
        case,
        golden.run(case["method"], golden.terms(case), params=params, compat="peft"),
        "delta",
    )
    if "A" in case["expected"]:
        from adaptertools.algebra.methods.registry import check_params, get_method

        method = get_method(case["method"], "peft")
        given = golden.terms(case)
        up, down = method.run(given, check_params(method, params), golden.key_for(len(given)))
        golden.check(case, up, "B")
        golden.check(case, down, "A")


def mergekit_params(case: dict[str, Any]) -> dict[str, object]:
    """Return our parameters for mergekit's, whose divisor is signed."""
    params = {name: value for name, value in case["params"].items() if name != "weight"}
    if case["method"] == "model_stock":
        params["clamp"] = False
    if "normalize" in params:
        params["normalize"] = "sum" if params["normalize"] else "none"
    flatten, rows = params.pop("nuslerp_flatten", True), params.pop("nuslerp_row_wise", False)
    if not flatten:
        params["per"] = "column" if rows else "row"
    return params


@cases(*(name for name in golden.ids(["mergekit_"]) if "mask" not in name))
def test_mergekit(case: dict[str, Any]) -> None:
    name, changes, base = case["method"], golden.deltas(case), tensor(SHARED["W"])
    weights, params = case["params"].get("weight", [1.0] * len(changes)), mergekit_params(case)
    if name == "linear":
        name, params, weights = "average", {"base_weight": weights[0]}, weights[1:]
    if case["id"].removeprefix("mergekit_") in MERGEKIT_WHOLE and name in (
        *("slerp", "karcher", "nuslerp"),
    ):
        name += "_weights"
    # mergekit takes the ratio of two integers in fp32
    loose = {"rtol": 1e-7, "atol": 1e-8} if name == "ramplus_tl" else {}
    got = base + golden.run(name, changes, weights, params, base=base)
    golden.check(case, got, "merged", **loose)


@cases("np_philox_uniforms")
def test_uniforms(case: dict[str, Any]) -> None:
    parts = case["inputs"]["hash_parts_nul_joined"]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    assert digest == case["expected"]["sha256"]
    key = Key(int(parts[1]), parts[3], (parts[2],))
    got = key.uniforms(0, 16)
    assert got.tolist() == case["expected"]["u"]
    assert (got < 0.5).astype(int).tolist() == case["expected"]["keep_rho_0_5"]
    kept = sparsify.dropped(torch.ones(4, 4).double(), 0.5, "none", key, 0)
    assert kept.flatten().tolist() == case["expected"]["keep_rho_0_5"]


def test_every_case_has_its_place() -> None:
    """A case that is added to the file must be tested, or be said to be another room's."""
    others = {name for names in ELSEWHERE.values() for name in names}
    assert not others & TESTED
    assert others | TESTED == CASES.keys()
    assert len(TESTED) == 57
