"""A format of one's own: a spec file, no Python; and the same by an entry point."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from algebra.exact import check
from builders import (
    decode,
    encode,
    read_checkpoint,
    tiny_base,
    write_json,
    write_safetensors,
)

import adaptertools
from adaptertools.errors import SpecError
from adaptertools.formats import registry
from adaptertools.formats.registry import all_formats, get_format

SPEC = """
schema = 1
id = "swapped"
title = "An invented dialect: transposed, underscored, alpha beside the weights"
method = "lora"
scheme = "hf"
[files]
weights = ["swapped.safetensors"]
config = "swapped.json"
[detect]
config = { dialect = ["swapped"] }
[fields]
base_model = "parent"
[scale]
rule = "alpha/rank"
case = [{ field = "stable", equals = true, rule = "alpha/sqrt(rank)" }]
alpha = { config = "strength", patterns = "strengths" }
[[update]]
kind = "low_rank"
prefix = ["model/{module}"]
weight = ["out in"]
down = { key = "/first", dims = ["in rank"] }
up = { key = "/second", dims = ["rank out"] }
[[update]]
kind = "scaling"
prefix = ["model/{module}"]
weight = ["out in"]
vector = { key = "/gain", dims = ["1 1 out"] }
[limits]
alpha_per_module = true
"""
Q, V, DOWN = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """The spec file."""
    path = tmp_path / "swapped.toml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def dialect(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """An adapter in the dialect, and its values."""
    rng = np.random.default_rng(9)
    values = {
        f"{Q}/first": rng.standard_normal((64, 3)),
        f"{Q}/second": rng.standard_normal((3, 64)),
        f"{V}/first": rng.standard_normal((64, 2)),
        f"{V}/second": rng.standard_normal((2, 16)),
        f"{DOWN}/gain": rng.standard_normal((1, 1, 64)),
    }
    tensors = {f"model/model.layers.0.{key}": encode(v, "F64") for key, v in values.items()}
    place = tmp_path / "adapter"
    write_safetensors(place / "swapped.safetensors", tensors)
    config = {"dialect": "swapped", "strength": 6, "strengths": {"v_proj": 1}, "parent": "me/base"}
    write_json(place / "swapped.json", config)
    return place, values


def merged(base: Path, out: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield (module, before, after) of the first layer's linears."""
    before, after = read_checkpoint(base), read_checkpoint(out)
    for module in (Q, V, DOWN):
        name = f"model.layers.0.{module}.weight"
        yield module, *(decode(t[name]).astype(np.float64) for t in (before, after))


def test_a_spec_file_is_enough(tmp_path: Path, spec: Path, dialect) -> None:
    """Open, inspect, validate and merge an invented dialect by its spec alone."""
    place, values = dialect
    base = tiny_base(tmp_path / "base", dtype="F32")
    adapter = adaptertools.open(place, specs=[spec])
    assert (adapter.format, adapter.base_model, adapter.unmatched) == ("swapped", "me/base", ())
    assert {u.target.module.split(".")[-1] for u in adapter.updates} == {
        "q_proj", "v_proj", "down_proj",
    }  # fmt: skip
    assert adaptertools.inspect(place, specs=[spec]).ranks == {2: 1, 3: 1}
    assert adaptertools.validate(place, base, specs=[spec]).ok
    adaptertools.merge(base, place, tmp_path / "out", specs=[spec])
    for module, before, after in merged(base, tmp_path / "out"):
        if module == DOWN:
            wanted = before * values[f"{module}/gain"].reshape(-1, 1)
        else:
            first, second = values[f"{module}/first"], values[f"{module}/second"]
            scale = {Q: 6 / 3, V: 1 / 2}[module]
            wanted = before + scale * (first @ second).T
        check(after, wanted, 64 * (1 + np.abs(wanted) + np.abs(before)), "F32", "F64")
    assert adaptertools.verify(tmp_path / "out", base, place, specs=[spec]).ok


def test_without_the_spec_it_is_unknown(dialect) -> None:
    """No shipped format takes it for its own."""
    with pytest.raises(adaptertools.AdapterError):
        adaptertools.open(dialect[0])
    with pytest.raises(adaptertools.AdapterError) as caught:
        adaptertools.open(dialect[0] / "swapped.safetensors")
    assert caught.value.code == "AT201"


class Point:
    """An entry point that loads to `value`."""

    def __init__(self, value: object) -> None:
        self.value = value

    def load(self) -> object:
        return self.value


@pytest.mark.parametrize("wrap", [str, lambda path: lambda: path], ids=["path", "function"])
def test_a_plug_in_offers_a_spec(spec: Path, dialect, monkeypatch, wrap) -> None:
    """An entry point of the group adaptertools.formats gives a path, or a function that does."""
    asked = []

    def points(*, group: str) -> list[Point]:
        asked.append(group)
        return [Point(wrap(spec))]

    monkeypatch.setattr(importlib.metadata, "entry_points", points)
    registry.plugged_in.cache_clear()
    try:
        assert adaptertools.open(dialect[0]).format == "swapped"
        assert get_format("swapped").source == str(spec)
    finally:
        registry.plugged_in.cache_clear()
    assert set(asked) == {"adaptertools.formats"}


def test_names_have_near_misses(spec: Path) -> None:
    """AT200 suggests the nearest name, and one's own specs count."""
    for wrong, near in (("peft-lra", "peft-lora"), ("swaped", "swapped")):
        with pytest.raises(adaptertools.AdapterError) as caught:
            get_format(wrong, (spec,))
        assert caught.value.code == "AT200"
        assert near in caught.value.hint


def test_an_id_may_not_be_reused(tmp_path: Path) -> None:
    """AT296 names both files."""
    twin = tmp_path / "twin.toml"
    twin.write_text(SPEC.replace('"swapped"', '"peft-lora"', 1))
    with pytest.raises(SpecError) as caught:
        all_formats((twin,))
    assert caught.value.code == "AT296"
    assert "peft-lora.toml" in str(caught.value)
    assert "twin.toml" in str(caught.value)
