"""GGUF bases written by the real gguf package: llama.cpp's names, permuted q and k, any types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from builders import Tensors, decode
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
HEADS = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
Types = Mapping[str, str] | str


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of an HF tensor of a Llama."""
    module, _, param = name.rpartition(".")
    if module in TOP:
        return f"{TOP[module]}.{param}"
    _, _, number, rest = module.split(".", 3)
    return f"blk.{number}.{LAYER[rest]}.{param}"


def permute(values: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows as convert_hf_to_gguf.py does (`permute` of LlamaModel)."""
    split = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)


def permuted(name: str, values: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """Return an HF tensor's rows in the order that the file has."""
    kind = next((heads for part, heads in HEADS.items() if f".{part}." in name), None)
    return values if kind is None else permute(values, config[kind])


def write_gguf(
    path: Path,
    tensors: Tensors,
    config: Mapping[str, Any],
    types: Types,
    *,
    alignment: int | None = None,
    name_of: Callable[[str], str] = gguf_name,
    arch: str = "llama",
    split: int = 0,
) -> Path:
    """Write a model; `types` is one type for all matrices, or one by name (norms are F32)."""
    writer = GGUFWriter(path, arch, split_max_tensors=split)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    if "num_local_experts" in config:
        writer.add_expert_count(config["num_local_experts"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"<{number}>" for number in range(config["vocab_size"])])
    writer.add_file_type(1)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for name, tensor in tensors.items():
        stored = name_of(name)
        values = permuted(stored, decode(tensor), config)
        wanted = types if isinstance(types, str) else types.get(stored, types["*"])
        kind = GGMLQuantizationType["F32" if values.ndim == 1 else wanted]
        data = gguf.quants.quantize(np.ascontiguousarray(values, np.float32), kind)
        writer.add_tensor(stored, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read_raw(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return every tensor as (type, row-major shape, bytes), by the gguf package."""
    return {
        t.name: (t.tensor_type.name, tuple(map(int, t.shape[::-1])), t.data.tobytes())
        for t in GGUFReader(path).tensors
    }


def read_values(path: Path) -> dict[str, np.ndarray]:
    """Return every tensor's values as F32, by the gguf package."""
    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1])
        for t in GGUFReader(path).tensors
    }


def pairs_of(path: Path) -> list[bytes]:
    """Return the bytes of every key-value pair, in order; the counts of the head are not pairs."""
    fields = GGUFReader(path).fields.items()
    return [
        b"".join(np.asarray(part).tobytes() for part in field.parts)
        for name, field in fields
        if not name.startswith("GGUF.")
    ]
