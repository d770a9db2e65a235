"""Layers and their adapters as hypothesis draws them: shapes, values, keys, and the expectation."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from builders import Tensors
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from . import reference
from .exact import store
from .world import World, draw_values

MODULE = "net.layers.3.part"
LAYOUTS = ("out in", "in out", "conv", "embedding")
SIZES = st.integers(1, 9)
RANKS = st.sampled_from((1, 2, 3, 4, 5, 8))
DTYPES = st.sampled_from(("BF16", "F16", "F32", "F64"))
FACTORS = st.sampled_from(("F32", "BF16", "F16", "F64"))
SEEDS = st.integers(0, 2**32 - 1)


def examples(count: int) -> settings:
    """Return the settings of a test that merges for real: no deadline, the same examples always."""
    quiet = list(HealthCheck)
    return settings(
        max_examples=count, deadline=None, derandomize=True, suppress_health_check=quiet
    )


@dataclass(frozen=True)
class Layer:
    """One module: `kernel` is empty but for convolutions; an embedding is stored `in out`."""

    layout: str
    out: int
    inputs: int
    kernel: tuple[int, ...] = ()
    module: str = MODULE

    @property
    def oriented(self) -> str:
        return "in out" if self.layout == "embedding" else self.layout

    @property
    def shape(self) -> tuple[int, ...]:
        if self.oriented == "in out":
            return (self.inputs, self.out)
        return (self.out, self.inputs, *self.kernel)

    @property
    def flag(self) -> bool:
        """PEFT's fan_in_fan_out, which breaks the tie of a square weight."""
        return self.layout == "in out"


@st.composite
def layers(draw: st.DrawFn, layouts: tuple[str, ...] = LAYOUTS) -> Layer:
    """Draw a layer: square or not, with one to three kernel axes where it is a convolution."""
    layout = draw(st.sampled_from(layouts))
    out = draw(SIZES)
    inputs = draw(st.one_of(st.just(out), SIZES))
    kernel: tuple[int, ...] = ()
    if layout == "conv":
        kernel = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    return Layer(layout, out, inputs, kernel)


@dataclass
class Lora:
    """The factors of one LoRA on a layer, exact and stored."""

    layer: Layer
    up: np.ndarray
    down: np.ndarray
    tensors: Tensors = field(default_factory=dict)
    magnitude: np.ndarray | None = None
    bias: np.ndarray | None = None
    gate: np.ndarray | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def apply(
        self, weight: np.ndarray, scale: float, original: np.ndarray | None = None
    ) -> reference.Pair:
        """Return what the adapter makes of a weight, at weight one."""
        down = self.down
        if self.gate is not None:
            down = down * self.gate
        args = (weight, self.layer.oriented, self.up, down, scale)
        if self.magnitude is not None:
            return reference.dora(*args, self.magnitude, original)
        return reference.low_rank(*args, self.rank)


def make_lora(
    rng: np.random.Generator, layer: Layer, rank: int, dtype: str, *, dora: bool = False
) -> Lora:
    """Draw the factors of a LoRA or DoRA, with PEFT's keys and shapes."""
    down, stored_down = store(draw_values(rng, (rank, layer.inputs, *layer.kernel), 0.3), dtype)
    ones = (1,) * len(layer.kernel)
    up, stored_up = store(draw_values(rng, (layer.out, rank, *ones), 0.3), dtype)
    lora = Lora(layer, up, down)
    if layer.layout == "embedding":
        keys = ("lora_embedding_A", "lora_embedding_B")
    else:
        keys = ("lora_A.weight", "lora_B.weight")
    lora.tensors = {
        f"{layer.module}.{keys[0]}": stored_down,
        f"{layer.module}.{keys[1]}": stored_up,
    }
    if dora:
        shape = (1, layer.out, *ones) if layer.kernel else (layer.out,)
        lora.magnitude, stored = store(1 + draw_values(rng, shape, 0.2), dtype)
        lora.tensors[f"{layer.module}.lora_magnitude_vector"] = stored
    return lora


def add_bias(rng: np.random.Generator, lora: Lora, dtype: str) -> None:
    """Give a LoRA a trained bias (lora_bias)."""
    lora.bias, stored = store(draw_values(rng, (lora.layer.out,), 0.3), dtype)
    lora.tensors[f"{lora.layer.module}.lora_B.bias"] = stored


def base_of(rng: np.random.Generator, world: World, layer: Layer, bias: bool = False) -> np.ndarray:
    """Add a layer to the base, with one bystander; returns its weight."""
    if "bystander.weight" not in world.values:
        world.base("bystander.weight", draw_values(rng, (3, 2), 1.0))
    if bias:
        world.base(f"{layer.module}.bias", draw_values(rng, (layer.out,), 1.0))
    return world.base(f"{layer.module}.weight", draw_values(rng, layer.shape, 1.0))


def compute_of(dtype: str) -> str:
    """Return the dtype that `auto` computes in: F32 for bf16, F64 for the others."""
    return "F32" if dtype == "BF16" else "F64"
