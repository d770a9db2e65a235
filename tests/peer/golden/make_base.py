"""Make the bases: tiny random models with real architectures, saved by transformers."""

from __future__ import annotations

import json
import math

import torch
import transformers
from cases import HERE, PROBE, fresh, numbers, say
from torch import nn

LLAMA = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EVEN = LLAMA | {"head_dim": 8, "num_hidden_layers": 2}
MIXTRAL = LLAMA | {
    "hidden_size": 48,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
QWEN2 = {key: value for key, value in EVEN.items() if key != "head_dim"}
QWEN2 |= {"intermediate_size": 40}
T5 = {
    "vocab_size": 96,
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 36,
    "num_heads": 2,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}
GPT2 = {
    "vocab_size": 96,
    "n_embd": 32,
    "n_inner": 40,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BERT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
BASES = {
    "base-llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, LLAMA),
    "base-llama-even": (transformers.LlamaConfig, transformers.LlamaForCausalLM, EVEN),
    "base-mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM, MIXTRAL),
    "base-qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, QWEN2),
    "base-t5": (transformers.T5Config, transformers.T5ForConditionalGeneration, T5),
    "base-gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel, GPT2),
    "base-bert": (transformers.BertConfig, transformers.BertModel, BERT),
}


def fill(model: nn.Module, label: str) -> None:
    """Give every parameter, norms and biases too, random numbers that depend on its name."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            one_row = value.dim() == 1
            mean = 1.0 if one_row and name.endswith("weight") else 0.0
            std = 0.2 if one_row else 1 / math.sqrt(value.shape[-1])
            drawn = numbers(f"{label}/{name}", value.shape, std, mean=mean)
            value.copy_(torch.from_numpy(drawn))


def main() -> None:
    """Write every base."""
    for label, (config_class, model_class, settings) in BASES.items():
        folder = fresh(label)
        model = model_class(config_class(**settings)).eval()
        fill(model, label)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        path = folder / "config.json"
        config = json.loads(path.read_text())
        if "rope_parameters" in config:  # for peers that read the older name
            config["rope_theta"] = config["rope_parameters"]["rope_theta"]
        config.setdefault("torch_dtype", "float32")
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        say(base=label, bytes=sum(file.stat().st_size for file in folder.iterdir()))
    (HERE / "probe.json").write_text(json.dumps({"input_ids": PROBE}) + "\n")


if __name__ == "__main__":
    main()
