"""What an opened adapter means, in the terms of `convert.sources`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from convert.sources import Meaning


def doubled(factor: Any) -> np.ndarray:
    return factor.read().double().numpy()


def meanings_read(updates: Iterable[Any]) -> dict[str, Meaning]:
    """Return what the updates of an opened adapter mean, by target."""
    return dict(_meaning(update) for update in updates)


def _meaning(update: Any) -> tuple[str, Meaning]:
    name = update.target.name
    if update.kind == "low_rank":
        return name, _low_rank(update)
    if update.kind == "scaling":
        return name, Meaning(update.axis, update.scale * doubled(update.vector).reshape(-1))
    if update.kind == "rows":
        return name, Meaning(
            "rows", doubled(update.values), None, {"index": np.array(update.index)}
        )
    return f"{name} value", Meaning("replace", doubled(update.value))


def _low_rank(update: Any) -> Meaning:
    up, down = doubled(update.up), doubled(update.down)
    if update.gate is not None:
        up = up * doubled(update.gate).reshape(-1)
    named = {"lora_magnitude_vector": update.magnitude, "lora_B.bias": update.bias}
    beside = {name: doubled(f).reshape(-1) for name, f in named.items() if f is not None}
    value = np.einsum("or,ri...->oi...", up, down) * update.scale
    return Meaning("delta", value, None, beside)
