"""The adapter zoo: every kind of adapter PEFT trains, on the base it is most likely to hurt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .adapters import Variant, causal, edit_config, edit_tensors, experts, ia3, lora, rename_keys
from .bases import BASES, SEQ_CLS

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
BERT_LINEARS = ["query", "key", "value", "dense"]
GPT2_LINEARS = ["c_attn", "c_proj", "c_fc"]
CONVS = ["conv1", "conv2", "conv3", "point2"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


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


PATTERNS = {
    "rank_pattern": {"q_proj": 3, r"layers\.1\..*down_proj": 5, "^model.layers.0.mlp.up_proj": 2},
    "alpha_pattern": {"v_proj": 11, "layers.1.mlp.down_proj": 3},
}
VARIANTS: dict[str, Variant] = {
    # plain LoRA and its scale
    "lora": Variant("llama", causal(lora(ATTENTION + MLP))),
    "lora-f16": Variant("llama", lora(ATTENTION + MLP, r=5), dtype="f16"),
    "lora-f32": Variant("llama", lora(ATTENTION + MLP, r=3), dtype="f32"),
    "lora-rslora": Variant("llama", lora(ATTENTION, r=5, use_rslora=True)),
    "lora-patterns": Variant("llama", lora(ATTENTION + MLP, **PATTERNS)),
    "lora-rslora-patterns": Variant("llama", lora(ATTENTION + MLP, use_rslora=True, **PATTERNS)),
    "lora-all-linear": Variant("llama", causal(lora("all-linear", r=3))),
    "lora-regex-targets": Variant("llama", lora(r"model\.layers\.1\..*\.(q|down)_proj")),
    "lora-one-layer": Variant("llama", lora(["q_proj", "up_proj"], layers_to_transform=[1])),
    "lora-square": Variant("llama-square", lora(ATTENTION)),
    "lora-sharded": Variant("llama-sharded", lora(ATTENTION + MLP)),
    "lora-bf16-adapter": Variant("llama", lora(ATTENTION + MLP), half=True),
    "lora-pickle": Variant("llama", lora(ATTENTION), pickle=True),
    "lora-name-infix": Variant(
        "llama",
        lora([*ATTENTION, "embed_tokens"], modules_to_save=["lm_head"]),
        edit=name_infix("default"),
    ),
    "lora-other-infix": Variant("llama", lora(ATTENTION, use_dora=True), edit=name_infix("style")),
    "lora-bare-model": Variant(
        "llama",
        lora(ATTENTION, task_type="FEATURE_EXTRACTION"),
        auto="AutoModel",
        rename=under_model,
        base_only=r"lm_head\.weight",
    ),
    "lora-t5": Variant("t5", lora(["q", "v", "wi", "wo"], task_type="SEQ_2_SEQ_LM")),
    "lora-gemma": Variant("gemma", lora(ATTENTION + MLP), dtype="f16"),
    "adalora": Variant(
        "llama",
        lambda: peft.AdaLoraConfig(
            target_modules=list(ATTENTION), init_r=5, target_r=3, total_step=10, lora_alpha=6
        ),
    ),
    "lora-converted-pissa": Variant("llama", lora([]), write=converted_pissa),
    # Conv1D, which stores its weight as (in, out)
    "conv1d-gpt2": Variant("gpt2", lora(GPT2_LINEARS, fan_in_fan_out=True)),
    "conv1d-gpt2-f32": Variant("gpt2", lora(GPT2_LINEARS, r=3), dtype="f32"),
    "conv1d-wrong-flag": Variant(
        "gpt2",
        lora(GPT2_LINEARS, fan_in_fan_out=True),
        edit=lambda path: edit_config(path, fan_in_fan_out=False),
    ),
    "conv1d-bare-base": Variant(
        "gpt2-bare", lora(GPT2_LINEARS), rename=without_prefix("transformer.")
    ),
    "conv1d-dora": Variant("gpt2", lora(GPT2_LINEARS, use_dora=True, fan_in_fan_out=True)),
    "linear-wrong-flag": Variant(
        "llama-square", lora(ATTENTION), edit=lambda path: edit_config(path, fan_in_fan_out=True)
    ),
    # DoRA
    "dora": Variant("llama", lora(ATTENTION + MLP, use_dora=True)),
    "dora-f16": Variant("llama", lora(ATTENTION + MLP, r=5, use_dora=True), dtype="f16"),
    "dora-f32": Variant("llama", lora(ATTENTION + MLP, r=3, use_dora=True), dtype="f32"),
    "dora-patterns": Variant(
        "llama", lora(ATTENTION + MLP, use_dora=True, use_rslora=True, **PATTERNS)
    ),
    "dora-embedding": Variant("llama", lora(["embed_tokens", "q_proj"], use_dora=True)),
    "dora-conv": Variant("conv", lora(CONVS, use_dora=True), dtype="f32"),
    "dora-bert": Variant("bert", lora(BERT_LINEARS, use_dora=True, task_type="SEQ_CLS")),
    # embeddings
    "embedding": Variant("llama", lora(["embed_tokens", "lm_head"]), touch=shift_embeddings),
    "embedding-f32": Variant("llama", lora(["embed_tokens"], r=3, use_rslora=True), dtype="f32"),
    "embedding-plain-module": Variant("conv", lora(["embed", "head"]), dtype="f16"),
    "vocabulary-grown": Variant("llama", lora(ATTENTION), prepare=grow_vocabulary),
    "token-rows": Variant("llama", lora(ATTENTION, trainable_token_indices=[7, 0, 99])),
    "token-rows-named": Variant(
        "llama", lora(ATTENTION, trainable_token_indices={"embed_tokens": [5, 2], "lm_head": [9]})
    ),
    "token-rows-tied": Variant("llama-tied", lora(ATTENTION, trainable_token_indices=[4, 3])),
    # convolutions
    "conv": Variant("conv", lora(CONVS, r=3), dtype="f32"),
    "conv-f16": Variant("conv", lora([*CONVS, "head"], r=5, use_rslora=True), dtype="f16"),
    "conv-bf16": Variant("conv", lora([*CONVS, "square2"]), dtype="bf16"),
    "conv-lora-bias": Variant("conv", lora(CONVS, lora_bias=True), dtype="f32"),
    # biases and replaced modules
    "lora-bias": Variant("bert", lora(BERT_LINEARS, lora_bias=True, task_type="SEQ_CLS")),
    "lora-bias-conv1d": Variant("gpt2", lora(GPT2_LINEARS, lora_bias=True)),
    "bias-all": Variant("gpt2", lora(["c_attn"], bias="all"), dtype="f16"),
    "bias-lora-only": Variant("bert", lora(["query", "value"], bias="lora_only")),
    "modules-to-save": Variant("llama", lora(ATTENTION, modules_to_save=["lm_head", "norm"])),
    "modules-to-save-tied": Variant("llama-tied", lora(ATTENTION, modules_to_save=["lm_head"])),
    "modules-to-save-tied-embedding": Variant(
        "llama-tied", lora(ATTENTION, modules_to_save=["embed_tokens"])
    ),
    "seq-cls": Variant("bert", lora(["query", "value"], task_type="SEQ_CLS"), dtype="f32"),
    "seq-cls-new-head": Variant(
        "bert-bare", lora(["query", "value"], task_type="SEQ_CLS"), rename=without_prefix("bert.")
    ),
    "seq-cls-decoder": Variant(
        "llama",
        lora(ATTENTION, task_type="SEQ_CLS"),
        auto=SEQ_CLS,
        base_only=r"lm_head\.weight",
    ),
    # experts
    "experts": Variant("qwen-moe", experts(*EXPERTS)),
    "experts-reversed": Variant("qwen-moe", experts(*reversed(EXPERTS))),
    "experts-gate-up": Variant("qwen-moe", experts(EXPERTS[0], use_rslora=True)),
    "experts-down": Variant("qwen-moe", experts(EXPERTS[1]), dtype="f32"),
    "experts-attention": Variant(
        "qwen-moe", lora(ATTENTION, r=5, target_parameters=EXPERTS, rank_pattern={"down_proj": 2})
    ),
    "experts-all-linear": Variant("qwen-moe", causal(lora("all-linear", r=2))),
    "experts-router": Variant("qwen-moe", experts("mlp.gate.weight", EXPERTS[0])),
    "experts-fused-base": Variant("qwen-moe-fused", experts(*EXPERTS), dtype="f16"),
    "experts-mixtral": Variant("mixtral", experts(*EXPERTS)),
    "experts-gpt-oss": Variant("gpt-oss", experts(*EXPERTS)),
    "experts-gpt-oss-square": Variant("gpt-oss-square", experts(*EXPERTS)),
    "experts-llama4": Variant(
        "llama4", experts("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj")
    ),
    "experts-old-layout": Variant("qwen-moe", experts(*EXPERTS), edit=old_expert_layout),
    "per-expert": Variant("qwen-moe", lora([]), write=QWEN_V4),
    "per-expert-fused-base": Variant("qwen-moe-fused", lora([]), write=QWEN_V4),
    "per-expert-mixtral": Variant("mixtral", lora([]), write=MIXTRAL_V4),
    # transformers 4 and 5 name vision-language models differently
    "llava": Variant("llava", lora([*ATTENTION, "out_proj", "linear_1"])),
    "llava-new-base": Variant("llava-new", lora([*ATTENTION, "out_proj"])),
    "llava-hub-base": Variant("llava-hub", lora([*ATTENTION, "out_proj"])),
    "llava-old": Variant("llava", lora([*ATTENTION, "linear_1"]), edit=OLD_LLAVA),
    "llava-old-new-base": Variant("llava-new", lora(ATTENTION), edit=OLD_LLAVA),
    "llava-old-hub-base": Variant("llava-hub", lora([*ATTENTION, "lm_head"]), edit=OLD_LLAVA),
    "qwen2-vl": Variant("qwen2-vl", lora([*ATTENTION, "qkv"])),
    "qwen2-vl-new-base": Variant("qwen2-vl-new", lora([*ATTENTION, "qkv"])),
    "qwen2-vl-old": Variant("qwen2-vl", lora([*ATTENTION, "qkv"]), edit=OLD_QWEN2_VL),
    "qwen2-vl-old-new-base": Variant("qwen2-vl-new", lora(ATTENTION), edit=OLD_QWEN2_VL),
    # (IA)3
    "ia3": Variant("llama", causal(ia3(["k_proj", "v_proj", "down_proj"], ["down_proj"]))),
    "ia3-f16": Variant("llama", ia3(["k_proj", "v_proj", "down_proj"], ["down_proj"]), dtype="f16"),
    "ia3-square": Variant("llama-square", ia3(["q_proj", "o_proj"], ["o_proj"])),
    "ia3-bias": Variant("bert", ia3(["key", "value", "output.dense"], ["output.dense"])),
    "ia3-conv1d": Variant("gpt2", ia3(["c_attn", "mlp.c_proj"], ["mlp.c_proj"])),
    "ia3-conv1d-square": Variant("gpt2", ia3(["attn.c_proj"], []), dtype="f32"),
    "ia3-conv1d-square-ff": Variant("gpt2", ia3(["attn.c_proj"], ["attn.c_proj"]), dtype="f32"),
    "ia3-t5": Variant("t5", ia3(["k", "v", "wo"], ["wo"]), dtype="f32"),
    "ia3-conv": Variant("conv", ia3(["conv2", "conv3", "square2"], ["conv3"]), dtype="f32"),
    "ia3-conv-square-ff": Variant("conv", ia3(["conv2", "square2"], ["square2"]), dtype="f16"),
    "ia3-conv-groups": Variant("conv", ia3(["grouped", "head"], ["grouped"]), dtype="f32"),
    "ia3-modules-to-save": Variant(
        "llama", ia3(["k_proj", "v_proj"], [], modules_to_save=["lm_head"])
    ),
}


UNMERGED: dict[str, Variant] = {
    "tied-embedding-only": Variant(
        "llama-tied", causal(lora(["embed_tokens", "q_proj"])), dtype="f32"
    ),
    "tied-head-only": Variant("llama-tied", causal(lora(["lm_head", "q_proj"])), dtype="f32"),
    "tied-both-alike": Variant(
        "llama-tied",
        causal(lora(["embed_tokens", "lm_head"], ensure_weight_tying=True)),
        dtype="f32",
    ),
    "tied-gpt2": Variant("gpt2", causal(lora(["wte", "c_attn"])), dtype="f32"),
    "tied-gemma": Variant("gemma", causal(lora(["embed_tokens", "q_proj"])), dtype="f32"),
    "attention-module": Variant("conv", lora(["mha"], r=3), dtype="f32"),
    "pointwise-conv3d": Variant("conv", lora(["point3"], r=3), dtype="f32"),
}
