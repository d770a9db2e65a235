"""PEFT adapters written by hand, and what each means: numpy and json, nothing of the library.

Every factor holds small integers over a power of two, so that sums of products are exact in fp64
whatever their order: two ways to one ΔW are equal bit for bit, or they differ.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from builders import (
    IA3_CONFIG,
    LORA_CONFIG,
    Tensors,
    decode,
    encode,
    llama_config,
    read_safetensors,
    write_adapter,
    write_json,
)

PREFIX = "base_model.model."
ROUNDINGS = {"F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
LINEARS = {
    "self_attn.q_proj": ("width", "hidden"),
    "self_attn.k_proj": ("kv", "hidden"),
    "self_attn.v_proj": ("kv", "hidden"),
    "self_attn.o_proj": ("hidden", "width"),
    "mlp.gate_proj": ("inter", "hidden"),
    "mlp.up_proj": ("inter", "hidden"),
    "mlp.down_proj": ("hidden", "inter"),
}
LLAMA: dict[str, Any] = {
    **llama_config(layers=3, hidden=96, heads=8, kv_heads=2, vocab=80, inter=144, dtype="F32"),
    "head_dim": 16,
}
Spec = Mapping[str, Any]


@dataclass
class Source:
    """A PEFT adapter being made: the config of its base, its own config, its tensors."""

    base: dict[str, Any] = field(default_factory=lambda: dict(LLAMA), repr=False)
    config: dict[str, Any] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict, repr=False)
    kind: str = "LORA"

    def put(self, key: str, values: np.ndarray, dtype: str = "F32") -> None:
        self.tensors[PREFIX + key] = encode(values, dtype)

    def lora(
        self, module: str, out: int, in_: int, rank: int, dtypes: Sequence[str] = ("F32", "F32")
    ) -> None:
        """Add A [rank, in] and B [out, rank] of one linear."""
        self.put(f"{module}.lora_A.weight", numbers(f"{module}.A", (rank, in_)), dtypes[0])
        self.put(f"{module}.lora_B.weight", numbers(f"{module}.B", (out, rank)), dtypes[-1])

    def write(self, place: Path) -> Path:
        """Write the adapter, with its base's config.json at `place`/base; returns its folder."""
        write_json(place / "base" / "config.json", self.base)
        usual = IA3_CONFIG if self.kind == "IA3" else LORA_CONFIG
        config = {**usual, "peft_type": self.kind, **self.config}
        return write_adapter(place / "source", config, self.tensors)


def numbers(name: str, shape: Iterable[int], top: int = 8) -> np.ndarray:
    """Return integers in ±top over 16 that depend on the name only; none is zero."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    drawn = rng.integers(1, top + 1, tuple(shape)) * rng.choice((-1, 1), tuple(shape))
    return drawn / 16


def llama_shape(module: str, base: Spec = LLAMA) -> tuple[int, int]:
    """Return (out, in) of a linear of a Llama by its path."""
    if module.endswith("lm_head"):
        return base["vocab_size"], base["hidden_size"]
    sizes = {
        "hidden": base["hidden_size"],
        "inter": base["intermediate_size"],
        "width": base["num_attention_heads"] * base["head_dim"],
        "kv": base["num_key_value_heads"] * base["head_dim"],
    }
    out, in_ = LINEARS[".".join(module.split(".")[-2:])]
    return sizes[out], sizes[in_]


def llama_modules(names: Iterable[str] = LINEARS, layers: Iterable[int] = range(3)) -> list[str]:
    """Return the paths of linears of a Llama, layer by layer."""
    return [f"model.layers.{n}.{name}" for n in layers for name in names]


# --- what a PEFT adapter means, by PEFT's own rules ----------------------------------------------


@dataclass(frozen=True)
class Meaning:
    """What an adapter does to one parameter; `mass` bounds the absolute terms of `value`."""

    kind: str
    value: np.ndarray
    mass: np.ndarray | None = None
    beside: Mapping[str, np.ndarray] = field(default_factory=dict)


def peft_meanings(folder: Path) -> dict[str, Meaning]:
    """Return what every target of a PEFT folder means, from its raw bytes."""
    import json

    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = read_safetensors(folder / "adapter_model.safetensors")
    values = {k.removeprefix(PREFIX): decode(t).astype(np.float64) for k, t in tensors.items()}
    return meanings_of(values, config)


def meanings_of(values: Mapping[str, np.ndarray], config: Spec) -> dict[str, Meaning]:
    """Return what the tensors of a PEFT adapter mean, by target."""
    found: dict[str, Meaning] = {}
    modules = [k.rpartition(".lora_")[0] for k in values if ".lora_" in k]
    for key, value in values.items():
        if re.search(r"\.lora_(embedding_)?A(\.weight)?$", key):
            module = key.rpartition(".lora_")[0]
            found[f"{module}.weight"] = _low_rank(module, key, values, config)
        elif key.endswith(".ia3_l"):
            axis = "in" if value.shape[0] == 1 else "out"
            found[f"{key.removesuffix('.ia3_l')}.weight"] = Meaning(axis, value.reshape(-1))
        elif key.endswith(".token_adapter.trainable_tokens_delta"):
            module = key.removesuffix(".token_adapter.trainable_tokens_delta")
            index = config["trainable_token_indices"][module.rpartition(".")[2]]
            found[f"{module}.weight"] = Meaning("rows", value, None, {"index": np.array(index)})
        elif ".lora_" not in key:
            name = key.replace(".base_layer.", ".")
            kind = "replace beside" if name.rpartition(".")[0] in modules else "replace"
            found.setdefault(f"{name} value", Meaning(kind, value))
    return found


def _low_rank(module: str, key: str, values: Mapping[str, np.ndarray], config: Spec) -> Meaning:
    up = values[key.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B")]
    down, beside = values[key], {}
    scale = scale_of(module, down.shape[0], config)
    if f"{module}.lora_E" in values:
        down = down * values[f"{module}.lora_E"]
        scale = config["lora_alpha"] / (down.shape[0] + 1e-5)
    for name in ("lora_magnitude_vector", "lora_B.bias"):
        if f"{module}.{name}" in values:
            beside[name] = values[f"{module}.{name}"].reshape(-1)
    up = up.reshape(up.shape[:2])
    value = np.einsum("or,ri...->oi...", up, down) * scale
    mass = np.einsum("or,ri...->oi...", np.abs(up), np.abs(down)) * abs(scale)
    return Meaning("delta", value, mass, beside)


def scale_of(module: str, rank: int, config: Spec) -> float:
    """PEFT's rule: the alpha of the first pattern that ends the path, over rank or its root."""
    alpha = first_match(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def first_match(patterns: Spec, module: str, usual: float) -> float:
    hits = (v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", module))
    return next(hits, usual)
