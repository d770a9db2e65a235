"""Scales and dtypes: what is folded into weights keeps its value, or is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import adaptertools

from .catalogue import CASES, llama
from .models import MIXTRAL
from .running import converted
from .sources import Source, llama_modules, llama_shape, numbers


@pytest.mark.parametrize("to", ["mlx-lora", "torchtune", "gguf-lora", "litgpt", "nemo-lora"])
def test_a_scale_of_nothing_among_others(tmp_path: Path, to: str) -> None:
    """Modules with alpha 0 become zero factors; the others keep their change."""
    assert converted(tmp_path, CASES["partly-no-effect"](), to).error < 1e-6


def test_no_effect_in_gguf(tmp_path: Path) -> None:
    """An adapter that PEFT scales by 0 changes nothing in llama.cpp either."""
    assert converted(tmp_path, CASES["no-effect"](), "gguf-lora").error == 0


@pytest.mark.parametrize("to", ["mlx-lora", "gguf-lora"])
def test_overflow_is_refused(tmp_path: Path, to: str) -> None:
    """Values beyond fp16 are an error, never written as infinity."""
    source = llama(llama_modules(["self_attn.q_proj"]))
    source.put("model.layers.0.self_attn.q_proj.lora_B.weight", np.full((128, 3), 1e6))
    with pytest.raises(adaptertools.AdapterError):
        converted(tmp_path, source, to, dtype="F16")


def test_folding_into_infinity_is_refused(tmp_path: Path) -> None:
    """A scale that does not fit the stored dtype is an error; in a wider one it fits."""
    source = llama(llama_modules(["self_attn.q_proj"]), dtype="F16")
    source.config["alpha_pattern"] = {"layers.2.self_attn.q_proj": 9e6}
    with pytest.raises(adaptertools.AdapterError, match="too large"):
        converted(tmp_path, source, "mlx-lora")
    assert {path.name for path in tmp_path.iterdir()} == {"source", "base"}
    assert converted(tmp_path, source, "mlx-lora", dtype="f32").error < 1e-6


@pytest.mark.parametrize("to", ["litgpt", "nemo-lora"])
def test_up_keeps_a_wider_dtype_than_down(tmp_path: Path, to: str) -> None:
    """A in bf16 with B in fp32: nothing of B is rounded."""
    fields = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}
    source = Source(config=fields)
    for module in llama_modules(["self_attn.q_proj", "self_attn.v_proj"]):
        out, in_ = llama_shape(module)
        source.put(f"{module}.lora_A.weight", numbers(f"{module}.A", (3, in_)), "BF16")
        source.put(f"{module}.lora_B.weight", numbers(f"{module}.B", (out, 3)) + 1e-4)
    assert converted(tmp_path, source, to).error < 1e-7


@pytest.mark.parametrize("to", ["gguf-lora", "mlx-lora"])
def test_experts_in_bf16_and_fp16(tmp_path: Path, to: str) -> None:
    """A stack of experts of both 16-bit dtypes needs fp32."""
    source = Source(base=dict(MIXTRAL), config={"r": 3, "lora_alpha": 6, "target_modules": ["w1"]})
    for expert, dtype in enumerate(("BF16", "F16", "BF16")):
        path = f"model.layers.0.block_sparse_moe.experts.{expert}.w1"
        large = 2.0**20 if dtype == "BF16" else 1
        source.put(f"{path}.lora_A.weight", numbers(f"{path}.A", (3, 96)) * large, dtype)
        source.put(f"{path}.lora_B.weight", numbers(f"{path}.B", (144, 3)), dtype)
    assert converted(tmp_path, source, to).error < 1e-7


def test_a_narrower_dtype_is_told(tmp_path: Path) -> None:
    """What the format cannot store is rounded, and said."""
    source = llama(llama_modules(["self_attn.q_proj"]), dtype="F64")
    result = converted(tmp_path, source, "gguf-lora")
    assert "cast" in {change.kind for change in result.plan.changes}
