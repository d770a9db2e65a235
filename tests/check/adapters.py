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
    fields = {"r": rank, "lora_alpha": 16, "target_modules": sorted(targets)}
    fields |= {"base_model_name_or_path": "me/base", **config}
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


# --- what may be added ---------------------------------------------------------------------------

Q = "model__layers__0__self_attn__q_proj"
EXPERT = "model__layers__0__mlp__experts"
EMBEDDING = plus(
    model__embed_tokens__lora_embedding_A=(8, 96), model__embed_tokens__lora_embedding_B=(64, 8)
)
HEAD = plus(lm_head__lora_A__weight=(8, 64), lm_head__lora_B__weight=(96, 8))
MAGNITUDE = plus(**{f"{Q}__lora_magnitude_vector": (64,)})
EXPERT_MAGNITUDE = plus(
    model__layers__0__block_sparse_moe__experts__0__w1__lora_magnitude_vector=(64,)
)
COPY = plus(**{f"{Q}__base_layer__weight": (64, 64)})
COPIED_HEAD = plus(lm_head__base_layer__weight=(96, 64))
STACKED = plus(**{f"{EXPERT}__lora_A__weight": (16, 64), f"{EXPERT}__lora_B__weight": (64, 16)})
CONV = plus(conv__lora_A__weight=(8, 3, 2, 2), conv__lora_B__weight=(5, 8, 1, 1))
ROWS = plus(model__embed_tokens__token_adapter__trainable_tokens_delta=(2, 64))
NORM = plus(model__norm__weight=(64,))
SAVED = plus(model__embed_tokens__weight=(96, 64))
BIAS = plus(**{f"{Q}__bias": (64,)})
COPIED_BIAS = plus(**{f"{Q}__base_layer__bias": (64,)})
SCORE = plus(score__weight=(2, 64), score__bias=(2,))
POSITIONS = plus(wpe__lora_embedding_A=(8, 32), wpe__lora_embedding_B=(64, 8))
CONV_1D = plus(conv__lora_A__weight=(8, 3, 2), conv__lora_B__weight=(5, 8, 1))
