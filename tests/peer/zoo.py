"""The adapter zoo: every kind of adapter PEFT trains, on the base it is most likely to hurt."""

from __future__ import annotations

import peft

from . import edits
from .adapters import (
    ATTENTION,
    BERT_LINEARS,
    CONVS,
    EXPERTS,
    GPT2_LINEARS,
    MLP,
    Variant,
    causal,
    edit_config,
    experts,
    ia3,
    lora,
)
from .bases import SEQ_CLS

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
        edit=edits.name_infix("default"),
    ),
    "lora-other-infix": Variant(
        "llama", lora(ATTENTION, use_dora=True), edit=edits.name_infix("style")
    ),
    "lora-bare-model": Variant(
        "llama",
        lora(ATTENTION, task_type="FEATURE_EXTRACTION"),
        auto="AutoModel",
        rename=edits.under_model,
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
    "lora-converted-pissa": Variant("llama", lora([]), write=edits.converted_pissa),
    # Conv1D, which stores its weight as (in, out)
    "conv1d-gpt2": Variant("gpt2", lora(GPT2_LINEARS, fan_in_fan_out=True)),
    "conv1d-gpt2-f32": Variant("gpt2", lora(GPT2_LINEARS, r=3), dtype="f32"),
    "conv1d-wrong-flag": Variant(
        "gpt2",
        lora(GPT2_LINEARS, fan_in_fan_out=True),
        edit=lambda path: edit_config(path, fan_in_fan_out=False),
    ),
    "conv1d-bare-base": Variant(
        "gpt2-bare", lora(GPT2_LINEARS), rename=edits.without_prefix("transformer.")
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
    "embedding": Variant("llama", lora(["embed_tokens", "lm_head"]), touch=edits.shift_embeddings),
    "embedding-f32": Variant("llama", lora(["embed_tokens"], r=3, use_rslora=True), dtype="f32"),
    "embedding-positions": Variant("gpt2", lora(["wpe", "c_attn"])),
    "embedding-plain-module": Variant("conv", lora(["embed", "head"]), dtype="f16"),
    "vocabulary-grown": Variant("llama", lora(ATTENTION), prepare=edits.grow_vocabulary),
    "vocabulary-grown-sharded": Variant(
        "llama-sharded", lora(ATTENTION), prepare=edits.grow_vocabulary
    ),
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
    "modules-to-save-tied-sharded": Variant(
        "llama-tied-sharded", lora(ATTENTION, modules_to_save=["lm_head"])
    ),
    "seq-cls": Variant("bert", lora(["query", "value"], task_type="SEQ_CLS"), dtype="f32"),
    "seq-cls-new-head": Variant(
        "bert-bare",
        lora(["query", "value"], task_type="SEQ_CLS"),
        rename=edits.without_prefix("bert."),
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
    "experts-mixtral-router": Variant("mixtral", experts("mlp.gate.weight", EXPERTS[1])),
    "experts-mixtral-all-linear": Variant("mixtral", causal(lora("all-linear", r=3))),
    "experts-dora-attention": Variant("qwen-moe", lora(ATTENTION, use_dora=True)),
    "experts-gpt-oss": Variant("gpt-oss", experts(*EXPERTS)),
    "experts-gpt-oss-square": Variant("gpt-oss-square", experts(*EXPERTS)),
    "experts-llama4": Variant(
        "llama4", experts("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj")
    ),
    "experts-old-layout": Variant("qwen-moe", experts(*EXPERTS), edit=edits.old_expert_layout),
    "experts-old-layout-fused-base": Variant(
        "qwen-moe-fused", experts(*EXPERTS), edit=edits.old_expert_layout
    ),
    "experts-square": Variant("qwen-moe-square", experts(EXPERTS[0])),
    "experts-old-layout-square": Variant(
        "qwen-moe-square", experts(EXPERTS[0]), edit=edits.old_expert_layout
    ),
    "per-expert": Variant("qwen-moe", lora([]), write=edits.QWEN_V4),
    "per-expert-fused-base": Variant("qwen-moe-fused", lora([]), write=edits.QWEN_V4),
    "per-expert-mixtral": Variant("mixtral", lora([]), write=edits.MIXTRAL_V4),
    # transformers 4 and 5 name vision-language models differently
    "llava": Variant("llava", lora([*ATTENTION, "out_proj", "linear_1"])),
    "llava-new-base": Variant("llava-new", lora([*ATTENTION, "out_proj"])),
    "llava-hub-base": Variant("llava-hub", lora([*ATTENTION, "out_proj"])),
    "llava-old": Variant("llava", lora([*ATTENTION, "linear_1"]), edit=edits.OLD_LLAVA),
    "llava-old-new-base": Variant("llava-new", lora(ATTENTION), edit=edits.OLD_LLAVA),
    "llava-old-hub-base": Variant("llava-hub", lora([*ATTENTION, "lm_head"]), edit=edits.OLD_LLAVA),
    "llava-old-head": Variant(
        "llava-hub", lora(ATTENTION, modules_to_save=["lm_head"]), edit=edits.OLD_LLAVA
    ),
    "llava-token-rows": Variant("llava", lora(ATTENTION, trainable_token_indices=[8, 1])),
    "qwen2-vl": Variant("qwen2-vl", lora([*ATTENTION, "qkv"])),
    "qwen2-vl-new-base": Variant("qwen2-vl-new", lora([*ATTENTION, "qkv"])),
    "qwen2-vl-old": Variant("qwen2-vl", lora([*ATTENTION, "qkv"]), edit=edits.OLD_QWEN2_VL),
    "qwen2-vl-old-new-base": Variant("qwen2-vl-new", lora(ATTENTION), edit=edits.OLD_QWEN2_VL),
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
    "tied-both-different": Variant(
        "llama-tied", causal(lora(["embed_tokens", "lm_head"])), dtype="f32"
    ),
    "tied-dora-embedding": Variant(
        "llama-tied", lora(["embed_tokens"], use_dora=True), dtype="f32"
    ),
    "tied-gpt2": Variant("gpt2", causal(lora(["wte", "c_attn"])), dtype="f32"),
    "tied-gemma": Variant("gemma", causal(lora(["embed_tokens", "q_proj"])), dtype="f32"),
    "tied-llava": Variant("llava-tied", lora(["embed_tokens", "q_proj"]), dtype="f32"),
    "tied-twice-stored-embedding-only": Variant(
        "llama-tied-twice", causal(lora(["embed_tokens", "q_proj"])), dtype="f32"
    ),
    "tied-twice-stored-both-alike": Variant(
        "llama-tied-twice",
        causal(lora(["embed_tokens", "lm_head"], ensure_weight_tying=True)),
        dtype="f32",
    ),
    "tied-twice-stored-token-rows": Variant(
        "llama-tied-twice", lora(["q_proj"], trainable_token_indices=[3, 4, 5]), dtype="f32"
    ),
    "attention-module": Variant("conv", lora(["mha"], r=3), dtype="f32"),
    "pointwise-conv3d": Variant("conv", lora(["point3"], r=3, alpha=30), dtype="f32"),
}
