"""A saved base layer beside its update (a grown vocabulary): the update is of the saved one."""

from __future__ import annotations

import numpy as np
import pytest

from .exact import check, store
from .layers import Layer, base_of, make_lora
from .world import World, draw_values


@pytest.mark.parametrize("rows", [9, 12], ids=["same size", "grown"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("layout", ["embedding", "out in"])
def test_an_update_is_of_the_saved_base_layer(layout: str, dora: bool, rows: int) -> None:
    """PEFT loads `base_layer.weight` first; DoRA's norm is of it, not of the old base."""
    rng = np.random.default_rng(6)
    world = World("F32")
    old = Layer(layout, 5, 9, module="net.emb") if layout == "embedding" else Layer(layout, 9, 5)
    base_of(rng, world, old)
    grown = {"embedding": Layer(layout, 5, rows, module=old.module)}.get(
        layout, Layer(layout, rows, 5)
    )
    saved, stored = store(draw_values(rng, grown.shape, 2.0), "F32")
    lora = make_lora(rng, grown, 2, "F32", dora=dora)
    tensors = {**lora.tensors, f"{old.module}.base_layer.weight": stored}
    world.adapter({"r": 2, "lora_alpha": 4, "use_dora": dora}, tensors)
    got = world.merge()[f"{old.module}.weight"]
    check(got, *lora.apply(saved, 2.0), "F32", "F64")
