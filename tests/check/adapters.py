"""PEFT adapters for a tiny Llama, each a good one with one thing changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from builders import (
    LINEARS,
    LORA_CONFIG,
    Tensors,
    encode,
    llama_config,
    lora_tensors,
    write_adapter,
)

from adaptertools.adapter.model import Adapter
from adaptertools.formats.opening import open_adapter

BASE = llama_config(layers=2)
MODEL = "base_model.model.model"
Edit = Callable[[Tensors], Tensors]


def lora(place: Path, *edits: Edit, rank: int = 8, targets: Any = LINEARS, **config: Any) -> Path:
    """Write a LoRA of this rank and alpha 16 on every linear, after `edits` of its tensors."""
    dtype = config.pop("dtype", "F32")
    tensors = lora_tensors(BASE, rank, 16 / rank, targets, dtype=dtype)
    for edit in edits:
        tensors = edit(tensors)
    fields = {"r": rank, "lora_alpha": 16, "target_modules": sorted(targets), **config}
    return write_adapter(place, LORA_CONFIG | fields, tensors)


def opened(place: Path, *edits: Edit, **options: Any) -> Adapter:
    """Write such a LoRA and open it."""
    return open_adapter(lora(place, *edits, **options))


def plus(**shapes: tuple[int, ...]) -> Edit:
    """Add tensors of halves; `__` in a name stands for a dot, and names are the model's."""
    made = {
        f"base_model.model.{name.replace('__', '.')}": encode(np.full(shape, 0.5), "F32")
        for name, shape in shapes.items()
    }
    return lambda tensors: tensors | made


def without(part: str) -> Edit:
    """Leave out the tensors whose names have this part."""
    return lambda tensors: {name: t for name, t in tensors.items() if part not in name}


def renamed(old: str, new: str) -> Edit:
    """Write another name."""
    return lambda tensors: {name.replace(old, new): t for name, t in tensors.items()}


def zeros(part: str) -> Edit:
    """Make the tensors whose names have this part zero."""
    return lambda tensors: {
        name: (t[0], t[1], bytes(len(t[2]))) if part in name else t for name, t in tensors.items()
    }


def other_rank(part: str, rank: int) -> Edit:
    """Write the modules whose names have this part with another rank."""

    def edit(tensors: Tensors) -> Tensors:
        made = dict(tensors)
        for name, (dtype, (rows, columns), _) in tensors.items():
            if part in name:
                shape = (rank, columns) if "lora_A" in name else (rows, rank)
                made[name] = encode(np.full(shape, 0.5), dtype)
        return made

    return edit


def experts(*numbers: int, names: tuple[str, ...] = ("w1", "w2", "w3")) -> Edit:
    """Add LoRA on the modules of some experts of layer 0."""
    shapes = {}
    for number in numbers:
        for name in names:
            at = f"model__layers__0__block_sparse_moe__experts__{number}__{name}"
            shapes[f"{at}__lora_A__weight"] = (8, 64)
            shapes[f"{at}__lora_B__weight"] = (64, 8)
    return plus(**shapes)


def without_field(place: Path, field: str) -> Path:
    """Take a field out of the config."""
    file = place / "adapter_config.json"
    config: Mapping[str, Any] = json.loads(file.read_text())
    file.write_text(json.dumps({name: v for name, v in config.items() if name != field}))
    return place
