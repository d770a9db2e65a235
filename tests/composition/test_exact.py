"""The sum without a method: exact on ΔW, whatever the ranks, alphas and dtypes of the parts."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from convert.catalogue import CASES
from convert.sources import Source

from . import making
from .making import (
    SAMPLE,
    UP,
    Q,
    V,
    assert_sum,
    composed,
    config_of,
    dtypes_of,
    lora,
    meanings,
    numbers,
    tensors_of,
    weights_of,
)

FIXTURES = Path(__file__).parents[2] / "fixtures"
EXACT = 1e-12


def biased(source: Source) -> None:
    source.base["attention_bias"] = True
    for key in [k for k in source.tensors if k.endswith("lora_B.weight")]:
        key = key.removeprefix("base_model.model.").removesuffix(".weight")
        out = source.tensors[f"base_model.model.{key}.weight"][1][0]
        source.put(f"{key}.bias", numbers(f"{source.config['r']}{key}", (out,)))


def embedding(seed: str, rank: int):
    def change(source: Source) -> None:
        source.config["target_modules"] = [*source.config["target_modules"], "embed_tokens"]
        source.put("model.embed_tokens.lora_embedding_A", numbers(seed + "E", (rank, 80)))
        source.put("model.embed_tokens.lora_embedding_B", numbers(seed + "F", (96, rank)))

    return change


@pytest.mark.parametrize("weights", [(1, 1), (0.3, 0.7), (1, -1.75), (-0.1, 3), (0, 2), (2, 0.25)])
@pytest.mark.parametrize("ranks", [(3, 3), (1, 5)])
def test_sum_of_two(tmp_path: Path, weights: tuple[float, float], ranks: tuple[int, int]) -> None:
    a = lora(tmp_path, "a", rank=ranks[0], alpha=7)
    b = lora(tmp_path, "b", rank=ranks[1], alpha=2.5)
    parts = list(zip((a, b), map(float, weights), strict=True))
    assert_sum(composed(tmp_path, *parts), parts)


def test_rslora_patterns_and_dtypes_in_one_sum(tmp_path: Path) -> None:
    a = lora(tmp_path, "a", dtypes=["BF16"], use_rslora=True, rank=5, alpha=3)
    b = lora(tmp_path, "b", dtypes=["F16"], alpha_pattern={"v_proj": 9})
    c = lora(tmp_path, "c", [*Q, *UP], rank=1, alpha=2)
    parts = [(a, 0.7), (b, -1.3), (c, 0.01)]
    out = composed(tmp_path, *parts)
    assert_sum(out, parts)
    assert config_of(out)["use_rslora"] is False


@pytest.mark.parametrize("dtypes", [("BF16", "F16"), ("F16", "F32"), ("BF16", "F32")])
def test_two_dtypes_meet_where_both_are_held(tmp_path: Path, dtypes: tuple[str, str]) -> None:
    """Unequal powers of two: no rounding at all, in the wider dtype."""
    a = lora(tmp_path, "a", dtypes=dtypes[:1])
    b = lora(tmp_path, "b", dtypes=dtypes[1:])
    out = composed(tmp_path, (a, 1.0), (b, 0.5))
    assert_sum(out, [(a, 1.0), (b, 0.5)], EXACT)
    assert dtypes_of(out) == {"F32"}


@pytest.mark.parametrize(("dtype", "weight"), [("BF16", -0.25), ("F16", -1.0)])
def test_sixteen_bits_stay_where_nothing_is_rounded(
    tmp_path: Path, dtype: str, weight: float
) -> None:
    a, b = lora(tmp_path, "a", dtypes=[dtype]), lora(tmp_path, "b", dtypes=[dtype])
    parts = [(a, 1.0), (b, weight)]
    out = composed(tmp_path, *parts)
    assert dtypes_of(out) == {dtype}
    assert_sum(out, parts, EXACT)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_sixteen_bits_widen_where_a_weight_would_round(tmp_path: Path, dtype: str) -> None:
    a, b = lora(tmp_path, "a", dtypes=[dtype]), lora(tmp_path, "b", dtypes=[dtype])
    parts = [(a, 1.0), (b, 0.3)]
    out = composed(tmp_path, *parts)
    assert dtypes_of(out) == {"F32"}
    assert_sum(out, parts)


def test_targets_of_one_adapter_alone(tmp_path: Path) -> None:
    a, b = lora(tmp_path, "a", Q, rank=2), lora(tmp_path, "b", V, rank=5)
    parts = [(a, 0.5), (b, -3.0)]
    out = composed(tmp_path, *parts)
    assert_sum(out, parts)
    assert {making.rank_in(out, m) for m in Q} == {2}
    assert {making.rank_in(out, m) for m in V} == {5}


def test_equal_coefficients_leave_all_bits(tmp_path: Path) -> None:
    """0.375 · 6/3 and 0.25 · 9/3 differ as weights but not as coefficients."""
    a = lora(tmp_path, "a", rank=3, alpha=6, dtypes=["BF16"])
    b = lora(tmp_path, "b", rank=3, alpha=9, dtypes=["BF16"])
    out = composed(tmp_path, (a, 0.375), (b, 0.25))
    one, two, both = tensors_of(a), tensors_of(b), tensors_of(out)
    for key, value in both.items():
        axis = 0 if "lora_A" in key else 1
        np.testing.assert_array_equal(value, np.concatenate([one[key], two[key]], axis))
    assert dtypes_of(out) == {"BF16"}
    assert making.scale_in(out, f"{SAMPLE[0]}.weight") == 0.75


def test_ranks_add_up(tmp_path: Path) -> None:
    parts = [lora(tmp_path, seed, rank=rank) for seed, rank in (("a", 1), ("b", 4), ("c", 2))]
    out = composed(tmp_path, *parts)
    assert {making.rank_in(out, m) for m in SAMPLE} == {7}


def test_embedding(tmp_path: Path) -> None:
    a = lora(tmp_path, "a", V, change=embedding("a", 3))
    b = lora(tmp_path, "b", V, rank=2, alpha=5, change=embedding("b", 2))
    out = meanings(composed(tmp_path, (a, 0.7), (b, -0.4)))["model.embed_tokens.weight"]
    x, y = (meanings(f)["model.embed_tokens.weight"] for f in (a, b))
    np.testing.assert_allclose(out.value, 0.7 * x.value - 0.4 * y.value, rtol=0, atol=1e-6)
    assert out.value.any()


def test_conv(tmp_path: Path) -> None:
    a = CASES["conv"]().write(tmp_path / "a")
    other = CASES["conv"]()
    other.put("features.conv1.lora_A.weight", numbers("other", (3, 4, 3, 3)))
    b = other.write(tmp_path / "b")
    out = composed(tmp_path, (a, 0.7), (b, -0.4))
    x, y, z = (making.deltas(f)["features.conv1.weight"] for f in (a, b, out))
    assert z.shape == (6, 4, 3, 3)
    np.testing.assert_allclose(z, 0.7 * x - 0.4 * y, rtol=0, atol=1e-6)


def test_bias_beside_b(tmp_path: Path) -> None:
    a = lora(tmp_path, "a", Q, change=biased, lora_bias=True)
    b = lora(tmp_path, "b", Q, rank=2, alpha=5, change=biased, lora_bias=True)
    parts = [(a, 0.5), (b, -1.7)]
    out = composed(tmp_path, *parts)
    assert_sum(out, parts)
    assert config_of(out)["lora_bias"] is True


def test_bias_of_one_adapter_only(tmp_path: Path) -> None:
    a = lora(tmp_path, "a", Q, change=biased, lora_bias=True)
    parts = [(a, 0.5), (lora(tmp_path, "b", Q), 3.0)]
    assert_sum(composed(tmp_path, *parts), parts)


def test_adalora_with_lora(tmp_path: Path) -> None:
    a = CASES["adalora"]().write(tmp_path / "a")
    b = lora(tmp_path, "b", Q, rank=2)
    got = making.deltas(composed(tmp_path, (a, 0.5), (b, -1.5)))
    x, y = making.deltas(a), making.deltas(b)
    wanted = {k: 0.5 * x[k] - 1.5 * y[k] for k in x}
    assert making.apart(got, wanted) < 1e-6


@pytest.mark.parametrize("name", ["tiny-llama-lora", "tiny-llama-ia3", "tiny-llama-dora"])
def test_weight_one_of_one_adapter_is_the_file(tmp_path: Path, name: str) -> None:
    out = composed(tmp_path, FIXTURES / name)
    assert weights_of(out) == weights_of(FIXTURES / name)
    known, new = config_of(FIXTURES / name), config_of(out)
    for key in ("r", "lora_alpha", "use_dora", "feedforward_modules", "base_model_name_or_path"):
        assert new.get(key) == known.get(key), key


@pytest.mark.parametrize("name", sorted(CASES))
def test_one_adapter_means_the_same(tmp_path: Path, name: str) -> None:
    source = CASES[name]().write(tmp_path)
    wanted, got = meanings(source), meanings(composed(tmp_path, source))
    assert wanted.keys() == got.keys()
    for key, one in wanted.items():
        np.testing.assert_allclose(got[key].value, one.value, rtol=1e-6, atol=1e-6)
        assert got[key].beside.keys() == one.beside.keys()


@pytest.mark.parametrize("weight", [0.3, -1.0, 2.5])
def test_weight_of_one_adapter_is_its_alpha(tmp_path: Path, weight: float) -> None:
    """Of one adapter no factor is rounded, whatever the weight."""
    a = lora(tmp_path, dtypes=["BF16"])
    out = composed(tmp_path, (a, weight))
    assert_sum(out, [(a, weight)], EXACT)
    assert dtypes_of(out) == {"BF16"}


@pytest.mark.parametrize("alpha", [-6, 0, 4.5])
def test_strange_alphas(tmp_path: Path, alpha: float) -> None:
    a, b = lora(tmp_path, "a", alpha=alpha), lora(tmp_path, "b")
    assert_sum(composed(tmp_path, a, name="one"), [(a, 1.0)], EXACT)
    assert_sum(composed(tmp_path, a, (b, 0.4)), [(a, 1.0), (b, 0.4)])


def test_order_does_not_matter(tmp_path: Path) -> None:
    parts = [
        (lora(tmp_path, "a", [*Q, *V], alpha=7), 0.3),
        (lora(tmp_path, "b", Q, rank=2), -1.0),
        (lora(tmp_path, "c", V, dtypes=["BF16"]), 2.0),
    ]
    for number, order in enumerate(itertools.permutations(parts)):
        assert_sum(composed(tmp_path, *order, name=f"out{number}"), parts)


def test_minus_itself_is_nothing(tmp_path: Path) -> None:
    a = lora(tmp_path, alpha=3.7)
    out = composed(tmp_path, (a, 0.7), (a, -0.7))
    assert all(not delta.any() for delta in making.deltas(out).values())


def test_an_adapter_twice_is_twice_the_adapter(tmp_path: Path) -> None:
    a = lora(tmp_path)
    assert_sum(composed(tmp_path, a, a), [(a, 2.0)], EXACT)


def test_experts(tmp_path: Path) -> None:
    a = CASES["experts"]().write(tmp_path / "a")
    out = composed(tmp_path, (a, 0.3), (a, 0.45))
    wanted = {name: 0.75 * value for name, value in making.deltas(a).items()}
    assert making.apart(making.deltas(out), wanted) < 1e-6


def test_transposed_weights_keep_their_mark(tmp_path: Path) -> None:
    a = CASES["gpt2"]().write(tmp_path / "a")
    out = composed(tmp_path, (a, 0.3), (a, 0.45))
    assert config_of(out)["fan_in_fan_out"] is True
    wanted = {name: 0.75 * value for name, value in making.deltas(a).items()}
    assert making.apart(making.deltas(out), wanted) < 1e-6
