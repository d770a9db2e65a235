"""Every kind of update through a real merge, against the naive dense reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from . import reference
from .exact import check, store
from .layers import (
    DTYPES,
    FACTORS,
    MODULE,
    RANKS,
    SEEDS,
    Layer,
    Lora,
    add_bias,
    base_of,
    compute_of,
    examples,
    layers,
    make_lora,
)
from .world import World, draw_values

WEIGHT = f"{MODULE}.weight"
BIAS = f"{MODULE}.bias"
WEIGHTS = st.sampled_from((1.0, 0.5, -1.0, -0.3, 2.0))
BLOCKS = st.sampled_from((1, 7, 64, None))
SCALED = ("out in", "in out", "conv")
INDEXES = st.lists(st.integers(0, 8), min_size=1, unique=True)
FEW = examples(40)


def untouched(world: World, got: dict[str, np.ndarray], *touched: str) -> None:
    """Assert that every other tensor is there, as it was."""
    assert got.keys() == world.values.keys()
    for name in got.keys() - set(touched):
        assert np.array_equal(got[name], world.values[name]), name


@FEW
@given(layers(), RANKS, DTYPES, FACTORS, SEEDS, WEIGHTS, st.booleans(), BLOCKS)
def test_lora_adds_scaled_product(
    layer: Layer, rank: int, dtype: str, factors: str, seed: int, weight: float, rs: bool, block
) -> None:
    """W + w·s·BA for linear, Conv1D, convolutions and embeddings, with alpha/r and alpha/√r."""
    rng = np.random.default_rng(seed)
    world = World(dtype)
    base = base_of(rng, world, layer)
    lora = make_lora(rng, layer, rank, factors)
    config = {"r": rank, "lora_alpha": 3, "use_rslora": rs, "fan_in_fan_out": layer.flag}
    world.adapter(config, lora.tensors, weight)
    scale = weight * 3 / (rank**0.5 if rs else rank)
    got = world.merge(block)
    check(got[WEIGHT], *lora.apply(base, scale), dtype, compute_of(dtype))
    untouched(world, got, WEIGHT)


@FEW
@given(layers(), RANKS, DTYPES, FACTORS, SEEDS, WEIGHTS, BLOCKS)
def test_dora_scales_by_the_norm_of_the_sum(
    layer: Layer, rank: int, dtype: str, factors: str, seed: int, weight: float, block
) -> None:
    """m ⊙ (W + sBA) / ‖W + sBA‖ along the right axis, also for embeddings and convolutions."""
    rng = np.random.default_rng(seed)
    world = World(dtype)
    base = base_of(rng, world, layer)
    lora = make_lora(rng, layer, rank, factors, dora=True)
    config = {"r": rank, "lora_alpha": 5, "use_dora": True, "fan_in_fan_out": layer.flag}
    world.adapter(config, lora.tensors, weight)
    wanted = reference.weighted(base, lora.apply(base, 5 / rank), weight)
    check(world.merge(block)[WEIGHT], *wanted, dtype, compute_of(dtype))


@examples(25)
@given(layers(("out in", "in out")), RANKS, DTYPES, SEEDS, WEIGHTS, st.booleans())
def test_lora_bias_goes_to_the_bias(
    layer: Layer, rank: int, dtype: str, seed: int, weight: float, dora: bool
) -> None:
    """The bias of lora_B lands on the layer's bias, scaled like the product."""
    rng = np.random.default_rng(seed)
    world = World(dtype)
    base = base_of(rng, world, layer, bias=True)
    lora = make_lora(rng, layer, rank, "F32", dora=dora)
    add_bias(rng, lora, "F32")
    config = {"r": rank, "lora_alpha": 7, "lora_bias": True, "use_dora": dora}
    world.adapter({**config, "fan_in_fan_out": layer.flag}, lora.tensors, weight)
    got = world.merge()
    change = weight * 7 / rank * lora.bias
    mass = 8 * (np.abs(change) + np.abs(world.values[BIAS]))
    check(got[BIAS], world.values[BIAS] + change, mass, dtype, compute_of(dtype))
    wanted = reference.weighted(base, lora.apply(base, 7 / rank), weight)
    check(got[WEIGHT], *wanted, dtype, compute_of(dtype))


@FEW
@given(layers(SCALED), DTYPES, FACTORS, SEEDS, WEIGHTS, BLOCKS)
def test_ia3_along_outputs_scales_weight_and_bias(
    layer: Layer, dtype: str, factors: str, seed: int, weight: float, block
) -> None:
    """W ⊙ (1 + w(l - 1)) along the output axis, and the bias likewise."""
    rng = np.random.default_rng(seed)
    world = World(dtype)
    base = base_of(rng, world, layer, bias=True)
    shape = (1, layer.out, *[1] * len(layer.kernel)) if layer.kernel else (layer.out, 1)
    vector, stored = store(1 + draw_values(rng, shape, 0.4), factors)
    flag = {"fan_in_fan_out": layer.flag, "feedforward_modules": []}
    world.adapter(flag, {f"{MODULE}.ia3_l": stored}, weight, "IA3")
    got = world.merge(block)
    vector = vector.reshape(-1)
    wanted = reference.scaling(base, layer.layout, "out", vector, weight)
    check(got[WEIGHT], *wanted, dtype, compute_of(dtype))
    wanted = reference.scaling(world.values[BIAS], "out", "out", vector, weight)
    check(got[BIAS], *wanted, dtype, compute_of(dtype))
    untouched(world, got, WEIGHT, BIAS)


@FEW
@given(layers(SCALED), DTYPES, FACTORS, SEEDS, WEIGHTS, BLOCKS)
def test_ia3_along_inputs_leaves_the_bias(
    layer: Layer, dtype: str, factors: str, seed: int, weight: float, block
) -> None:
    """A feedforward module's vector scales the input axis, and the bias stays."""
    rng = np.random.default_rng(seed)
    world = World(dtype)
    base = base_of(rng, world, layer, bias=True)
    shape = (1, layer.inputs, *[1] * len(layer.kernel))
    vector, stored = store(1 + draw_values(rng, shape, 0.4), factors)
    flag = {"fan_in_fan_out": layer.flag, "feedforward_modules": ["part"]}
    world.adapter(flag, {f"{MODULE}.ia3_l": stored}, weight, "IA3")
    got = world.merge(block)
    wanted = reference.scaling(base, layer.layout, "in", vector.reshape(-1), weight)
    check(got[WEIGHT], *wanted, dtype, compute_of(dtype))
    untouched(world, got, WEIGHT)


@examples(30)
@given(layers(("out in", "in out")), RANKS, DTYPES, SEEDS, st.sampled_from((-1, 0, 6)))
def test_adalora_has_a_gate(layer: Layer, rank: int, dtype: str, seed: int, alpha: float) -> None:
    """s·B(A ∘ E) with s = alpha/(r + 1e-5), and r for an alpha that is not positive."""
    rng = np.random.default_rng(seed)
    world = World(dtype)
    base = base_of(rng, world, layer)
    plain = make_lora(rng, layer, rank, "F32")
    gate, stored = store(draw_values(rng, (rank, 1), 1.0), "F32")
    lora = Lora(layer, plain.up, plain.down, gate=gate)
    renamed = {key.removesuffix(".weight"): value for key, value in plain.tensors.items()}
    renamed[f"{MODULE}.lora_E"] = stored
    config = {"peft_type": "ADALORA", "lora_alpha": alpha, "fan_in_fan_out": layer.flag}
    world.adapter(config, renamed)
    scale = (alpha if alpha > 0 else rank) / (rank + 1e-5)
    check(world.merge()[WEIGHT], *lora.apply(base, scale), dtype, compute_of(dtype))


@examples(30)
@given(
    st.integers(2, 4), st.integers(1, 6), st.integers(1, 6), RANKS, DTYPES, SEEDS, WEIGHTS, BLOCKS
)
def test_stacked_experts(
    experts: int, out: int, inputs: int, rank: int, dtype: str, seed: int, weight: float, block
) -> None:
    """A is expert-major, B rank-major; the base has either orientation when it is not square."""
    rng = np.random.default_rng(seed)
    inputs += inputs == out
    down, stored_down = store(draw_values(rng, (experts * rank, inputs), 0.3), "F32")
    up, stored_up = store(draw_values(rng, (out, rank * experts), 0.3), "F32")
    tensors = {"net.experts.lora_A.weight": stored_down, "net.experts.lora_B.weight": stored_up}
    for layout in ("experts out in", "experts in out"):
        world = World(dtype)
        shape = (experts, out, inputs) if layout.endswith("out in") else (experts, inputs, out)
        base = world.base("net.experts.wide", draw_values(rng, shape, 1.0))
        config = {"r": rank, "lora_alpha": 4, "target_parameters": ["experts.wide"]}
        world.adapter(config, tensors, weight)
        wanted = reference.low_rank(base, layout, up, down, weight * 4 / rank, rank)
        check(world.merge(block)["net.experts.wide"], *wanted, dtype, compute_of(dtype))


@examples(25)
@given(DTYPES, FACTORS, SEEDS, WEIGHTS, BLOCKS)
def test_full_values_replace(dtype: str, factors: str, seed: int, weight: float, block) -> None:
    """A saved module's value takes the place of the base's; a weight goes part of the way."""
    rng = np.random.default_rng(seed)
    world = World(dtype)
    base = world.base(WEIGHT, draw_values(rng, (5, 3), 1.0))
    value, stored = store(draw_values(rng, (5, 3), 1.0), factors)
    world.adapter({"modules_to_save": ["part"]}, {WEIGHT: stored}, weight)
    wanted = reference.weighted(base, (value, np.abs(value)), weight)
    check(world.merge(block)[WEIGHT], *wanted, dtype, compute_of(dtype))


@examples(25)
@given(
    DTYPES, FACTORS, SEEDS, WEIGHTS, BLOCKS, st.lists(st.integers(0, 8), min_size=1, unique=True)
)
def test_token_rows_replace_rows(
    dtype: str, factors: str, seed: int, weight: float, block, index: list[int]
) -> None:
    """The trained rows are absolute values, in the order of the index, sorted or not."""
    rng = np.random.default_rng(seed)
    world = World(dtype)
    base = world.base("net.embed.weight", draw_values(rng, (9, 4), 1.0))
    values, stored = store(draw_values(rng, (len(index), 4), 1.0), factors)
    config = {"trainable_token_indices": {"embed": index}}
    world.adapter(config, {"net.embed.token_adapter.trainable_tokens_delta": stored}, weight)
    wanted = base.copy()
    wanted[index] = base[index] + weight * (values - base[index])
    got = world.merge(block)["net.embed.weight"]
    check(got, wanted, 8 * (np.abs(base) + np.abs(wanted) + 3), dtype, compute_of(dtype))
    rest = [row for row in range(9) if row not in index]
    assert np.array_equal(got[rest], base[rest])


@pytest.mark.parametrize("layout", ["out in", "in out"])
def test_a_square_weight_follows_the_flag(layout: str) -> None:
    """Both orientations fit a square weight; fan_in_fan_out decides, and they differ."""
    rng = np.random.default_rng(3)
    layer = Layer(layout, 6, 6)
    world = World("F32")
    base = base_of(rng, world, layer)
    lora = make_lora(rng, layer, 2, "F32")
    world.adapter({"r": 2, "lora_alpha": 2, "fan_in_fan_out": layer.flag}, lora.tensors)
    got = world.merge()[WEIGHT]
    check(got, *lora.apply(base, 1.0), "F32", "F64")
    assert not np.allclose(got - base, (got - base).T, atol=1e-3)
