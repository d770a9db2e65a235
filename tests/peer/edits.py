"""Adapters as PEFT does not write them today: older layouts, other names, trained bases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .adapters import ATTENTION, edit_config, edit_tensors, lora, rename_keys
from .bases import BASES


def old_expert_layout(path: Path) -> None:
    """Write the packing of PEFT 0.18 and older, which read every 3-D parameter as (E, in, out)."""
    count = 4

    def turned(name: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        if name.endswith("lora_A.weight"):
            up = tensors[name.replace("lora_A", "lora_B")]
            return torch.cat([up[:, expert::count].T for expert in range(count)])
        down = tensors[name.replace("lora_B", "lora_A")].chunk(count)
        return torch.stack([part.T for part in down], dim=2).flatten(1)

    before = load_file(path / "adapter_model.safetensors")
    edit_tensors(path, lambda name, _: (name, turned(name, before)))
    edit_config(path, peft_version="0.18.1")


def per_expert_adapter(
    module: str, parts: dict[str, tuple[int, int]]
) -> Callable[[Path, Path], None]:
    """Write what PEFT saved under transformers 4, where each expert was a Linear of its own."""

    def write(_base: Path, out: Path) -> None:
        generator = torch.Generator().manual_seed(44)
        tensors = {}
        for layer in range(2):
            for expert in range(4):
                for part, (rows, columns) in parts.items():
                    key = f"base_model.model.model.layers.{layer}.{module}.{expert}.{part}"
                    for role, shape in (("A", (3, columns)), ("B", (rows, 3))):
                        value = torch.randn(shape, generator=generator) * 0.1
                        tensors[f"{key}.lora_{role}.weight"] = value
        config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=sorted(parts))
        config.save_pretrained(out)
        save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})

    return write


QWEN_PARTS = {"gate_proj": (20, 48), "up_proj": (20, 48), "down_proj": (48, 20)}
MIXTRAL_PARTS = {"w1": (80, 48), "w3": (80, 48), "w2": (48, 80)}
QWEN_V4 = per_expert_adapter("mlp.experts", QWEN_PARTS)
MIXTRAL_V4 = per_expert_adapter("block_sparse_moe.experts", MIXTRAL_PARTS)
OLD_LLAVA = rename_keys(
    (r"^base_model\.model\.model\.language_model\.", "base_model.model.language_model.model."),
    (r"^base_model\.model\.lm_head\.", "base_model.model.language_model.lm_head."),
    (r"^base_model\.model\.model\.vision_tower\.", "base_model.model.vision_tower.vision_model."),
    (r"^base_model\.model\.model\.multi_modal", "base_model.model.multi_modal"),
)
OLD_QWEN2_VL = rename_keys(
    (r"^base_model\.model\.model\.language_model\.", "base_model.model.model."),
    (r"^base_model\.model\.model\.visual\.", "base_model.model.visual."),
)


def name_infix(name: str) -> Callable[[Path], None]:
    """An edit that leaves the adapter's name inside every key, as state-dict dumps do."""
    return rename_keys(
        (r"(lora_embedding_[AB])$", rf"\1.{name}"),
        (r"(lora_magnitude_vector)$", rf"\1.{name}.weight"),
        (r"(lora_[AB])\.weight$", rf"\1.{name}.weight"),
        (r"\.lm_head\.weight$", rf".lm_head.modules_to_save.{name}.weight"),
    )


def shift_embeddings(model: nn.Module) -> None:
    """Train the embeddings themselves too, so the saved copies differ from the base's."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("embed_tokens.base_layer.weight", "lm_head.base_layer.weight")):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)


def grow_vocabulary(model: nn.Module) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model.resize_token_embeddings(107, mean_resizing=False)


def without_prefix(prefix: str) -> Callable[[str], str]:
    return lambda name: name.removeprefix(prefix)


def under_model(name: str) -> str:
    return f"model.{name}"


def converted_pissa(base: Path, out: Path) -> None:
    """Save a PiSSA adapter the documented way back: as a plain LoRA for the pristine base."""
    start = out.parent / f"{out.name}-start"
    model = BASES["llama"].load(base, torch.float32)
    config = lora(ATTENTION, init_lora_weights="pissa")()
    wrapped = peft.get_peft_model(model, config)
    wrapped.peft_config["default"].init_lora_weights = True
    wrapped.save_pretrained(start)
    wrapped.peft_config["default"].init_lora_weights = "pissa"
    generator = torch.Generator().manual_seed(12)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    wrapped.save_pretrained(out, path_initial_model_for_weight_conversion=str(start))
