"""Resize: the rank each rule keeps, what it loses, the bytes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from algebra.world import folder
from builders import decode, encode, read_safetensors, tiny_ia3, tiny_lora, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptertools.composition.resizing import Resizing, resize
from adaptertools.errors import AdapterError

from .deltas import FILE, config_of, deltas, relative, write_lora

CONFIG = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 112,
    "vocab_size": 96,
}
SIGMA = np.array([8.0, 4.0, 2.0, 1.0, 0.5, 0.25])
MODULE = "model.layers.0.self_attn.q_proj"
# a rule, its value, and how many of SIGMA it keeps: worked out by hand
RULES = {
    "rank": (3, 3),
    "energy": (0.9, 2),  # Σσ² = 85.3125: 64 is 75 %, 80 is 93.8 %
    "fro": (0.95, 2),  # 0.95² = 0.9025
    "sum": (0.9, 4),  # Σσ = 15.75: 12 is 76 %, 14 is 88.9 %, 15 is 95.2 %
    "ratio": (5.0, 3),  # σ > 1.6
    "sv_min": (0.75, 4),
    "max_error": (0.3, 2),  # ‖ΔW‖ = 9.236: the tail after two is 2.305, after one 4.617
    "sv_fro": (0.95, 2),
    "sv_cumulative": (0.9, 4),
    "sv_ratio": (5.0, 3),
}


def known(place: Path, dtype: str = "F32", alpha: float = 12.0) -> Path:
    """Write a LoRA of one module whose singular values are SIGMA; its scale is alpha / 6."""
    rng = np.random.default_rng(5)
    u = np.linalg.qr(rng.standard_normal((48, 6)))[0]
    v = np.linalg.qr(rng.standard_normal((40, 6)))[0]
    mix = rng.standard_normal((6, 6))
    up, down = u * (SIGMA * 6 / alpha) @ mix, np.linalg.inv(mix) @ v.T
    return write_lora(place, {MODULE: (up, down)}, alpha, dtype)


def truncated(delta: np.ndarray, rank: int) -> np.ndarray:
    """Return the best approximation of a rank."""
    u, sigma, vh = np.linalg.svd(delta, full_matrices=False)
    return (u[:, :rank] * sigma[:rank]) @ vh[:rank]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_keeps_what_it_says(tmp_path: Path, rule: str) -> None:
    """The rank by hand, ΔW the best of that rank, the discarded energy that of the rest."""
    value, kept = RULES[rule]
    source = known(tmp_path / "lora")
    made = resize(source, tmp_path / "out", **{rule: value})
    (target,) = made.targets
    assert (target.target, target.before, target.after) == (f"{MODULE}.weight", 6, kept)
    lost = float((SIGMA[kept:] ** 2).sum() / (SIGMA**2).sum())
    assert target.discarded == pytest.approx(lost, rel=1e-4)
    assert made.discarded == pytest.approx(lost, rel=1e-4)
    assert target.energy == pytest.approx(float((SIGMA**2).sum()), rel=1e-5)
    best = truncated(deltas(source)[MODULE], kept)
    assert relative(deltas(tmp_path / "out")[MODULE], best) < 1e-6


def test_a_rank_beside_a_rule_bounds_it(tmp_path: Path) -> None:
    """The smaller of the two wins, either way."""
    source = known(tmp_path / "lora")
    assert resize(source, tmp_path / "a", sum=0.9, rank=2).targets[0].after == 2
    assert resize(source, tmp_path / "b", sum=0.9, rank=5).targets[0].after == 4


def test_ranks_differ_by_target_and_are_told(tmp_path: Path) -> None:
    """A rule chooses each rank on its own; the total weighs targets by their energy."""
    rng = np.random.default_rng(1)
    sharp = rng.standard_normal((32, 4)) * [100, 1e-3, 1e-3, 1e-3]
    flat = np.linalg.qr(rng.standard_normal((32, 4)))[0]
    down = np.linalg.qr(rng.standard_normal((24, 4)))[0].T
    modules = {"model.layers.0.mlp.a": (sharp, down), "model.layers.1.mlp.b": (flat, down)}
    source = write_lora(tmp_path / "lora", modules, 4.0)
    made = resize(source, tmp_path / "out", energy=0.9)
    assert [t.after for t in made.targets] == [1, 4]
    before, after = deltas(source), deltas(tmp_path / "out")
    assert {m: np.linalg.matrix_rank(d, tol=1e-5) for m, d in after.items()} == {
        "model.layers.0.mlp.a": 1,
        "model.layers.1.mlp.b": 4,
    }
    lost = sum(np.linalg.norm(before[m] - after[m]) ** 2 for m in before)
    whole = sum(np.linalg.norm(before[m]) ** 2 for m in before)
    assert made.discarded == pytest.approx(lost / whole, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 8),
    st.integers(1, 10),
    st.sampled_from(["balanced", "up", "down"]),
    st.sampled_from(["one", "keep"]),
    st.floats(-9, 9).filter(lambda a: abs(a) > 0.1),
    st.integers(0, 2**32 - 1),
)
def test_any_resize_is_the_best_of_its_rank(
    before: int, rank: int, split: str, alpha: str, strength: float, seed: int
) -> None:
    """Whatever the split, and whether the scale (a negative one too) is kept or made one."""
    rng = np.random.default_rng(seed)
    factors = {MODULE: (rng.standard_normal((24, before)), rng.standard_normal((before, 16)))}
    with folder() as place:
        source = write_lora(place / "lora", factors, strength)
        resize(source, place / "out", rank=rank, split=split, alpha=alpha)
        kept = min(before, rank)
        wanted = deltas(source)[MODULE]
        found = deltas(place / "out")[MODULE]
        assert np.linalg.norm(found - truncated(wanted, kept)) < 2e-6 * np.linalg.norm(wanted)
        config = config_of(place / "out")
        scale = config["lora_alpha"] / config["r"]
        assert scale == pytest.approx(strength / before if alpha == "keep" else 1.0, rel=1e-12)


@pytest.mark.parametrize("split", ["balanced", "up", "down"])
@pytest.mark.parametrize("alpha", ["one", "keep"])
def test_the_split_says_where_the_values_go(tmp_path: Path, split: str, alpha: str) -> None:
    """Balanced: equal norms; up: `down` is orthonormal (over its share of the scale); down: up."""
    source = known(tmp_path / "lora")
    resize(source, tmp_path / "out", rank=4, split=split, alpha=alpha)
    tensors = read_safetensors(tmp_path / "out" / FILE)
    (down, up) = (decode(tensors[k]).astype(np.float64) for k in sorted(tensors))
    norms = np.linalg.norm(up, axis=0), np.linalg.norm(down, axis=1)
    if split == "balanced":
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    else:
        plain = norms[1] if split == "up" else norms[0]
        assert plain == pytest.approx(np.ones(4), rel=1e-5)


@pytest.mark.parametrize(("dtype", "bound"), [("F32", 1e-6), ("F16", 1e-3), ("BF16", 8e-3)])
def test_the_dtype_stays_and_the_bytes_shrink(tmp_path: Path, dtype: str, bound: float) -> None:
    """A resize halves the file: it is written in the dtype that it had."""
    source = known(tmp_path / "lora", dtype)
    made = resize(source, tmp_path / "out", rank=3)
    tensors = read_safetensors(tmp_path / "out" / FILE)
    assert {t[0] for t in tensors.values()} == {dtype}
    assert made.plan.writing.bytes * 2 == made.bytes_before
    assert made.bytes_before == sum(len(t[2]) for t in read_safetensors(source / FILE).values())
    best = truncated(deltas(source)[MODULE], 3)
    assert relative(deltas(tmp_path / "out")[MODULE], best) < bound


def test_another_dtype_is_rounded_to_once(tmp_path: Path) -> None:
    """To bf16 straight from fp64, not by way of F32."""
    source = known(tmp_path / "lora")
    resize(source, tmp_path / "wide", rank=3, dtype="f64")
    resize(source, tmp_path / "narrow", rank=3, dtype="bf16")
    wide, narrow = (read_safetensors(tmp_path / n / FILE) for n in ("wide", "narrow"))
    for key, tensor in wide.items():
        values, found = decode(tensor), decode(narrow[key]).astype(np.float64)
        assert np.abs(found - values).max() <= 2.0**-8 * np.abs(values).max()
        once = decode(encode(values, "BF16"))
        assert np.mean(found == once) > 0.99


def test_the_same_bytes_again(tmp_path: Path) -> None:
    """Threads and repetition change nothing."""
    source = tiny_lora(tmp_path / "lora", CONFIG, rank=4)
    for name, jobs in (("a", 1), ("b", 3)):
        resize(source, tmp_path / name, energy=0.8, jobs=jobs)
    one, other = ((tmp_path / n / FILE).read_bytes() for n in ("a", "b"))
    assert one == other


def test_full_values_stay_and_biases_keep_their_strength(tmp_path: Path) -> None:
    """A trained norm comes through bit for bit; a LoRA bias means the same under both scales."""
    rng = np.random.default_rng(2)
    source = known(tmp_path / "lora")
    tensors = read_safetensors(source / FILE)
    norm, bias = rng.standard_normal(40), rng.standard_normal(48)
    tensors["base_model.model.model.norm.weight"] = encode(norm, "BF16")
    tensors[f"base_model.model.{MODULE}.lora_B.bias"] = encode(bias, "F32")
    write_safetensors(source / FILE, tensors, {"format": "pt"})
    config = config_of(source) | {"lora_bias": True, "modules_to_save": ["norm"]}
    write_lora_config(source, config)
    for alpha in ("one", "keep"):
        out = tmp_path / alpha
        resize(source, out, rank=2, alpha=alpha)
        back = read_safetensors(out / FILE)
        (key,) = (k for k in back if k.endswith("norm.weight"))
        assert back[key] == tensors["base_model.model.model.norm.weight"]
        told = config_of(out)
        found = decode(back[f"base_model.model.{MODULE}.lora_B.bias"])
        scale = told["lora_alpha"] / told["r"]
        assert scale * found == pytest.approx(2.0 * bias, rel=1e-6)  # 12 / 6


def write_lora_config(place: Path, config: dict) -> None:
    """Write an adapter's config."""
    import json

    (place / "adapter_config.json").write_text(json.dumps(config))


def refused(tmp_path: Path, source: Path, code: str, **rules: float) -> AdapterError:
    """Resize, see it refused by `code`, and find nothing left behind."""
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(AdapterError) as caught:
        resize(source, tmp_path / "out", **rules)
    assert caught.value.code == code
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    return caught.value


def test_what_has_no_rank_is_refused(tmp_path: Path) -> None:
    """(IA)³ has no rank; of DoRA it is not known what a smaller one loses."""
    refused(tmp_path, tiny_ia3(tmp_path / "ia3", CONFIG), "AT660", rank=2)
    source = known(tmp_path / "dora")
    tensors = read_safetensors(source / FILE)
    key = f"base_model.model.{MODULE}.lora_magnitude_vector"
    tensors[key] = encode(np.ones(48), "F32")
    write_safetensors(source / FILE, tensors, {"format": "pt"})
    write_lora_config(source, config_of(source) | {"use_dora": True})
    assert MODULE in str(refused(tmp_path, source, "AT661", rank=2))


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"energy": 0.9, "fro": 0.9},
        {"energy": 1.5},
        {"ratio": 0.5},
        {"rank": 0},
        {"rank": 1.5},
        {"best": 3},
        {"energy": float("nan")},
    ],
)
def test_rules_that_are_none(tmp_path: Path, rules: dict[str, float]) -> None:
    """None, two, out of bounds, not a number, or unknown."""
    refused(tmp_path, known(tmp_path / "lora"), "AT500", **rules)


def test_the_report_as_json(tmp_path: Path) -> None:
    """Ranks, bytes and discarded energy, per target and overall."""
    made: Resizing = resize(known(tmp_path / "lora"), tmp_path / "out", rank=2)
    told = made.to_json()
    assert told["bytes_before"] == 3 * told["bytes_after"] == 4 * 6 * (48 + 40)
    (target,) = told["resized"]
    assert (target["rank_before"], target["rank_after"]) == (6, 2)
    assert told["discarded"]["total"] == target["discarded"] > 0
    assert told["ranks"] == [2]
