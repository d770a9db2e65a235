"""How often the merge is the exact value rounded once: two million elements for each dtype."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from .exact import equal_share, round_once, step
from .layers import Layer, Lora, make_lora
from .world import World, draw_values

SHARE = 0.99999
# out, in, rank, alpha: query-like, key-value-like and feedforward-like, ranks odd and even
SHAPES = ((896, 896, 16, 32), (128, 896, 5, 10), (1152, 896, 1, 2), (448, 1152, 3, 3))


def build(dtype: str, ratio: float) -> tuple[World, dict[str, np.ndarray]]:
    """Return a base with LoRAs whose ‖ΔW‖ is `ratio` of ‖W‖, and the exact results."""
    rng = np.random.default_rng(20)
    world, tensors, exact = World(dtype), {}, {}
    for number, (out, inputs, rank, alpha) in enumerate(SHAPES):
        layer = Layer("out in", out, inputs, module=f"net.{number}")
        weight = world.base(f"net.{number}.weight", draw_values(rng, layer.shape, 0.02))
        lora = realistic(rng, layer, rank, ratio * 0.02 * rank / alpha)
        tensors |= lora.tensors
        exact[f"net.{number}.weight"] = weight + alpha / rank * (lora.up @ lora.down)
    ranks = {f"net.{n}": rank for n, (_, _, rank, _) in enumerate(SHAPES)}
    alphas = {f"net.{n}": alpha for n, (_, _, _, alpha) in enumerate(SHAPES)}
    world.adapter({"rank_pattern": ranks, "alpha_pattern": alphas}, tensors)
    return world, exact


def realistic(rng: np.random.Generator, layer: Layer, rank: int, deviation: float) -> Lora:
    """Return factors whose product has this deviation: A as PEFT starts it, B trained."""
    bound = 1 / np.sqrt(layer.inputs)
    lora = make_lora(rng, layer, rank, "F32")
    down = rng.uniform(-bound, bound, lora.down.shape).astype(np.float32)
    size = deviation / (np.sqrt(rank) * bound / np.sqrt(3))
    up = draw_values(rng, lora.up.shape, size).astype(np.float32)
    for kind, values in (("A", down), ("B", up)):
        key = f"{layer.module}.lora_{kind}.weight"
        lora.tensors[key] = ("F32", values.shape, values.tobytes())
    lora.up, lora.down = up.astype(np.float64), down.astype(np.float64)
    return lora


@pytest.mark.parametrize(
    ("dtype", "compute"), [("BF16", "auto"), ("BF16", "f64"), ("F16", "auto"), ("F32", "auto")]
)
def test_two_million_elements_are_rounded_once(
    dtype: str, compute: str, record_property: Callable[[str, object], None]
) -> None:
    """At ‖ΔW‖/‖W‖ of 0.02, 0.1 and 0.2 the result is the exact one but for one in 100,000."""
    wrong = wrong_whole = total = 0
    far = 0.0
    for ratio in (0.02, 0.1, 0.2):
        world, exact = build(dtype, ratio)
        got = world.merge(compute_dtype=compute)
        for name, values in exact.items():
            base = world.values[name]
            whole = np.abs(values) >= (np.abs(base) + np.abs(values - base)) / 16
            unequal = got[name] != round_once(values, dtype)
            wrong += int(unequal.sum())
            wrong_whole += int((unequal & whole).sum())
            total += values.size
            far = max(far, float((np.abs(got[name] - values) / step(values, dtype))[whole].max()))
    share = 1 - wrong / total
    told = (
        f"{dtype} computed in {compute}: {share:.7f} of {total} equal, "
        f"{1 - wrong_whole / total:.7f} outside cancellation, at most {far:.6f} ulp off there"
    )
    record_property("share", told)
    assert total >= 6_000_000
    # fp32 rounds before bf16 does, which costs most where ΔW nearly cancels W
    counted = wrong_whole if (dtype, compute) == ("BF16", "auto") else wrong
    assert 1 - counted / total >= SHARE, told
    assert far <= 1, told
    if compute == "f64" or dtype in ("F16", "F32"):
        assert wrong <= total * 1e-6, told


def test_fp32_cannot_be_had_for_f32() -> None:
    """Computing in the stored dtype is worse, so the measure can tell: the control of this test."""
    world, exact = build("F32", 0.1)
    got = world.merge(compute_dtype="f32")
    shares = [equal_share(got[name], values, "F32") for name, values in exact.items()]
    assert max(shares) < 0.999, shares
