"""(IA)³ vectors: linear around one, products, powers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from convert.sources import llama_modules

from .making import composed, dtypes_of, meanings, vectors, weights_of

KEYS = llama_modules(["self_attn.k_proj"])
DOWN = llama_modules(["mlp.down_proj"])


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two adapters, the second without the inputs of down_proj."""
    return vectors(tmp_path, "a"), vectors(tmp_path, "b", KEYS)


def values(folder: Path) -> dict[str, np.ndarray]:
    return {name: one.value for name, one in meanings(folder).items()}


def both(pair: tuple[Path, Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    a, b = map(values, pair)
    return {name: (a[name], b.get(name, np.ones_like(a[name]))) for name in a}


@pytest.mark.parametrize("weights", [(0.7, 0.4), (1.0, 1.0), (-1.0, 2.0), (0.0, 0.5)])
def test_linear_is_centred_on_one(tmp_path: Path, pair: tuple, weights: tuple) -> None:
    """An adapter without the module leaves it alone, whatever the weights come to."""
    got = values(composed(tmp_path, *zip(pair, weights, strict=True)))
    for name, (a, b) in both(pair).items():
        wanted = 1 + weights[0] * (a - 1) + weights[1] * (b - 1)
        np.testing.assert_allclose(got[name], wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 0.4), (-1.0, 2.0)])
def test_product_of_powers(tmp_path: Path, pair: tuple, weights: tuple) -> None:
    got = values(composed(tmp_path, *zip(pair, weights, strict=True), vectors="product"))
    for name, (a, b) in both(pair).items():
        np.testing.assert_allclose(got[name], a ** weights[0] * b ** weights[1], rtol=1e-6)


def test_power_minus_one_undoes(tmp_path: Path, pair: tuple) -> None:
    out = composed(tmp_path, pair[0], (pair[0], -1.0), vectors="product")
    assert all((vector == 1).all() for vector in values(out).values())


def test_linear_minus_itself_is_one(tmp_path: Path, pair: tuple) -> None:
    out = composed(tmp_path, (pair[0], 0.6), (pair[0], -0.6))
    for vector in values(out).values():
        np.testing.assert_allclose(vector, 1, rtol=1e-7)


@pytest.mark.parametrize("how", ["linear", "product"])
def test_order_does_not_matter(tmp_path: Path, pair: tuple, how: str) -> None:
    one, other = (pair[0], 0.5), (pair[1], 0.25)
    outs = [
        composed(tmp_path, *order, name=f"o{n}", vectors=how)
        for n, order in enumerate([(one, other), (other, one)])
    ]
    first, second = map(values, outs)
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-6)


def test_one_adapter_is_itself(tmp_path: Path, pair: tuple) -> None:
    out = composed(tmp_path, pair[0])
    first, second = values(pair[0]), values(out)
    assert all((first[name] == second[name]).all() for name in first)
    assert weights_of(composed(tmp_path, out, name="again")) == weights_of(out)


def test_inputs_stay_inputs(tmp_path: Path, pair: tuple) -> None:
    kinds = {name: one.kind for name, one in meanings(composed(tmp_path, *pair)).items()}
    assert {kinds[f"{m}.weight"] for m in KEYS} == {"out"}
    assert {kinds[f"{m}.weight"] for m in DOWN} == {"in"}
    assert dtypes_of(tmp_path / "out") == {"F32"}
