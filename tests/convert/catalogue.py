"""The neutral adapters that every format is tried with: name → a source made by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .models import BERT, GPT2, MIXTRAL, T5
from .sources import Source, llama_modules, llama_shape, numbers

CASES: dict[str, Callable[[], Source]] = {}


def case(make: Callable[[], Source]) -> Callable[[], Source]:
    CASES[make.__name__.replace("_", "-")] = make
    return make


def llama(
    modules: list[str], rank: int = 3, alpha: float = 6, dtype: str = "F32", **config
) -> Source:
    """Return a LoRA on linears of the Llama."""
    targets = sorted({m.rpartition(".")[2] for m in modules})
    fields = {"r": rank, "lora_alpha": alpha, "target_modules": targets}
    source = Source(config=fields | config)
    for module in modules:
        source.lora(module, *llama_shape(module), rank, (dtype, dtype))
    return source


@case
def plain() -> Source:
    """Every linear of every layer."""
    return llama(llama_modules())


@case
def attention() -> Source:
    """q and v only, as most adapters."""
    return llama(llama_modules(["self_attn.q_proj", "self_attn.v_proj"]), 5, 10)


@case
def sparse() -> Source:
    """A few modules, no two layers alike."""
    modules = ["1.self_attn.q_proj", "0.self_attn.v_proj", "2.self_attn.v_proj", "1.mlp.up_proj"]
    named = [f"model.layers.{m}" for m in modules]
    return llama(named, 3, 4.5, target_modules=named)


@case
def odd_alpha() -> Source:
    """One alpha that is no multiple of the rank."""
    return llama(llama_modules(["self_attn.k_proj", "self_attn.o_proj"]), 5, 3.7)


@case
def mixed() -> Source:
    """Ranks and alphas by pattern."""
    source = Source(
        config={"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    )
    source.config["rank_pattern"] = {"v_proj": 1, "layers.1.self_attn.q_proj": 7}
    source.config["alpha_pattern"] = {"v_proj": 4, "layers.2.mlp.down_proj": 9}
    for module in llama_modules(["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]):
        rank = 1 if "v_proj" in module else 7 if "1.self_attn.q" in module else 3
        source.lora(module, *llama_shape(module), rank)
    return source


@case
def rslora() -> Source:
    """Rank-stabilised: alpha over the root of the rank."""
    return llama(llama_modules(["self_attn.q_proj", "mlp.gate_proj"]), 5, 4, use_rslora=True)


@case
def rslora_mixed() -> Source:
    """Rank-stabilised, with two ranks."""
    source = llama(llama_modules(["self_attn.q_proj"]), 5, 4, use_rslora=True)
    source.config |= {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 3}}
    for module in llama_modules(["self_attn.v_proj"]):
        source.lora(module, *llama_shape(module), 3)
    return source


@case
def half() -> Source:
    """fp16."""
    return llama(llama_modules(["self_attn.q_proj", "self_attn.v_proj"]), 3, 6, "F16")


@case
def brain() -> Source:
    """bf16."""
    return llama(llama_modules(["self_attn.q_proj", "self_attn.v_proj"]), 3, 6, "BF16")


@case
def no_effect() -> Source:
    """alpha 0: PEFT scales by nothing."""
    return llama(llama_modules(["self_attn.q_proj"]), 3, 0)


@case
def partly_no_effect() -> Source:
    """Most modules are scaled by nothing, the others are not."""
    source = llama(llama_modules(["self_attn.q_proj", "self_attn.v_proj"]), 3, 0)
    source.config["alpha_pattern"] = {"layers.1.self_attn.q_proj": 3}
    return source


@case
def dora() -> Source:
    """DoRA in every layer."""
    source = llama(llama_modules(["self_attn.q_proj", "mlp.down_proj"]), use_dora=True)
    return magnitudes(source)


@case
def sparse_dora() -> Source:
    """DoRA in one layer: elsewhere no magnitude could stand for no change."""
    named = ["model.layers.1.self_attn.q_proj", "model.layers.2.self_attn.v_proj"]
    return magnitudes(llama(named, use_dora=True, target_modules=named))


def magnitudes(source: Source) -> Source:
    for key, tensor in list(source.tensors.items()):
        if key.endswith(".lora_B.weight"):
            module = key.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
            values = np.abs(numbers(f"{module}.m", (tensor[1][0],))) + 1
            source.put(f"{module}.lora_magnitude_vector", values)
    return source


@case
def lora_bias() -> Source:
    """A bias beside B."""
    modules = llama_modules(["self_attn.o_proj"])
    source = llama(modules, lora_bias=True)
    source.base["attention_bias"] = True
    for module in modules:
        source.put(f"{module}.lora_B.bias", numbers(f"{module}.bias", (96,)))
    return source


@case
def trained_bias() -> Source:
    """Biases of the targeted modules were trained."""
    modules = llama_modules(["self_attn.q_proj"])
    source = llama(modules, bias="lora_only")
    source.base["attention_bias"] = True
    for module in modules:
        source.put(f"{module}.base_layer.bias", numbers(f"{module}.b", (128,)))
    return source


@case
def embeddings() -> Source:
    """LoRA of the embedding and of the head."""
    source = llama(["lm_head"])
    source.config["target_modules"] = ["embed_tokens", "lm_head"]
    source.put("model.embed_tokens.lora_embedding_A", numbers("emb.A", (3, 80)))
    source.put("model.embed_tokens.lora_embedding_B", numbers("emb.B", (96, 3)))
    return source


@case
def saved_head() -> Source:
    """A fully trained head beside LoRA."""
    source = llama(llama_modules(["self_attn.v_proj"]), modules_to_save=["lm_head"])
    source.put("lm_head.weight", numbers("head", (80, 96)))
    return source


@case
def token_rows() -> Source:
    """Some token embeddings were trained."""
    source = llama(llama_modules(["self_attn.v_proj"]))
    source.config["trainable_token_indices"] = {"embed_tokens": [3, 17]}
    source.put("model.embed_tokens.token_adapter.trainable_tokens_delta", numbers("t", (2, 96)))
    return source


@case
def ia3() -> Source:
    """(IA)³ as PEFT has it for Llama: k, v, and the input of down."""
    names = ["self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"]
    fields = {
        "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    }
    source = Source(config=fields, kind="IA3")
    for module in llama_modules(names):
        out, in_ = llama_shape(module)
        shape = (1, in_) if "down" in module else (out, 1)
        source.put(f"{module}.ia3_l", 1 + numbers(module, shape) / 4)
    return source


@case
def ia3_out() -> Source:
    """(IA)³ on outputs only."""
    source = Source(config={"target_modules": ["k_proj"], "feedforward_modules": []}, kind="IA3")
    for module in llama_modules(["self_attn.k_proj"]):
        source.put(f"{module}.ia3_l", 1 + numbers(module, (32, 1)) / 4)
    return source


@case
def adalora() -> Source:
    """Singular values between the factors."""
    fields = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj"]}
    fields |= {"total_step": 9, "init_r": 3, "target_r": 3}
    source = Source(kind="ADALORA", config=fields)
    for module in llama_modules(["self_attn.q_proj"]):
        source.put(f"{module}.lora_A", numbers(f"{module}.A", (3, 96)))
        source.put(f"{module}.lora_B", numbers(f"{module}.B", (128, 3)))
        source.put(f"{module}.lora_E", numbers(f"{module}.E", (3, 1)))
    return source


@case
def conv() -> Source:
    """Convolutions of a model that no family describes."""
    source = Source(base={"model_type": "invented"}, config={"r": 3, "lora_alpha": 6})
    source.config["target_modules"] = ["conv1"]
    source.put("features.conv1.lora_A.weight", numbers("A", (3, 4, 3, 3)))
    source.put("features.conv1.lora_B.weight", numbers("B", (6, 3, 1, 1)))
    return source


@case
def experts() -> Source:
    """Experts of Mixtral, one linear each; one expert has no update of w2."""
    source = Source(base=dict(MIXTRAL), config={"r": 3, "lora_alpha": 6})
    source.config["target_modules"] = ["w1", "w2", "w3"]
    for layer in range(2):
        for expert in range(3):
            path = f"model.layers.{layer}.block_sparse_moe.experts.{expert}"
            source.lora(f"{path}.w1", 144, 96, 3)
            source.lora(f"{path}.w3", 144, 96, 3)
            if expert != 1:
                source.lora(f"{path}.w2", 96, 144, 3)
    return source


@case
def t5() -> Source:
    """LoRA of a T5 with fewer decoder than encoder layers."""
    source = Source(
        base=dict(T5), config={"r": 3, "lora_alpha": 6, "target_modules": ["q", "v", "wi_1"]}
    )
    for stack, layers in (("encoder", 3), ("decoder", 2)):
        for n in range(layers):
            source.lora(f"{stack}.block.{n}.layer.0.SelfAttention.q", 72, 48, 3)
            source.lora(f"{stack}.block.{n}.layer.0.SelfAttention.v", 72, 48, 3)
    return source


@case
def t5_ia3() -> Source:
    """(IA)³ as PEFT has it for T5: k, v, and the input of wo."""
    fields = {"target_modules": ["k", "v", "wo"], "feedforward_modules": ["wo"]}
    source = Source(base=dict(T5), config=fields, kind="IA3")
    for stack, layers, last in (("encoder", 3, 1), ("decoder", 2, 2)):
        for n in range(layers):
            for name in ("k", "v"):
                path = f"{stack}.block.{n}.layer.0.SelfAttention.{name}"
                source.put(f"{path}.ia3_l", 1 + numbers(path, (72, 1)) / 4)
            path = f"{stack}.block.{n}.layer.{last}.DenseReluDense.wo"
            source.put(f"{path}.ia3_l", 1 + numbers(path, (1, 80)) / 4)
    return source


@case
def bert() -> Source:
    """LoRA of a BERT."""
    fields = {"r": 3, "lora_alpha": 6, "task_type": "FEATURE_EXTRACTION"}
    source = Source(base=dict(BERT), config=fields | {"target_modules": ["query", "dense"]})
    for n in range(2):
        path = f"encoder.layer.{n}"
        source.lora(f"{path}.attention.self.query", 48, 48, 3)
        source.lora(f"{path}.intermediate.dense", 80, 48, 3)
        source.lora(f"{path}.output.dense", 48, 80, 3)
    return source


@case
def gpt2() -> Source:
    """LoRA of GPT-2's fused, transposed projection."""
    fields = {"r": 3, "lora_alpha": 6, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    source = Source(base=dict(GPT2), config=fields)
    for n in range(2):
        source.lora(f"transformer.h.{n}.attn.c_attn", 144, 48, 3)
    return source
