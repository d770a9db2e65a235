"""Per-module rank and alpha: PEFT's matching rule, against a direct reimplementation with re."""

from __future__ import annotations

import math
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from builders import LORA_CONFIG, write_adapter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adaptertools

from .adapters import PREFIX, lora_shapes, tensors

MODULES = (
    "layers.0.attn.q_proj",
    "layers.1.attn.q_proj",
    "layers.10.attn.q_proj",
    "layers.1.mlp.up",
    "layers.1.mlp.up_q_proj",
    "q_proj",
    "up.layers.0.xup",
)
PATTERNS = (
    "q_proj",
    "attn.q_proj",
    "1.attn.q_proj",
    r"layers\.1\.attn\.q_proj",
    r"layers.\d.attn.q_proj",
    "up",
    "mlp.up",
    "proj",
    r".*q_proj",
    r"^layers\.0\..*",
    r"q_proj$",
    "q|up",
    r"layers\.(0|1)\..*",
    "attn",
)
TABLES = st.dictionaries(st.sampled_from(PATTERNS), st.integers(1, 9), max_size=5)


def peft_value(table: dict[str, float], module: str, default: float) -> float:
    """PEFT 0.21.2, utils/other.py get_pattern_key: the first pattern that matches wins."""
    for pattern, value in table.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def opened(config: dict[str, Any], ranks: dict[str, int]) -> dict[str, Any]:
    """Return the updates by module, of an adapter whose tensors have these ranks."""
    shapes = {k: v for module, rank in ranks.items() for k, v in lora_shapes(module, rank).items()}
    with tempfile.TemporaryDirectory() as place:
        usual = {**LORA_CONFIG, "target_modules": None}
        # write_adapter sorts only the top level, so the order of the patterns stays
        path = write_adapter(Path(place), usual | config, tensors(shapes))
        adapter = adaptertools.open(path)
    assert not adapter.errors, adapter.errors
    return {update.target.module: update for update in adapter.updates} | {"": adapter}


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(TABLES, TABLES, st.booleans())
def test_scale_follows_peft(ranks: dict[str, int], alphas: dict[str, int], rslora: bool) -> None:
    """Rank and alpha are matched independently, each by the first pattern that fits."""
    wanted = {m: (peft_value(ranks, m, 4), peft_value(alphas, m, 8)) for m in MODULES}
    config = {"r": 4, "lora_alpha": 8, "use_rslora": rslora}
    patterns = {"rank_pattern": ranks, "alpha_pattern": alphas}
    updates = opened(config | patterns, {m: rank for m, (rank, _) in wanted.items()})
    for module, (rank, alpha) in wanted.items():
        scale = alpha / (math.sqrt(rank) if rslora else rank)
        assert updates[module].rank == rank
        assert updates[module].alpha == alpha
        assert updates[module].scale == pytest.approx(scale, rel=1e-12), module
    assert "AT222" not in {f.id for f in updates[""].findings}


@pytest.mark.parametrize("first", ["q_proj", "attn.q_proj"])
def test_the_first_pattern_of_the_file_wins(first: str) -> None:
    """The order in the JSON file decides, and the contest is told."""
    second = {"q_proj": "attn.q_proj", "attn.q_proj": "q_proj"}[first]
    updates = opened({"alpha_pattern": {first: 3, second: 5}}, {"layers.0.attn.q_proj": 8})
    assert updates["layers.0.attn.q_proj"].alpha == 3
    assert [f.id for f in updates[""].findings] == ["AT306"]


@pytest.mark.parametrize(
    ("pattern", "hits"),
    [("proj", 0), ("q_proj", 1), ("x.q_proj", 0), ("q_projx", 0), ("ayers.0.q_proj", 0)],
)
def test_a_pattern_ends_at_a_dot(pattern: str, hits: int) -> None:
    """A plain name never matches within a segment; unused patterns are told."""
    updates = opened({"alpha_pattern": {pattern: 3}}, {"layers.0.q_proj": 8})
    assert (updates["layers.0.q_proj"].alpha == 3) == bool(hits)
    assert [f.id for f in updates[""].findings] == ([] if hits else ["AT305"])


def test_tensors_beat_the_configured_rank() -> None:
    """Where config and tensors disagree, the scale is by the tensors, and that is told."""
    updates = opened({"r": 16, "lora_alpha": 16, "rank_pattern": {"v": 2}}, {"a.q": 4, "a.v": 4})
    assert updates["a.q"].scale == 4
    assert updates["a.v"].scale == 4
    told = {(f.expected, f.found) for f in updates[""].findings if f.id == "AT222"}
    assert told == {("16", "4"), ("2", "4")}


@pytest.mark.parametrize(("alpha", "scale"), [(0, 0.0), (-4, -1.0), (0.5, 0.125), (1e30, 2.5e29)])
def test_alpha_may_be_any_finite_number(alpha: float, scale: float) -> None:
    """Zero, negative and huge alphas are what PEFT takes them for."""
    assert opened({"lora_alpha": alpha}, {"a.q": 4})["a.q"].scale == scale


def test_absent_fields_take_peft_s_defaults() -> None:
    """No r and no lora_alpha mean 8 and 8."""
    usual = {k: v for k, v in LORA_CONFIG.items() if k not in ("r", "lora_alpha")}
    with tempfile.TemporaryDirectory() as place:
        path = write_adapter(Path(place), usual, tensors(lora_shapes("a.q_proj", 8)))
        (update,) = adaptertools.open(path).updates
    assert (update.scale, update.alpha) == (1.0, 8)


def test_keys_with_an_adapter_name_are_the_same_update() -> None:
    """`lora_A.default.weight` and `lora_A.weight` mean one thing; wrappers are dropped."""
    plain = lora_shapes("layers.0.q_proj", 8)
    named = {k.replace(".weight", ".style.weight"): v for k, v in plain.items()}
    wrapped = {k.replace("layers.0", "layers.0._fsdp_wrapped_module"): v for k, v in plain.items()}
    bare = {"=" + k: v for k, v in plain.items()}
    for shapes in (plain, named, wrapped, bare):
        with tempfile.TemporaryDirectory() as place:
            config = LORA_CONFIG | {"target_modules": None}
            adapter = adaptertools.open(write_adapter(Path(place), config, tensors(shapes)))
        assert not adapter.errors
        assert [u.target.name for u in adapter.updates] == ["layers.0.q_proj.weight"]
    assert PREFIX not in adapter.updates[0].down.key
