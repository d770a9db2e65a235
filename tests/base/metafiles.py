"""Meta's layout written and read with torch and numpy alone: permuted rows, cut into MP files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builders import Tensors

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# HF suffix → (Meta's, axis that is cut or None, heads to permute rows for)
LAYER = {
    "self_attn.q_proj": ("attention.wq", 0, "num_attention_heads"),
    "self_attn.k_proj": ("attention.wk", 0, "num_key_value_heads"),
    "self_attn.v_proj": ("attention.wv", 0, None),
    "self_attn.o_proj": ("attention.wo", 1, None),
    "mlp.gate_proj": ("feed_forward.w1", 0, None),
    "mlp.up_proj": ("feed_forward.w3", 0, None),
    "mlp.down_proj": ("feed_forward.w2", 1, None),
    "input_layernorm": ("attention_norm", None, None),
    "post_attention_layernorm": ("ffn_norm", None, None),
}
TOP = {
    "model.embed_tokens": ("tok_embeddings", 1, None),
    "model.norm": ("norm", None, None),
    "lm_head": ("output", 0, None),
}


def place_of(name: str) -> tuple[str, int | None, str | None]:
    """Return Meta's name of an HF tensor, the axis that is cut, and the config field of heads."""
    module, _, param = name.rpartition(".")
    if module in TOP:
        meta, axis, heads = TOP[module]
    else:
        _, _, number, rest = module.split(".", 3)
        meta, axis, heads = LAYER[rest]
        meta = f"layers.{number}.{meta}"
    if param == "bias" and axis == 1:
        axis = None
    return f"{meta}.{param}", axis, heads


def to_meta(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Put HF's two halves of each head into Meta's pairs."""
    split = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return split.transpose(1, 2).reshape(weight.shape).contiguous()


def from_meta(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Put Meta's pairs back into HF's two halves of each head."""
    split = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return split.transpose(1, 2).reshape(weight.shape).contiguous()


def as_torch(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return stored tensors as torch."""
    return {
        name: torch.frombuffer(bytearray(data), dtype=TORCH[dtype]).reshape(shape)
        for name, (dtype, shape, data) in tensors.items()
    }


def shards_of(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], mp: int
) -> list[dict[str, torch.Tensor]]:
    """Return the state dicts of `mp` files."""
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(mp)]
    for name, weight in tensors.items():
        meta, axis, heads = place_of(name)
        whole = weight if heads is None else to_meta(weight, config[heads])
        parts = [whole] * mp if axis is None else whole.chunk(mp, axis)
        for shard, part in zip(shards, parts, strict=True):
            shard[meta] = part.clone(memory_format=torch.contiguous_format)
    for shard in shards:
        shard["rope.freqs"] = torch.arange(8, dtype=torch.float32)
    return shards


def write_meta(
    folder: Path, tensors: Tensors, config: Mapping[str, Any], mp: int, **params: Any
) -> Path:
    """Write a folder as Meta's download has it."""
    folder.mkdir(parents=True)
    for number, shard in enumerate(shards_of(as_torch(tensors), config, mp)):
        torch.save(shard, folder / f"consolidated.{number:02d}.pth")
    told = {
        "dim": config["hidden_size"],
        "multiple_of": 16,
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "n_layers": config["num_hidden_layers"],
        "norm_eps": 1e-5,
        "vocab_size": -1,
    }
    (folder / "params.json").write_text(json.dumps(told | params))
    (folder / "tokenizer.model").write_bytes(b"a tokenizer")
    (folder / "checklist.chk").write_text("0123  consolidated.00.pth\n")
    return folder


def read_meta(folder: Path, names: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors `names` of a Meta folder as HF has them: (dtype, shape, bytes)."""
    files = sorted(folder.glob("consolidated.*.pth"))
    shards = [torch.load(file, weights_only=True, mmap=True) for file in files]
    found = {}
    for name in names:
        meta, axis, heads = place_of(name)
        parts = [shard[meta] for shard in shards]
        if axis is None:
            assert all(torch.equal(part, parts[0]) for part in parts), name
            whole = parts[0]
        else:
            whole = torch.cat(parts, axis)
        if heads is not None:
            whole = from_meta(whole, config[heads])
        word = next(word for word, dtype in TORCH.items() if dtype == whole.dtype)
        data = whole.contiguous().reshape(-1).view(torch.uint8).numpy().astype(np.uint8).tobytes()
        found[name] = (word, tuple(whole.shape), data)
    return found
