"""Quantised bases: nothing is ever added to packed data."""

from __future__ import annotations

import numpy as np
import pytest
from builders import (
    Tensors,
    encode,
)

from .arena import Arena, Edit

QUANTISED = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
}


@pytest.mark.parametrize("method", QUANTISED)
def test_quantised_base_by_config(arena: Arena, method: str) -> None:
    """A base whose config says it is quantised is refused and the method named."""
    arena.configure_base(quantization_config=QUANTISED[method])
    error = arena.refuses(file=str(arena.base))
    assert method in str(error)
    assert "quanti" in str(error)


def packed_int4(tensors: Tensors) -> None:
    """Store q_proj as GPTQ and AWQ do."""
    for name in [name for name in tensors if name.endswith("q_proj.weight")]:
        del tensors[name]
        path = name.removesuffix(".weight")
        tensors[f"{path}.qweight"] = encode(np.ones((8, 64)), "I32")
        tensors[f"{path}.qzeros"] = encode(np.ones((1, 8)), "I32")
        tensors[f"{path}.scales"] = encode(np.ones((1, 64)), "F16")


def packed_bnb4(tensors: Tensors) -> None:
    """Store q_proj as bitsandbytes does in 4 bits."""
    for name in [name for name in tensors if name.endswith("q_proj.weight")]:
        tensors[name] = encode(np.ones((2048, 1)), "U8")
        tensors[f"{name}.absmax"] = encode(np.ones(64), "F32")
        tensors[f"{name}.quant_map"] = encode(np.ones(16), "F32")


def packed_int8(tensors: Tensors) -> None:
    """Store q_proj as bitsandbytes does in 8 bits."""
    for name in [name for name in tensors if name.endswith("q_proj.weight")]:
        tensors[name] = encode(np.ones((64, 64)), "I8")
        tensors[name.replace(".weight", ".SCB")] = encode(np.ones(64), "F32")


def packed_fp8(tensors: Tensors) -> None:
    """Store q_proj as DeepSeek does: fp8 with block scales."""
    for name in [name for name in tensors if name.endswith("q_proj.weight")]:
        tensors[name] = ("F8_E4M3", (64, 64), bytes([0x38]) * 4096)
        tensors[f"{name}_scale_inv"] = encode(np.ones((1, 1)), "F32")


def scaled_bf16(tensors: Tensors) -> None:
    """Keep q_proj in bf16 but with a scale beside it that says it is not plain weights."""
    for name in [name for name in tensors if name.endswith("q_proj.weight")]:
        tensors[f"{name}_scale_inv"] = encode(np.ones((1, 1)), "F32")


@pytest.mark.parametrize("pack", [packed_int4, packed_bnb4, packed_int8, packed_fp8, scaled_bf16])
def test_quantised_base_by_tensors(arena: Arena, pack: Edit) -> None:
    """Packed tensors without a word in the config are recognised; nothing is added to them."""
    arena.edit_model(pack)
    error = arena.refuses(key="q_proj")
    assert "quanti" in f"{error} {error.hint}"
