"""NeMo-1 `.nemo` LoRA files, by hand: NeMo needs Megatron, which cannot be installed here.

The files follow what NeMo's published code writes and adds up (the fused q/k/v rows are grouped as
Megatron's linear_qkv has them). Expected weights: the base is fused as Megatron does, the update
(alpha/dim)·out·in is added, and the sum comes apart again, all in numpy.
Run: PYTHON make_nemo.py [NEMO], where NEMO is NeMo's source tree; then NeMo's own converter,
nemo.export.utils.lora_converter, is asked for the canonical form of each fused file.
"""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from cases import EVEN, LLAMA, config, difference, fresh, keep_expected, numbers, say, weights
from safetensors.numpy import load_file

ATTENTION = "self_attention.adapter_layer"
MLP = "mlp.adapter_layer"
FUSED = {
    "qkv": f"{ATTENTION}.lora_kqv_adapter",
    "dense": f"{ATTENTION}.lora_dense_attention_adapter",
    "fc1": f"{MLP}.lora_hto4h_adapter",
    "fc2": f"{MLP}.lora_4htoh_adapter",
}
CANONICAL = {
    "q": f"{ATTENTION}.lora_unfused_kqv_adapter.q_adapter",
    "k": f"{ATTENTION}.lora_unfused_kqv_adapter.k_adapter",
    "v": f"{ATTENTION}.lora_unfused_kqv_adapter.v_adapter",
    "gate": f"{MLP}.lora_unfused_hto4h_adapter.gate_adapter",
    "up": f"{MLP}.lora_unfused_hto4h_adapter.up_adapter",
}
HF = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "dense": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "fc2": "mlp.down_proj",
}
TARGETS = {"qkv": "attention_qkv", "dense": "attention_dense", "fc1": "mlp_fc1", "fc2": "mlp_fc2"}


@dataclass(frozen=True)
class Case:
    """One file: base, layer, parts, rank, alpha (None: the key is absent), ranks."""

    base: Path
    layer: int
    parts: tuple[str, ...]
    rank: int
    alpha: float | None
    tensor_parallel: int = 1
    zipped: bool = False


CASES = {
    "fused": Case(EVEN, 1, ("qkv", "dense", "fc1", "fc2"), 4, 8.0),
    "kv-channels": Case(LLAMA, 1, ("qkv",), 3, None),
    "canonical": Case(LLAMA, 2, ("q", "k", "v", "gate", "up"), 3, 6.0, zipped=True),
    "tp2": Case(EVEN, 0, ("qkv", "dense"), 4, 8.0, tensor_parallel=2),
}


def group(base: Path, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Fuse q, k, v as Megatron's linear_qkv: for each query group its q heads, its k, its v."""
    hf = config(base)
    groups, size = hf["num_key_value_heads"], hf["head_dim"]
    per = hf["num_attention_heads"] // groups
    rows = []
    for number in range(groups):
        rows.append(q[number * per * size : (number + 1) * per * size])
        rows.append(k[number * size : (number + 1) * size])
        rows.append(v[number * size : (number + 1) * size])
    return np.concatenate(rows)


def part_weights(base: Path, layer: int) -> dict[str, np.ndarray]:
    """Return a layer's weights under the parts' names, fused ones too."""
    all_weights = weights(base)
    out = {part: all_weights[f"model.layers.{layer}.{name}.weight"] for part, name in HF.items()}
    out["qkv"] = group(base, out["q"], out["k"], out["v"])
    out["fc1"] = np.concatenate([out["gate"], out["up"]])
    return out


def come_apart(base: Path, part: str, merged: np.ndarray) -> dict[str, np.ndarray]:
    """Return the HF weights that a fused weight is made of."""
    if part == "fc1":
        gate, up = np.split(merged, 2)
        return {"gate": gate, "up": up}
    if part != "qkv":
        return {part: merged}
    hf = config(base)
    groups, size = hf["num_key_value_heads"], hf["head_dim"]
    blocks = merged.reshape(groups, -1, size, merged.shape[1])
    flat = merged.shape[1]
    q, k, v = blocks[:, :-2], blocks[:, -2], blocks[:, -1]
    return {name: part.reshape(-1, flat) for name, part in (("q", q), ("k", k), ("v", v))}


def shard(part: str, tensors: dict[str, np.ndarray], rank: int, ranks: int) -> dict[str, Any]:
    """Return one tensor-parallel rank's piece; `dense` and `fc2` split their input by columns."""
    row_parallel = part in ("dense", "fc2")
    inside = np.split(tensors["linear_in"], ranks, axis=1 if row_parallel else 0)[rank]
    outside = np.split(tensors["linear_out"], ranks, axis=0)[rank]
    return {"linear_in": inside, "linear_out": outside}


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file to an archive, undated."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def about(case: Case) -> dict[str, Any]:
    """Return model_config.yaml's content."""
    hf = config(case.base)
    variant = "nemo" if case.parts[0] in FUSED else "canonical"
    targets = [TARGETS.get(part, part) for part in case.parts]
    lora = {"variant": variant, "target_modules": targets, "adapter_dim": case.rank}
    if variant == "canonical":
        lora["target_modules"] = ["attention_qkv", "mlp_fc1"]
    if case.alpha is not None:
        lora["alpha"] = case.alpha
    return {
        "mcore_gpt": True,
        "num_layers": hf["num_hidden_layers"],
        "hidden_size": hf["hidden_size"],
        "ffn_hidden_size": hf["intermediate_size"],
        "num_attention_heads": hf["num_attention_heads"],
        "num_query_groups": hf["num_key_value_heads"],
        "kv_channels": hf["head_dim"],
        "activation": "fast-swiglu",
        "tensor_model_parallel_size": case.tensor_parallel,
        "pipeline_model_parallel_size": 1,
        "peft": {"peft_scheme": "lora", "lora_tuning": lora},
    }


def make(label: str, case: Case) -> Path:
    """Write a `.nemo` file and its expected weights; return the file's path."""
    folder = fresh("nemo", label)
    parts, expected = part_weights(case.base, case.layer), {}
    ranks: list[dict[str, torch.Tensor]] = [{} for _ in range(case.tensor_parallel)]
    scale = (case.rank if case.alpha is None else case.alpha) / case.rank
    for part in case.parts:
        outside, inside = parts[part].shape
        stem = f"model.decoder.layers.{case.layer}.{(FUSED | CANONICAL)[part]}"
        shapes = {"linear_in": (case.rank, inside), "linear_out": (outside, case.rank)}
        drawn = {key: numbers(f"nemo/{label}/{stem}/{key}", shapes[key], 0.2) for key in shapes}
        update = drawn["linear_out"].astype(np.float64) @ drawn["linear_in"]
        merged = (parts[part] + scale * update).astype(np.float32)
        for name, value in come_apart(case.base, part, merged).items():
            expected[f"model.layers.{case.layer}.{HF[name]}.weight"] = value
        for rank, state in enumerate(ranks):
            for key, value in shard(part, drawn, rank, len(ranks)).items():
                state[f"{stem}.{key}.weight"] = torch.from_numpy(value.copy())
    keep_expected(folder, case.base, expected, "by hand, after NeMo 2025-09")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:") as tar:
        add(tar, "./model_config.yaml", yaml.safe_dump(about(case)).encode())
        for rank, state in enumerate(ranks):
            data = io.BytesIO()
            torch.save(state, data)
            place = "" if len(ranks) == 1 else f"mp_rank_{rank:02d}/"
            add(tar, f"./{place}model_weights.ckpt", data.getvalue())
    path, whole = folder / "lora.nemo", archive.getvalue()
    path.write_bytes(gzip.compress(whole, mtime=0) if case.zipped else whole)
    return path


def merged_by_nemo(path: Path, base: Path) -> tuple[dict[str, np.ndarray], int]:
    """Return the weights merged from NeMo's own conversion to HF form, and its tensor count."""
    from nemo.export.utils.lora_converter import convert_lora_nemo_to_canonical

    with tempfile.TemporaryDirectory() as scratch:
        found, about = convert_lora_nemo_to_canonical(str(path), scratch, hf_format=True)
    lora = about["peft"]["lora_tuning"]
    scale = lora.get("alpha", lora["adapter_dim"]) / lora["adapter_dim"]
    old, out, used = weights(base), {}, 0
    for name, value in old.items():
        stem = "base_model.model." + name.removesuffix(".weight")
        if f"{stem}.lora_A.weight" in found:
            inside = found[f"{stem}.lora_A.weight"].numpy()
            out[name] = value + scale * found[f"{stem}.lora_B.weight"].numpy() @ inside
            used += 2
    if used != len(found):
        raise ValueError(f"{len(found) - used} tensors of no module: {sorted(found)}")
    return out, used


def main() -> None:
    """Write every case."""
    sys.path[:0] = sys.argv[1:]
    for label, case in CASES.items():
        path = make(label, case)
        gap = None
        # (NeMo's converter knows one rank, a stored alpha, and hidden/heads as the head size)
        if sys.argv[1:] and label in ("fused", "canonical"):
            merged, _ = merged_by_nemo(path, case.base)
            wanted = load_file(path.parent / "expected.safetensors")
            gap = max(difference(merged[name], value) for name, value in wanted.items())
        say(case=label, bytes=path.stat().st_size, nemo_gap=gap)


if __name__ == "__main__":
    main()
