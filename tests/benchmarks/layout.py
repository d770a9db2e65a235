"""LLaMA-2 shaped checkpoints as names and sizes; standard library only, so that parents stay small.

A child's peak RSS starts at its parent's (Linux keeps the high-water mark across exec), hence
the scripts that measure import nothing big.
"""

from __future__ import annotations

import json
import math
import struct
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

ITEM_SIZES = {"BF16": 2, "F16": 2, "F32": 4}
CONFIG_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Llama:
    """The sizes of a Llama; the defaults are those of LLaMA-2 7B."""

    layers: int = 32
    hidden: int = 4096
    inter: int = 11008
    heads: int = 32
    kv_heads: int = 32
    vocab: int = 32000
    dtype: str = "BF16"

    def linear(self, name: str) -> tuple[int, int]:
        """Return (out, in) of a linear."""
        key_value = self.hidden // self.heads * self.kv_heads
        return {
            "k_proj": (key_value, self.hidden),
            "v_proj": (key_value, self.hidden),
            "gate_proj": (self.inter, self.hidden),
            "up_proj": (self.inter, self.hidden),
            "down_proj": (self.hidden, self.inter),
        }.get(name, (self.hidden, self.hidden))

    def linears(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield path and (out, in) of every linear of every layer."""
        for layer in range(self.layers):
            for block, names in (("self_attn", ATTENTION), ("mlp", MLP)):
                for name in names:
                    yield f"model.layers.{layer}.{block}.{name}", self.linear(name)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return name and shape of every tensor, in the order of a Hugging Face file."""
        norms = ("input_layernorm", "post_attention_layernorm")
        vocabulary = (self.vocab, self.hidden)
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": vocabulary}
        linears = {f"{path}.weight": shape for path, shape in self.linears()}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            shapes.update({k: v for k, v in linears.items() if k.startswith(prefix)})
            shapes.update({f"{prefix}{norm}.weight": (self.hidden,) for norm in norms})
        shapes["model.norm.weight"] = (self.hidden,)
        shapes["lm_head.weight"] = vocabulary
        return shapes

    def config(self) -> dict[str, object]:
        """Return its config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "dtype": CONFIG_DTYPES[self.dtype],
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.inter,
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-05,
            "tie_word_embeddings": False,
            "vocab_size": self.vocab,
        }


SIZES = {
    "1": Llama(layers=8, hidden=2048, inter=5504, heads=16, kv_heads=16),
    "3.8": Llama(layers=8),
    "13": Llama(layers=32),
}
LLAMA_70B = Llama(layers=80, hidden=8192, inter=28672, heads=64, kv_heads=8)


def flags(llama: Llama) -> list[str]:
    """Return the command line options of `make_base.py` for a Llama."""
    return [
        text
        for field in fields(llama)
        for text in (f"--{field.name.replace('_', '-')}", str(getattr(llama, field.name)))
    ]


def add_flags(parser: ArgumentParser) -> None:
    """Add an option for every size of a Llama."""
    for field in fields(Llama):
        kind = str if field.name == "dtype" else int
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)


def from_flags(options: Namespace) -> Llama:
    """Return the Llama that the options describe."""
    return Llama(**{field.name: getattr(options, field.name) for field in fields(Llama)})


def from_config(base: Path) -> Llama:
    """Return the Llama that a checkpoint's config.json describes."""
    config = json.loads((base / "config.json").read_text())
    dtypes = {name: dtype for dtype, name in CONFIG_DTYPES.items()}
    return Llama(
        config["num_hidden_layers"],
        config["hidden_size"],
        config["intermediate_size"],
        config["num_attention_heads"],
        config["num_key_value_heads"],
        config["vocab_size"],
        dtypes[config["dtype"]],
    )


def header(shapes: dict[str, tuple[int, ...]], dtype: str) -> tuple[bytes, int]:
    """Return the first bytes of a safetensors file, up to the data, and the size of the data."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * ITEM_SIZES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, at


def shards(shapes: dict[str, tuple[int, ...]], count: int) -> list[dict[str, tuple[int, ...]]]:
    """Return the tensors in `count` files of nearly equal size, in order."""
    total = sum(math.prod(shape) for shape in shapes.values())
    parts: list[dict[str, tuple[int, ...]]] = [{} for _ in range(count)]
    done = 0
    for name, shape in shapes.items():
        middle = done + math.prod(shape) / 2
        parts[min(count - 1, int(middle * count / total))][name] = shape
        done += math.prod(shape)
    return [part for part in parts if part]
