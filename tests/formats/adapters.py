"""Adapters by hand for the format tests: zeros of given shapes under given keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from builders import IA3_CONFIG, LORA_CONFIG, Tensors, encode, write_adapter, write_safetensors

PREFIX = "base_model.model."
Shapes = Mapping[str, tuple[int, ...]]


def tensors(shapes: Shapes, value: float = 0.5, dtype: str = "F32") -> Tensors:
    """Return constant tensors; keys are relative to the model unless they start with '='."""
    made = {}
    for key, shape in shapes.items():
        name = key[1:] if key.startswith("=") else PREFIX + key
        made[name] = encode(np.full(shape, value), dtype)
    return made


def lora_shapes(module: str, rank: int = 4, out: int = 6, inputs: int = 5) -> Shapes:
    """Return the shapes of one LoRA."""
    return {f"{module}.lora_A.weight": (rank, inputs), f"{module}.lora_B.weight": (out, rank)}


def lora(place: Path, shapes: Shapes, **config: Any) -> Path:
    """Write a LoRA adapter of r = 4, alpha = 8 with these tensors."""
    usual = LORA_CONFIG | {"r": 4, "target_modules": None, "base_model_name_or_path": "some/base"}
    return write_adapter(place, usual | config, tensors(shapes))


def ia3(place: Path, shapes: Shapes, **config: Any) -> Path:
    """Write an (IA)3 adapter with these tensors."""
    usual = IA3_CONFIG | {"target_modules": None, "feedforward_modules": []}
    return write_adapter(place, usual | config, tensors(shapes))


def weights(place: Path, shapes: Shapes) -> Path:
    """Write a weight file alone."""
    return write_safetensors(place / "adapter_model.safetensors", tensors(shapes), {"format": "pt"})
