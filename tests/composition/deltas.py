"""What an adapter does, as dense fp64 matrices, read by the tests' own reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from builders import LORA_CONFIG, decode, encode, read_safetensors, write_adapter

PREFIX = "base_model.model."
FILE = "adapter_model.safetensors"


def config_of(adapter: Path) -> dict[str, Any]:
    """Return an adapter's config."""
    return json.loads((adapter / "adapter_config.json").read_text())


def number_of(config: dict[str, Any], pattern: str, usual: str, module: str) -> float:
    """Return a module's rank or alpha by PEFT's own rule: a pattern is a module's ending."""
    named = config.get(pattern) or {}
    found = [v for key, v in named.items() if f".{module}".endswith(f".{key}")]
    return float(found[0] if found else config[usual])


def deltas(adapter: Path) -> dict[str, np.ndarray]:
    """Return ΔW [out, in·kernel] of every module of a PEFT LoRA."""
    tensors, config = read_safetensors(adapter / FILE), config_of(adapter)
    found = {}
    for key in tensors:
        if ".lora_A" not in key:
            continue
        module = key.removeprefix(PREFIX).split(".lora_A")[0]
        down, up = (
            decode(tensors[k]).astype(np.float64) for k in (key, key.replace("lora_A", "lora_B"))
        )
        rank = number_of(config, "rank_pattern", "r", module)
        assert rank == down.shape[0]
        scale = number_of(config, "alpha_pattern", "lora_alpha", module) / rank
        found[module] = scale * up.reshape(len(up), -1) @ down.reshape(len(down), -1)
    return found


def write_lora(
    place: Path,
    factors: dict[str, tuple[np.ndarray, np.ndarray]],
    alpha: float,
    dtype: str = "F32",
    **config: object,
) -> Path:
    """Write a LoRA of (up, down) by module, all of one rank."""
    tensors = {}
    for module, (up, down) in factors.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = encode(down, dtype)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = encode(up, dtype)
    rank = next(iter(factors.values()))[1].shape[0]
    told = {"r": rank, "lora_alpha": alpha, "target_modules": sorted(factors), **config}
    return write_adapter(place, LORA_CONFIG | told, tensors)


def relative(one: np.ndarray, other: np.ndarray) -> float:
    """Return ‖one − other‖ / ‖other‖."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))
