"""Tiny base models with real architectures: no two neighbouring dimensions are equal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from .convnet import ConvNet

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
DECODER: dict[str, Any] = {
    **TOKENS,
    "vocab_size": 100,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}
TIED = DECODER | {"tie_word_embeddings": True}
GPT2: dict[str, Any] = {
    **TOKENS,
    "vocab_size": 100,
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 40,
    "initializer_range": 0.1,
}
BERT: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "num_labels": 3,
}


@dataclass(frozen=True)
class Base:
    """How a base model is made, which class reads it back, and how its file is laid out."""

    make: Callable[[], nn.Module]
    auto: str = "AutoModelForCausalLM"
    layout: str = "disk"
    shard: str = "1GB"
    rename: Callable[[str], str] | None = None
    twice: bool = False

    def save(self, path: Path, dtype: torch.dtype) -> None:
        """Write the seeded model at `path`, a directory or, for a plain module, a file."""
        with torch.random.fork_rng():
            torch.manual_seed(20260)
            model = self.make()
            vary_vectors(model)
        model.to(dtype)
        if isinstance(model, ConvNet):
            save_file(model.state_dict(), path)
            return
        model.save_pretrained(path, max_shard_size=self.shard)
        if self.layout == "memory":
            save_file(memory_tensors(model), path / "model.safetensors", metadata={"format": "pt"})
        if self.twice:
            tensors = read_tensors(path)
            head = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
            save_file(tensors | head, path / "model.safetensors", metadata={"format": "pt"})
        if self.rename is not None:
            renamed = {self.rename(name): value for name, value in read_tensors(path).items()}
            save_file(renamed, path / "model.safetensors", metadata={"format": "pt"})

    def load(self, path: Path, dtype: torch.dtype, auto: str | None = None) -> nn.Module:
        """Read the model back with every parameter in `dtype`."""
        if path.is_file():
            net = ConvNet().to(dtype)
            net.load_state_dict(load_file(path))
            return net.eval()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            loader = getattr(transformers, auto or self.auto)
            return loader.from_pretrained(path, dtype=dtype).to(dtype).eval()

    def tensors(self, model: nn.Module, scratch: Path) -> dict[str, torch.Tensor]:
        """The model's tensors under the names this base's own file uses."""
        if isinstance(model, ConvNet):
            return model.state_dict()
        if self.layout == "memory":
            return memory_tensors(model)
        model.save_pretrained(scratch)
        rename = self.rename or str
        return {rename(name): value for name, value in read_tensors(scratch).items()}


def vary_vectors(model: nn.Module) -> None:
    """Move biases and norm weights off 0 and 1, so that scaling or replacing them shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)


def memory_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict under transformers' in-memory names: fused experts, new VLM prefixes."""
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a single file or a directory, whose index must tell where each one is."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    shards = {file.name: load_file(file) for file in files}
    index = path / "model.safetensors.index.json"
    if index.is_file():
        places = {name: file for file, tensors in shards.items() for name in tensors}
        assert json.loads(index.read_text())["weight_map"] == places
    return {name: tensor for tensors in shards.values() for name, tensor in tensors.items()}


def read_config(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text())


def llama(**changes: Any) -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(DECODER | changes)))


def tied_llama() -> nn.Module:
    return llama(**TIED)


def square_llama() -> nn.Module:
    return llama(hidden_size=64)


def gemma() -> nn.Module:
    return transformers.GemmaForCausalLM(transformers.GemmaConfig(**TIED))


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))


def gpt2_bare() -> nn.Module:
    return transformers.GPT2Model(transformers.GPT2Config(**GPT2))


def bert() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**BERT))


def bert_bare() -> nn.Module:
    return transformers.BertModel(transformers.BertConfig(**BERT))


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=100, d_model=32, d_kv=6, d_ff=48, num_layers=2, num_heads=4
    )
    return transformers.T5ForConditionalGeneration(config)


def qwen_moe(width: int = 20) -> nn.Module:
    config = transformers.Qwen3MoeConfig(
        **DECODER, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=width
    )
    return transformers.Qwen3MoeForCausalLM(config)


def square_qwen_moe() -> nn.Module:
    return qwen_moe(width=24)


def mixtral() -> nn.Module:
    config = transformers.MixtralConfig(**DECODER, num_local_experts=4, num_experts_per_tok=2)
    return transformers.MixtralForCausalLM(config)


def gpt_oss(width: int = 20) -> nn.Module:
    config = transformers.GptOssConfig(
        **(DECODER | {"intermediate_size": width}), num_local_experts=4, num_experts_per_tok=2
    )
    model = transformers.GptOssForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 3:
                parameter.normal_(std=0.1)
    return model


def square_gpt_oss() -> nn.Module:
    return gpt_oss(width=24)


def llama4() -> nn.Module:
    config = transformers.Llama4TextConfig(
        **DECODER, intermediate_size_mlp=80, num_local_experts=4, interleave_moe_layer_step=1
    )
    return transformers.Llama4ForCausalLM(config)


def llava(**text: Any) -> nn.Module:
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        projection_dim=16,
    )
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**(DECODER | text)),
        vision_config=vision,
        image_token_id=99,
        tie_word_embeddings=bool(text),
    )
    return transformers.LlavaForConditionalGeneration(config)


def tied_llava() -> nn.Module:
    return llava(tie_word_embeddings=True)


def qwen2_vl() -> nn.Module:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2}
    vision |= {"patch_size": 4, "initializer_range": 0.1}
    config = transformers.Qwen2VLConfig(
        text_config=DECODER | {"rope_parameters": rope},
        vision_config=vision,
        image_token_id=98,
        video_token_id=99,
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def hub_llava_name(name: str) -> str:
    """The name older checkpoints on the hub carry: CLIP keeps its `vision_model` level."""
    return re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name)


VLM = "AutoModelForImageTextToText"
SEQ_CLS = "AutoModelForSequenceClassification"
BASES = {
    "llama": Base(llama),
    "llama-sharded": Base(llama, shard="30KB"),
    "llama-square": Base(square_llama),
    "llama-tied": Base(tied_llama),
    "llama-tied-sharded": Base(tied_llama, shard="30KB"),
    "llama-tied-twice": Base(tied_llama, twice=True),
    "gemma": Base(gemma),
    "gpt2": Base(gpt2),
    "gpt2-bare": Base(gpt2_bare),
    "bert": Base(bert, SEQ_CLS),
    "bert-bare": Base(bert_bare, SEQ_CLS),
    "t5": Base(t5, "AutoModelForSeq2SeqLM"),
    "qwen-moe": Base(qwen_moe),
    "qwen-moe-fused": Base(qwen_moe, layout="memory"),
    "qwen-moe-square": Base(square_qwen_moe),
    "mixtral": Base(mixtral),
    "gpt-oss": Base(gpt_oss),
    "gpt-oss-square": Base(square_gpt_oss),
    "llama4": Base(llama4),
    "llava": Base(llava, VLM),
    "llava-tied": Base(tied_llava, VLM),
    "llava-new": Base(llava, VLM, layout="memory"),
    "llava-hub": Base(llava, VLM, rename=hub_llava_name),
    "qwen2-vl": Base(qwen2_vl, VLM),
    "qwen2-vl-new": Base(qwen2_vl, VLM, layout="memory"),
    "conv": Base(ConvNet),
}
