"""compose, then merge, is the merge of all of them at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from algebra.exact import step
from builders import decode, read_safetensors, tiny_ia3, tiny_lora

import adaptertools

from .making import composed

FIXTURES = Path(__file__).parents[2] / "fixtures"
BASE = FIXTURES / "tiny-llama"
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def merged(place: Path, *adapters: object) -> dict[str, np.ndarray]:
    adaptertools.merge(BASE, list(adapters), place, jobs=1)
    file = next(place.glob("*.safetensors"))
    stored = read_safetensors(file)
    return {name: decode(t).astype(np.float64) for name, t in stored.items()}


def assert_near(one: dict, other: dict, dtype: str) -> None:
    base = read_safetensors(BASE / "model.safetensors")
    assert one.keys() == other.keys()
    changed = 0
    for name, value in one.items():
        unit = step(np.maximum(np.abs(value), np.abs(other[name])), dtype)
        assert (np.abs(value - other[name]) <= unit).all(), name
        changed += bool((value != decode(base[name])).any())
    assert changed > 3


def dtype() -> str:
    return next(iter(read_safetensors(BASE / "model.safetensors").values()))[0]


def loras(place: Path) -> list[Path]:
    return [
        FIXTURES / "tiny-llama-lora",
        tiny_lora(place / "b", BASE, 2, 3, ALL, seed=1, dtype="BF16"),
        tiny_lora(place / "c", BASE, 5, 3, ("q_proj", "up_proj"), seed=2, use_rslora=True),
    ]


@pytest.mark.parametrize("weights", [(1, 1, 1), (0.5, -0.8, 1.7), (-1, 2, 0.25)])
def test_sum_then_merge_is_merge(tmp_path: Path, weights: tuple[float, ...]) -> None:
    parts = list(zip(loras(tmp_path), map(float, weights), strict=True))
    once = merged(tmp_path / "once", *parts)
    twice = merged(tmp_path / "twice", composed(tmp_path, *parts))
    assert_near(twice, once, dtype())


def test_full_rank_rule_then_merge_is_merge(tmp_path: Path) -> None:
    parts = list(zip(loras(tmp_path), (0.5, -0.8, 1.7), strict=True))
    once = merged(tmp_path / "once", *parts)
    twice = merged(tmp_path / "twice", composed(tmp_path, *parts, rule=("energy", 1.0)))
    assert_near(twice, once, dtype())


def test_weight_on_one_adapter_is_the_weight_of_its_merge(tmp_path: Path) -> None:
    one = merged(tmp_path / "once", (FIXTURES / "tiny-llama-lora", -0.7))
    out = composed(tmp_path, (FIXTURES / "tiny-llama-lora", -0.7))
    assert_near(merged(tmp_path / "twice", out), one, dtype())


def test_vectors_as_product_are_one_merge_after_another(tmp_path: Path) -> None:
    """In a chain each vector scales what the one before left; within the rounding of both."""
    a, b = FIXTURES / "tiny-llama-ia3", tiny_ia3(tmp_path / "b", BASE, seed=3)
    chain = merged(tmp_path / "once", a, b)
    product = merged(tmp_path / "twice", composed(tmp_path, a, b, vectors="product"))
    assert_near(product, chain, dtype())
