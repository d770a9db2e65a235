"""Several adapters in order, several modules in one adapter, weights and per-module patterns."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import Tensors
from hypothesis import given
from hypothesis import strategies as st

from adaptertools import FindingsError

from . import reference
from .exact import check, store
from .layers import DTYPES, MODULE, SEEDS, Layer, base_of, compute_of, examples, layers, make_lora
from .world import World, draw_values

WEIGHT = f"{MODULE}.weight"
KINDS = ("lora", "dora", "ia3 out", "ia3 in")
WEIGHTS = st.sampled_from((1.0, 0.5, -1.0, 1.75))


class Chain:
    """A base weight and what a growing list of adapters makes of it, exactly."""

    def __init__(self, rng: np.random.Generator, dtype: str, layer: Layer) -> None:
        self.rng, self.layer, self.world = rng, layer, World(dtype)
        self.first = base_of(rng, self.world, layer)
        self.now, self.mass = self.first, np.zeros_like(self.first)

    def add(self, kind: str, amount: float) -> None:
        """Append one adapter, and apply it to the expectation."""
        before, flag = self.now, {"fan_in_fan_out": self.layer.flag}
        if kind.startswith("ia3"):
            new, mass = self._scaling(kind.removeprefix("ia3 "), amount, flag)
        else:
            lora = make_lora(self.rng, self.layer, 3, "F32", dora=kind == "dora")
            config = flag | {"r": 3, "lora_alpha": 6, "use_dora": kind == "dora"}
            self.world.adapter(config, lora.tensors, amount)
            after = lora.apply(before, 2.0, self.first)
            new, mass = reference.weighted(before, after, amount)
        grown = np.max(np.abs(new) / np.maximum(np.abs(before), 1e-3)) + 4
        self.now, self.mass = new, self.mass * grown + mass

    def _scaling(self, axis: str, amount: float, flag: dict) -> reference.Pair:
        size = self.layer.out if axis == "out" else self.layer.inputs
        shape = (size, 1) if axis == "out" else (1, size)
        vector, stored = store(1 + draw_values(self.rng, shape, 0.4), "F32")
        flag = flag | {"feedforward_modules": ["part"] if axis == "in" else []}
        self.world.adapter(flag, {f"{MODULE}.ia3_l": stored}, amount, "IA3")
        return reference.scaling(self.now, self.layer.layout, axis, vector.reshape(-1), amount)


@examples(60)
@given(
    layers(("out in", "in out")),
    DTYPES,
    SEEDS,
    st.lists(st.tuples(st.sampled_from(KINDS), WEIGHTS), min_size=2, max_size=3),
    st.sampled_from((5, None)),
)
def test_adapters_apply_in_the_order_given(
    layer: Layer, dtype: str, seed: int, steps: list[tuple[str, float]], block: int | None
) -> None:
    """Each adapter changes what the one before left; only the end is rounded."""
    chain = Chain(np.random.default_rng(seed), dtype, layer)
    for kind, amount in steps:
        chain.add(kind, amount)
    check(chain.world.merge(block)[WEIGHT], chain.now, chain.mass, dtype, compute_of(dtype))


@pytest.mark.parametrize("kind", KINDS)
@examples(8)
@given(layers(("out in", "in out")), DTYPES, SEEDS, WEIGHTS)
def test_full_values_come_before_changes(
    kind: str, layer: Layer, dtype: str, seed: int, amount: float
) -> None:
    """An adapter's change applies to another's full value, given in either order."""
    rng = np.random.default_rng(seed)
    value, stored = store(draw_values(rng, layer.shape, 1.0), "F32")
    config = {"fan_in_fan_out": layer.flag, "modules_to_save": ["part"]}
    for last in (True, False):
        chain = Chain(np.random.default_rng(seed), dtype, layer)
        chain.now = chain.first = value
        if not last:
            chain.world.adapter(config, {WEIGHT: stored})
        chain.add(kind, amount)
        if last:
            chain.world.adapter(config, {WEIGHT: stored})
        check(chain.world.merge()[WEIGHT], chain.now, chain.mass, dtype, compute_of(dtype))


def test_two_different_full_values_conflict() -> None:
    """Neither of two adapters' values for one tensor may win silently; equal ones are one."""
    rng = np.random.default_rng(1)
    world = World("F32")
    base_of(rng, world, Layer("out in", 4, 4))
    values = [store(draw_values(rng, (4, 4), 1.0), "F32") for _ in range(2)]
    for _, stored in (values[0], values[0]):
        world.adapter({"modules_to_save": ["part"]}, {WEIGHT: stored})
    assert np.array_equal(world.merge()[WEIGHT], values[0][0])
    world.adapter({"modules_to_save": ["part"]}, {WEIGHT: values[1][1]})
    with pytest.raises(FindingsError) as caught:
        world.merge()
    assert caught.value.code == "AT412"


@pytest.mark.parametrize("kinds", [("ia3 out", "lora"), ("lora", "ia3 out")])
def test_the_order_matters(kinds: tuple[str, str]) -> None:
    """Scaling before a product is not scaling after it: the expectation itself tells them apart."""
    ends = []
    for order in (kinds, kinds[::-1]):
        chain = Chain(np.random.default_rng(8), "F32", Layer("out in", 5, 7))
        for kind in order:
            chain.add(kind, 1.0)
        got = chain.world.merge()[WEIGHT]
        check(got, chain.now, chain.mass, "F32", "F64")
        ends.append(got)
    assert not np.allclose(*ends, atol=1e-2)


def test_minus_one_undoes_a_lora() -> None:
    """The same adapter at w and at -w leaves the base, rounded once at the end."""
    rng = np.random.default_rng(2)
    layer = Layer("out in", 40, 30)
    world = World("F32")
    base = base_of(rng, world, layer)
    lora = make_lora(rng, layer, 4, "F32")
    for weight in (0.7, -0.7):
        world.adapter({"r": 4, "lora_alpha": 4}, lora.tensors, weight)
    assert np.array_equal(world.merge()[WEIGHT], base)


RANK_PATTERN = {"q_proj": 2, r"layers\.1\..*\.o_proj": 5, "net.layers.0.self.o_proj": 1}
ALPHA_PATTERN = {"self.q_proj": 32, "o_proj": 3, "layers.1.self.o_proj": 99}
EXPECTED = {
    "net.layers.0.self.q_proj": (2, 32),
    "net.layers.1.self.q_proj": (2, 32),
    "net.layers.0.self.o_proj": (1, 3),
    "net.layers.1.self.o_proj": (5, 3),
    "net.layers.0.mlp.up": (4, 8),
}


@pytest.mark.parametrize("rslora", [False, True])
def test_rank_and_alpha_patterns(rslora: bool) -> None:
    """Patterns give each module its own scale: first match, at a dot boundary, independently."""
    rng = np.random.default_rng(4)
    world, tensors, wanted = World("F32"), Tensors(), {}
    for module, (rank, alpha) in EXPECTED.items():
        layer = Layer("out in", 6, 5, module=module)
        base = base_of(rng, world, layer)
        lora = make_lora(rng, layer, rank, "F32")
        tensors |= lora.tensors
        scale = alpha / (math.sqrt(rank) if rslora else rank)
        wanted[f"{module}.weight"] = lora.apply(base, scale)
    config = {"r": 4, "lora_alpha": 8, "use_rslora": rslora}
    world.adapter(config | {"rank_pattern": RANK_PATTERN, "alpha_pattern": ALPHA_PATTERN}, tensors)
    got = world.merge()
    for name, expectation in wanted.items():
        check(got[name], *expectation, "F32", "F64")
