"""Weights by layer and module: factors on the adapters' own weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from convert.catalogue import CASES
from convert.sources import LLAMA, Source

from adaptertools import AdapterError

from .making import UP, Q, V, composed, deltas, lora, meanings, vectors


def factors(out: Path, sources: list[tuple[Path, float]]) -> dict[str, float]:
    """Return by module what the weighted sum was multiplied by."""
    found = {}
    for name, got in deltas(out).items():
        whole = sum(w * deltas(f).get(name, np.zeros_like(got)) for f, w in sources)
        ratio = float((got * whole).sum() / (whole * whole).sum())
        np.testing.assert_allclose(got, ratio * whole, rtol=0, atol=1e-6 * np.abs(whole).max())
        found[name.removesuffix(".weight")] = ratio
    return found


@pytest.mark.parametrize("rule", [None, ("energy", 1.0)])
def test_ranges_and_globs_multiply(tmp_path: Path, rule: tuple[str, float] | None) -> None:
    a, b = lora(tmp_path, "a", [*Q, *UP]), lora(tmp_path, "b", [*Q, *UP], rank=2, alpha=1)
    parts = [(a, 0.5), (b, -2.0)]
    out = composed(tmp_path, *parts, weights="layers.0-1=0.2, *.mlp.*=1.3", rule=rule)
    wanted = dict.fromkeys(Q, 0.2) | dict.fromkeys(UP, 0.26) | {Q[2]: 1.0, UP[2]: 1.3}
    got = factors(out, parts)
    assert got == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("pattern", "hit"),
    [
        ("layers.1", [Q[1], UP[1]]),
        ("layers.1-1", [Q[1], UP[1]]),
        ("q_proj", Q),
        ("mlp", UP),
        ("*.q_proj", Q),
        ("model.layers.0.mlp.up_proj", [UP[0]]),
        ("layers.0-1.mlp.*", UP[:2]),
        ("layers.*.self_attn.*", Q),
    ],
)
def test_what_a_pattern_is_for(tmp_path: Path, pattern: str, hit: list[str]) -> None:
    a = lora(tmp_path, "a", [*Q, *UP])
    if pattern.startswith("layers.*"):
        pattern = "*" + pattern
    got = factors(composed(tmp_path, a, weights=f"{pattern}=-0.5"), [(a, 1.0)])
    wanted = {m: -0.5 if m in hit else 1.0 for m in [*Q, *UP]}
    assert got == pytest.approx(wanted, rel=1e-6)


def test_layer_one_is_not_layer_eleven(tmp_path: Path) -> None:
    source = Source(base={**LLAMA, "num_hidden_layers": 13})
    source.config = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj"]}
    modules = [f"model.layers.{n}.self_attn.q_proj" for n in (1, 2, 11, 12)]
    for module in modules:
        source.lora(module, 128, 96, 3)
    a = source.write(tmp_path / "a")
    got = factors(composed(tmp_path, a, weights="layers.1=0.5", name="x"), [(a, 1.0)])
    assert [got[m] for m in modules] == pytest.approx([0.5, 1, 1, 1], rel=1e-6)
    got = factors(composed(tmp_path, a, weights="layers.2-11=0.5", name="y"), [(a, 1.0)])
    assert [got[m] for m in modules] == pytest.approx([1, 0.5, 0.5, 1], rel=1e-6)


def test_vectors_are_weighted_too(tmp_path: Path) -> None:
    a = vectors(tmp_path)
    out, one = meanings(composed(tmp_path, a, weights="*.mlp.*=0.5")), meanings(a)
    for name, vector in one.items():
        weight = 0.5 if "mlp" in name else 1.0
        np.testing.assert_allclose(out[name].value, 1 + weight * (vector.value - 1), rtol=1e-6)


def test_a_method_sees_the_weights_of_the_module(tmp_path: Path) -> None:
    """An average divides the factor out again: of all adapters, it is the same."""
    a, b = lora(tmp_path, "a", [*Q, *V]), lora(tmp_path, "b", [*Q, *V])
    out = composed(tmp_path, a, b, method="average", weights="q_proj=7")
    wanted = dict.fromkeys([*Q, *V], 0.5)
    assert factors(out, [(a, 1.0), (b, 1.0)]) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("text", ["layers.7-9=0.5", "*.experts.*=1", "q_prj=0", "layers.2-1=3"])
def test_unknown_pattern_is_refused(tmp_path: Path, text: str) -> None:
    a = lora(tmp_path)
    with pytest.raises(AdapterError, match="matches none"):
        composed(tmp_path, a, weights=f"q_proj=0.5,{text}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["q_proj", "=1", "q_proj=x", "q_proj=nan", "q_proj=-inf"])
def test_what_is_no_weight_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(AdapterError, match="PATTERN=NUMBER"):
        composed(tmp_path, lora(tmp_path), weights=text)


def test_zero_switches_a_module_off(tmp_path: Path) -> None:
    a = lora(tmp_path, "a", [*Q, *UP])
    got = deltas(composed(tmp_path, a, weights="mlp=0"))
    assert all(value.any() == ("mlp" not in name) for name, value in got.items())


def test_a_range_keeps_its_prefix(tmp_path: Path) -> None:
    """encoder.block.0-1 is not for the decoder."""
    a = CASES["t5"]().write(tmp_path / "a")
    got = deltas(composed(tmp_path, a, weights="encoder.block.0-1=0"))
    assert not any(value.any() for name, value in got.items() if "encoder.block.0" in name)
    assert all(value.any() for name, value in got.items() if "decoder" in name)
