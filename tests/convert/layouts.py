"""What other formats store for a Llama's LoRA: numpy and names, by the formats' own sources.

Each function takes {module: (A [r, in], B [out, r])} and gives {stored name: array}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from builders import decode, read_safetensors

from .sources import LLAMA, PREFIX

HEADS, KV, DIM = LLAMA["num_attention_heads"], LLAMA["num_key_value_heads"], LLAMA["head_dim"]
Pairs = Mapping[str, tuple[np.ndarray, np.ndarray]]
Arrays = dict[str, np.ndarray]


def pairs_of(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the factors of a PEFT folder by module, in the order of the file."""
    tensors = read_safetensors(folder / "adapter_model.safetensors")
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            module = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            up = tensors[key.replace("lora_A", "lora_B")]
            found[module] = decode(tensors[key]), decode(up)
    return found


def layer(module: str) -> tuple[str, str]:
    """Return the number of a module's layer, and its last name."""
    parts = module.split(".")
    return parts[2], parts[-1]


def to_meta(rows: np.ndarray, heads: int) -> np.ndarray:
    """HF's two halves of a head become Meta's pairs: row s·(d/2) + i goes to 2i + s."""
    half = len(rows) // heads // 2
    order = [h * 2 * half + s * half + i for h in range(heads) for i in range(half) for s in (0, 1)]
    return rows[order]


def rotary(module: str, rows: np.ndarray) -> np.ndarray:
    """Reorder rows of q and k, each by the number of its own heads."""
    heads = {"q_proj": HEADS, "k_proj": KV}.get(module.rpartition(".")[2])
    return rows if heads is None else to_meta(rows, heads)


GGUF = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
TORCHTUNE = {
    **{f"{x}_proj": f"attn.{x}_proj" for x in "qkv"},
    "o_proj": "attn.output_proj",
    "gate_proj": "mlp.w1",
    "down_proj": "mlp.w2",
    "up_proj": "mlp.w3",
}
LITGPT = {
    "o_proj": "attn.proj",
    "gate_proj": "mlp.fc_1",
    "up_proj": "mlp.fc_2",
    "down_proj": "mlp.proj",
}
CANONICAL = {
    "q_proj": "self_attention.adapter_layer.lora_unfused_kqv_adapter.q_adapter",
    "k_proj": "self_attention.adapter_layer.lora_unfused_kqv_adapter.k_adapter",
    "v_proj": "self_attention.adapter_layer.lora_unfused_kqv_adapter.v_adapter",
    "o_proj": "self_attention.adapter_layer.lora_dense_attention_adapter",
    "gate_proj": "mlp.adapter_layer.lora_unfused_hto4h_adapter.gate_adapter",
    "up_proj": "mlp.adapter_layer.lora_unfused_hto4h_adapter.up_adapter",
    "down_proj": "mlp.adapter_layer.lora_4htoh_adapter",
}
TRT = {
    "q_proj": 1,
    "k_proj": 2,
    "v_proj": 3,
    "o_proj": 4,
    "gate_proj": 5,
    "down_proj": 6,
    "up_proj": 7,
}


def gguf(pairs: Pairs) -> Arrays:
    found = {}
    for module, (down, up) in pairs.items():
        number, name = layer(module)
        key = f"blk.{number}.{GGUF[name]}.weight"
        found |= {f"{key}.lora_a": down, f"{key}.lora_b": rotary(module, up)}
    return found


def mlx(pairs: Pairs) -> Arrays:
    found = {}
    for module, (down, up) in pairs.items():
        found |= {f"{module}.lora_a": down.T, f"{module}.lora_b": up.T}
    return found


def torchtune(pairs: Pairs) -> Arrays:
    found = {}
    for module, (down, up) in pairs.items():
        number, name = layer(module)
        key = f"layers.{number}.{TORCHTUNE[name]}"
        found |= {f"{key}.lora_a.weight": down, f"{key}.lora_b.weight": rotary(module, up)}
    return found


def by_layer(pairs: Pairs) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for module, pair in pairs.items():
        number, name = layer(module)
        found.setdefault(number, {})[name] = pair
    return found


def litgpt(pairs: Pairs) -> Arrays:
    """Of qkv: the downs of the parts that are switched on, one below the other; so the ups."""
    found = {}
    for number, linears in by_layer(pairs).items():
        path = f"transformer.h.{number}"
        parts = [linears[f"{x}_proj"] for x in "qkv" if f"{x}_proj" in linears]
        if parts:
            found[f"{path}.attn.qkv.lora_A"] = np.concatenate([down for down, _ in parts])
            found[f"{path}.attn.qkv.lora_B"] = np.concatenate([up for _, up in parts])
        for name, (down, up) in linears.items():
            if name in LITGPT:
                key = f"{path}.{LITGPT[name]}"
                found |= {f"{key}.lora_A": down, f"{key}.lora_B": up}
    return found


def nemo_joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return downs one below the other, and ups along a diagonal, rows as [part | part | ...]."""
    down = np.concatenate([down for down, _ in parts])
    up = np.zeros((sum(len(up) for _, up in parts), len(down)), down.dtype)
    row = column = 0
    for _, block in parts:
        up[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return down, up


def interleaved(rows: np.ndarray) -> np.ndarray:
    """[Q | K | V] rows as Megatron has them: of each group its q heads, then its k, then its v."""
    q, k, v = np.split(rows, [HEADS * DIM, (HEADS + KV) * DIM])
    group = HEADS // KV * DIM
    taken = []
    for g in range(KV):
        one = slice(g * DIM, (g + 1) * DIM)
        taken += [q[g * group : (g + 1) * group], k[one], v[one]]
    return np.concatenate(taken)


def widened(down: np.ndarray, up: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    more = rank - len(down)
    return np.pad(down, ((0, more), (0, 0))), np.pad(up, ((0, 0), (0, more)))


def nemo(pairs: Pairs) -> Arrays:
    """All linears of a layer: qkv at three times the rank, the others padded to it."""
    found = {}
    for number, linears in by_layer(pairs).items():
        path = f"model.decoder.layers.{number}"
        down, up = nemo_joined([linears[f"{x}_proj"] for x in "qkv"])
        rank, fc1 = len(down), nemo_joined([linears["gate_proj"], linears["up_proj"]])
        stored = {
            "self_attention.adapter_layer.lora_kqv_adapter": (down, interleaved(up)),
            "self_attention.adapter_layer.lora_dense_attention_adapter": linears["o_proj"],
            "mlp.adapter_layer.lora_hto4h_adapter": fc1,
            "mlp.adapter_layer.lora_4htoh_adapter": linears["down_proj"],
        }
        for name, pair in stored.items():
            wide = widened(*pair, rank)
            found[f"{path}.{name}.linear_in.weight"] = wide[0]
            found[f"{path}.{name}.linear_out.weight"] = wide[1]
    return found


def trt(pairs: Pairs, scale: float) -> dict[tuple[int, int, int], np.ndarray]:
    """Return by (module, layer, rank): down and scaled up, flattened, padded to the longest."""
    found = {}
    for module, (down, up) in pairs.items():
        number, name = layer(module)
        flat = np.concatenate([down.ravel(), (up * np.float32(scale)).ravel()])
        found[TRT[name], int(number), len(down)] = flat
    longest = max(map(len, found.values()))
    return {key: np.pad(flat, (0, longest - len(flat))) for key, flat in found.items()}
