"""A base as torchtune has it: a LoRA model, the base's weights in it, and the way back to HF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from cases import config
from safetensors.torch import load_file
from torchtune.models.convert_weights import hf_to_tune, tune_to_hf
from torchtune.models.llama2 import lora_llama2
from torchtune.models.qwen2 import lora_qwen2
from torchtune.models.qwen2._convert_weights import qwen2_hf_to_tune, qwen2_tune_to_hf

Tensors = dict[str, torch.Tensor]


def heads(base: Path) -> dict[str, int]:
    """Return the numbers that torchtune's converters ask for."""
    hf = config(base)
    names = {"num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads"}
    return {key: hf[name] for key, name in (names | {"dim": "hidden_size"}).items()}


def is_qwen(base: Path) -> bool:
    """Whether the base is a Qwen2, whose rows torchtune leaves in HF order."""
    return config(base)["model_type"] == "qwen2"


def base_weights(base: Path) -> Tensors:
    """Return a base's weights in torchtune's form, by its own converter."""
    convert = qwen2_hf_to_tune if is_qwen(base) else hf_to_tune
    return convert(load_file(base / "model.safetensors"), **heads(base))


def to_hf(base: Path, weights: Tensors) -> Tensors:
    """Return torchtune weights in Hugging Face's form, by its own converter."""
    convert = qwen2_tune_to_hf if is_qwen(base) else tune_to_hf
    return convert(weights, **heads(base))


def build(base: Path, **lora: Any) -> torch.nn.Module:
    """Return torchtune's LoRA model of a base, base weights loaded."""
    hf = config(base)
    settings = {
        "vocab_size": hf["vocab_size"],
        "num_layers": hf["num_hidden_layers"],
        "num_heads": hf["num_attention_heads"],
        "num_kv_heads": hf["num_key_value_heads"],
        "embed_dim": hf["hidden_size"],
        "max_seq_len": hf["max_position_embeddings"],
        "intermediate_dim": hf["intermediate_size"],
        "norm_eps": hf["rms_norm_eps"],
    }
    if is_qwen(base):
        model = lora_qwen2(**settings, rope_base=hf["rope_theta"], **lora)
    else:
        model = lora_llama2(**settings, **lora)
    missing, unexpected = model.load_state_dict(base_weights(base), strict=False)
    if unexpected or any("lora_" not in name and "magnitude" not in name for name in missing):
        raise ValueError(f"missing {missing}, unexpected {unexpected}")
    return model.eval()
