"""Small worlds for the base tests: Llama-named bases, adapters of chosen modules, and answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from algebra.exact import check, load
from builders import (
    LORA_CONFIG,
    Tensors,
    base_tensors,
    encode,
    llama_config,
    read_checkpoint,
    write_adapter,
    write_base,
)

PREFIX = "base_model.model."
EMBED, HEAD = "model.embed_tokens", "lm_head"
VOCAB, HIDDEN = 96, 64


def make_base(place: Path, *, tied: bool = False, head: Any = None, **config: Any) -> Path:
    """Write a Llama of one layer in F32; `head` adds a stored head to a tied one."""
    told = llama_config(layers=1, dtype="F32", tied=tied) | config
    tensors = base_tensors(told, "F32")
    if head is not None:
        tensors[f"{HEAD}.weight"] = encode(np.asarray(head, np.float32), "F32")
    return write_base(place, told, tensors)


def values(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return F32-exact normal values."""
    return (rng.standard_normal(shape) * 0.1).astype(np.float32).astype(np.float64)


def lora_keys(module: str, up: np.ndarray, down: np.ndarray) -> Tensors:
    """Return PEFT's tensors of a LoRA on a linear, or on the embedding."""
    names = ("lora_A.weight", "lora_B.weight")
    if module == EMBED:
        names = ("lora_embedding_A", "lora_embedding_B")
    made = (encode(down.astype(np.float32), "F32"), encode(up.astype(np.float32), "F32"))
    return {f"{PREFIX}{module}.{name}": tensor for name, tensor in zip(names, made, strict=True)}


def adapter(place: Path, tensors: Tensors, **config: Any) -> Path:
    """Write a LoRA adapter of scale one (r = alpha = 4)."""
    usual = LORA_CONFIG | {"r": 4, "lora_alpha": 4, "target_modules": None}
    return write_adapter(place, usual | config, tensors)


def read(place: Path) -> dict[str, np.ndarray]:
    """Return every tensor of a directory as fp64."""
    return {name: load(tensor) for name, tensor in read_checkpoint(place).items()}


def config_of(place: Path) -> dict[str, Any]:
    """Return config.json."""
    return json.loads((place / "config.json").read_text())


def assert_values(place: Path, wanted: Mapping[str, np.ndarray]) -> None:
    """Assert that a directory holds exactly these tensors, each rounded once to F32."""
    got = read(place)
    assert got.keys() == wanted.keys()
    for name, exact in wanted.items():
        check(got[name], exact, 64 * (np.abs(exact) + 1), "F32", "F64")


def files_of(place: Path) -> set[str]:
    """Return the relative name of every file below a folder."""
    return {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()}
