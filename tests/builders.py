"""Tiny checkpoints and adapters written by hand: numpy, struct and json, nothing of the library.

>>> base = tiny_base(Path("/tmp/base"), seed=1)            # doctest: +SKIP
>>> adapter = tiny_lora(Path("/tmp/lora"), base, rank=4)   # doctest: +SKIP
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Tensor = tuple[str, tuple[int, ...], bytes]
Tensors = dict[str, Tensor]

ITEM_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
NUMPY_TYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "F16": np.float16,
    "U32": np.uint32,
    "I32": np.int32,
    "F32": np.float32,
    "U64": np.uint64,
    "I64": np.int64,
    "F64": np.float64,
}
CONFIG_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
BASE_STD = 0.02
DELTA_STD = 0.1 * BASE_STD
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
LINEARS = ATTENTION + MLP


# --- numbers ------------------------------------------------------------------------------------


def bf16_bytes(values: np.ndarray) -> bytes:
    """Return the bf16 bytes of `values`: the top 16 bits of f32, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    quiet = (bits >> 16) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype("<u2").tobytes()


def encode(values: np.ndarray, dtype: str) -> Tensor:
    """Return `values` as a (dtype, shape, bytes) triple ready for `write_safetensors`."""
    values = np.asarray(values)
    if dtype == "BF16":
        return dtype, values.shape, bf16_bytes(values)
    return dtype, values.shape, values.astype(NUMPY_TYPES[dtype]).tobytes()


def decode(tensor: Tensor) -> np.ndarray:
    """Return a stored tensor as numpy; bf16 comes back as f32 (exact)."""
    dtype, shape, data = tensor
    if dtype == "BF16":
        bits = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    return np.frombuffer(data, NUMPY_TYPES[dtype]).reshape(shape)


# --- safetensors --------------------------------------------------------------------------------


def raw_safetensors(
    path: Path, header: bytes, data: bytes = b"", *, length: int | None = None
) -> Path:
    """Write any bytes as the header and data of a safetensors file; `length` may lie."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = len(header) if length is None else length
    path.write_bytes(struct.pack("<Q", size) + header + data)
    return path


def header_entries(tensors: Mapping[str, Tensor], order: Sequence[str] | None = None) -> dict:
    """Return the header entries of `tensors`, their data laid out in `order`."""
    offsets, at = {}, 0
    for name in order or tensors:
        size = len(tensors[name][2])
        offsets[name] = [at, at + size]
        at += size
    return {
        name: {"dtype": dtype, "shape": list(shape), "data_offsets": offsets[name]}
        for name, (dtype, shape, _) in tensors.items()
    }


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    order: Sequence[str] | None = None,
    pad: int = 0,
) -> Path:
    """Write a safetensors file; `order` is that of the data, `pad` adds spaces to the header.

    The data starts at a multiple of eight, as in files of the safetensors library, when
    `pad` is a multiple of eight.
    """
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    entries.update(header_entries(tensors, order))
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8 + pad)
    data = b"".join(tensors[name][2] for name in order or tensors)
    return raw_safetensors(path, header, data)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return a file's header (with `__metadata__`) and where its data starts."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(size)), 8 + size


def read_safetensors(path: Path) -> Tensors:
    """Return every tensor of a file as (dtype, shape, bytes), checking that the data tiles."""
    header, start = read_header(path)
    header.pop("__metadata__", None)
    body = path.read_bytes()[start:]
    spans = sorted(entry["data_offsets"] for entry in header.values())
    ends = [0, *(end for _, end in spans)]
    assert [begin for begin, _ in spans] == ends[:-1], f"{path}: holes or overlaps"
    assert ends[-1] == len(body), f"{path}: trailing bytes"
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        assert end - begin == math.prod(entry["shape"]) * ITEM_SIZES[entry["dtype"]], name
        tensors[name] = (entry["dtype"], tuple(entry["shape"]), body[begin:end])
    return tensors


def read_checkpoint(directory: Path) -> Tensors:
    """Return every tensor of every safetensors file of a directory."""
    merged: Tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors = read_safetensors(path)
        assert not merged.keys() & tensors.keys(), f"{path}: a tensor is stored twice"
        merged.update(tensors)
    return merged


# --- base checkpoints ---------------------------------------------------------------------------


def llama_config(
    layers: int = 2,
    hidden: int = 64,
    heads: int = 8,
    kv_heads: int = 2,
    vocab: int = 96,
    inter: int = 112,
    dtype: str = "BF16",
    tied: bool = False,
) -> dict[str, Any]:
    """Return the config.json of a Llama of these sizes, as transformers writes it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "dtype": CONFIG_DTYPES[dtype],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": inter,
        "max_position_embeddings": 2048,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": tied,
        "transformers_version": "5.23.0",
        "vocab_size": vocab,
    }


def read_config(base: Path | Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a base directory, or the dict itself."""
    if isinstance(base, Mapping):
        return dict(base)
    return json.loads((base / "config.json").read_text())


def linear_shape(config: Mapping[str, Any], name: str) -> tuple[int, int]:
    """Return (out, in) of a linear of a Llama by the last part of its name."""
    hidden, inter = config["hidden_size"], config["intermediate_size"]
    head = hidden // config["num_attention_heads"]
    key_value = head * config["num_key_value_heads"]
    return {
        "q_proj": (hidden, hidden),
        "k_proj": (key_value, hidden),
        "v_proj": (key_value, hidden),
        "o_proj": (hidden, hidden),
        "gate_proj": (inter, hidden),
        "up_proj": (inter, hidden),
        "down_proj": (hidden, inter),
        "lm_head": (config["vocab_size"], hidden),
    }[name]


def module_path(layer: int, name: str) -> str:
    """Return the path of a linear inside a Llama.

    >>> module_path(3, "up_proj")
    'model.layers.3.mlp.up_proj'
    """
    if name == "lm_head":
        return name
    return f"model.layers.{layer}.{'mlp' if name in MLP else 'self_attn'}.{name}"


def llama_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of a Llama checkpoint, in file order."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        for name in LINEARS:
            shapes[f"{module_path(layer, name)}.weight"] = linear_shape(config, name)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{norm}.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def base_tensors(config: Mapping[str, Any], dtype: str = "BF16", seed: int = 0) -> Tensors:
    """Return random weights for a Llama: normal times 0.02, norms near one."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in llama_shapes(config).items():
        values = rng.standard_normal(shape, np.float32) * np.float32(BASE_STD)
        tensors[name] = encode(values + 1 if "norm" in name else values, dtype)
    return tensors


def split(names: Iterable[str], shards: int) -> list[list[str]]:
    """Return the names in `shards` runs of nearly equal length, none empty."""
    names = list(names)
    cuts = [round(i * len(names) / shards) for i in range(shards + 1)]
    return [names[a:b] for a, b in itertools.pairwise(cuts)]


def write_base(
    directory: Path, config: Mapping[str, Any], tensors: Tensors, shards: int = 1
) -> Path:
    """Write a Hugging Face checkpoint directory: config, weights, index, one side file."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config)
    write_json(directory / "tokenizer_config.json", {"model_max_length": 2048})
    if shards == 1:
        write_safetensors(directory / "model.safetensors", tensors, {"format": "pt"})
        return directory
    weight_map = {}
    for number, names in enumerate(split(tensors, shards), 1):
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names}
        write_safetensors(directory / file, part, {"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    total = sum(len(data) for _, _, data in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(directory / "model.safetensors.index.json", index)
    return directory


def tiny_base(
    directory: Path,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 8,
    kv_heads: int = 2,
    vocab: int = 96,
    inter: int = 112,
    dtype: str = "BF16",
    seed: int = 0,
    shards: int = 1,
    tied: bool = False,
) -> Path:
    """Write a Llama-named Hugging Face directory with random weights and return its path."""
    config = llama_config(layers, hidden, heads, kv_heads, vocab, inter, dtype, tied)
    return write_base(Path(directory), config, base_tensors(config, dtype, seed), shards)


# --- adapters -----------------------------------------------------------------------------------

# As PEFT 0.21.2 writes them.
LORA_CONFIG: dict[str, Any] = json.loads("""{
    "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null,
    "auto_mapping": null, "base_model_name_or_path": null, "bias": "none",
    "corda_config": null, "ensure_weight_tying": false, "eva_config": null,
    "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true,
    "init_lora_weights": true, "kasa_config": null, "layer_replication": null,
    "layers_pattern": null, "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 8,
    "lora_bias": false, "lora_dropout": 0.0, "lora_ga_config": null, "megatron_config": null,
    "megatron_core": "megatron.core", "modules_to_save": null, "monteclora_config": null,
    "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 8,
    "rank_pattern": {}, "revision": null, "target_modules": ["q_proj", "v_proj"],
    "target_parameters": null, "task_type": "CAUSAL_LM", "trainable_token_indices": null,
    "use_bdlora": null, "use_dora": false, "use_qalora": false, "use_rslora": false,
    "velora_config": null
}""")
IA3_CONFIG: dict[str, Any] = json.loads("""{
    "auto_mapping": null, "base_model_name_or_path": null, "exclude_modules": null,
    "fan_in_fan_out": false, "feedforward_modules": ["down_proj"], "inference_mode": true,
    "init_ia3_weights": true, "modules_to_save": null, "peft_type": "IA3",
    "peft_version": "0.21.2", "revision": null,
    "target_modules": ["down_proj", "k_proj", "v_proj"], "task_type": "CAUSAL_LM"
}""")


def write_json(path: Path, value: object) -> Path:
    """Write a value as indented JSON (NaN and Infinity pass, as in Python's own writer)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")
    return path


def target_modules(config: Mapping[str, Any], targets: Iterable[str]) -> dict[str, str]:
    """Return the path of every targeted module and the last part of its name."""
    layers = range(config["num_hidden_layers"])
    return {module_path(layer, name): name for layer in layers for name in targets}


def lora_tensors(
    base: Path | Mapping[str, Any],
    rank: int = 4,
    scale: float = 2.0,
    targets: Iterable[str] = ("q_proj", "v_proj"),
    seed: int = 0,
    dtype: str = "F32",
) -> Tensors:
    """Return PEFT-named A (r, in) and B (out, r) whose delta is about a tenth of the base."""
    rng = np.random.default_rng([seed, 1])
    std_a = 0.05
    std_b = DELTA_STD / (abs(scale) * math.sqrt(rank) * std_a)
    tensors = {}
    config = read_config(base)
    for path, name in target_modules(config, targets).items():
        rows, columns = linear_shape(config, name)
        down = rng.standard_normal((rank, columns)) * std_a
        up = rng.standard_normal((rows, rank)) * std_b
        tensors[f"base_model.model.{path}.lora_A.weight"] = encode(down, dtype)
        tensors[f"base_model.model.{path}.lora_B.weight"] = encode(up, dtype)
    return tensors


def ia3_tensors(
    base: Path | Mapping[str, Any],
    targets: Iterable[str] = ("k_proj", "v_proj", "down_proj"),
    feedforward: Iterable[str] = ("down_proj",),
    seed: int = 0,
    dtype: str = "F32",
) -> Tensors:
    """Return PEFT-named (IA)3 vectors near one: (1, in) for feedforward modules, else (out, 1)."""
    rng = np.random.default_rng([seed, 2])
    tensors = {}
    config = read_config(base)
    for path, name in target_modules(config, targets).items():
        rows, columns = linear_shape(config, name)
        shape = (1, columns) if name in feedforward else (rows, 1)
        values = 1 + 0.1 * rng.standard_normal(shape)
        tensors[f"base_model.model.{path}.ia3_l"] = encode(values, dtype)
    return tensors


def write_adapter(directory: Path, config: Mapping[str, Any], tensors: Tensors) -> Path:
    """Write an adapter directory as PEFT does."""
    directory = Path(directory)
    write_json(directory / "adapter_config.json", dict(sorted(config.items())))
    write_safetensors(directory / "adapter_model.safetensors", tensors, {"format": "pt"})
    return directory


def tiny_lora(
    directory: Path,
    base: Path | Mapping[str, Any],
    rank: int = 4,
    alpha: float = 8,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    seed: int = 0,
    dtype: str = "F32",
    **config: Any,
) -> Path:
    """Write a PEFT LoRA for a tiny base (a directory or its config) and return its path."""
    tensors = lora_tensors(base, rank, alpha / rank, targets, seed, dtype)
    fields = {"r": rank, "lora_alpha": alpha, "target_modules": sorted(targets)}
    return write_adapter(directory, LORA_CONFIG | fields | config, tensors)


def tiny_ia3(
    directory: Path,
    base: Path | Mapping[str, Any],
    targets: Sequence[str] = ("k_proj", "v_proj", "down_proj"),
    feedforward: Sequence[str] = ("down_proj",),
    seed: int = 0,
    dtype: str = "F32",
    **config: Any,
) -> Path:
    """Write a PEFT (IA)3 adapter for a tiny base and return its path."""
    tensors = ia3_tensors(base, targets, feedforward, seed, dtype)
    fields = {"target_modules": sorted(targets), "feedforward_modules": sorted(feedforward)}
    return write_adapter(directory, IA3_CONFIG | fields | config, tensors)
