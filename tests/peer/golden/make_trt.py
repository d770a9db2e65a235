"""TensorRT-LLM's LoRA files, from the PEFT adapter of gguf/linear, whose expected weights hold.

By hand in numpy, after NVIDIA's published examples/hf_lora_convert.py.
Run: PYTHON make_trt.py [SCRIPT]; with NVIDIA's script (its imports from tensorrt_llm replaced by
the four small things it takes from there) the rows must come out the same, to the bit.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from cases import HERE, fresh, say
from safetensors import safe_open
from safetensors.torch import load_file

SOURCE = HERE / "gguf" / "linear" / "peft"
IDS = {
    "attn_qkv": 0,
    "attn_q": 1,
    "attn_k": 2,
    "attn_v": 3,
    "attn_dense": 4,
    "mlp_h_to_4h": 5,
    "mlp_4h_to_h": 6,
    "mlp_gate": 7,
}
MODULES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_dense",
    "gate_proj": "mlp_h_to_4h",
    "down_proj": "mlp_4h_to_h",
    "up_proj": "mlp_gate",
}
KEY = re.compile(r".*\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_A\.weight")


def by_hand(folder: Path, dtype: str) -> None:
    """Write the two files of a PEFT adapter, rows in the order of its stored keys."""
    about = json.loads((SOURCE / "adapter_config.json").read_text())
    scale = about["lora_alpha"] / about["r"]
    rows, facts = [], []
    with safe_open(SOURCE / "adapter_model.safetensors", "np") as file:
        for key in file.keys():  # noqa: SIM118 (safe_open is not a mapping)
            found = KEY.fullmatch(key)
            if not found:
                continue
            inside = file.get_tensor(key)
            outside = file.get_tensor(key.replace("lora_A", "lora_B")) * np.float32(scale)
            rows.append(np.concatenate([inside.ravel(), outside.ravel()]).astype(dtype))
            facts.append([IDS[MODULES[found[2]]], int(found[1]), inside.shape[0]])
    padded = np.zeros((1, len(rows), max(len(row) for row in rows)), dtype)
    for number, row in enumerate(rows):
        padded[0, number, : len(row)] = row
    np.save(folder / "model.lora_weights.npy", padded)
    np.save(folder / "model.lora_config.npy", np.array([facts], dtype=np.int32))


def by_nvidia(script: Path, source: Path, folder: Path, dtype: str) -> None:
    """Run NVIDIA's own function."""
    parts = {
        "tensorrt_llm._utils": {
            "str_dtype_to_torch": lambda name: getattr(torch, name),
            "torch_to_numpy": lambda value: value.numpy(),
        },
        "tensorrt_llm.lora_manager": {"LoraManager": SimpleNamespace(LORA_MODULE_IDS=IDS)},
        "tensorrt_llm.models.convert_utils": {
            "get_model_path": lambda place, name: f"{place}/{name}.safetensors",
            "load_state_dict": load_file,
        },
    }
    for name in ("tensorrt_llm", "tensorrt_llm.models", *parts):
        module = ModuleType(name)
        module.__dict__.update(parts.get(name, {}))
        sys.modules[name] = module
    spec = importlib.util.spec_from_file_location("hf_lora_convert", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.convert_hf_model(str(source), dtype, folder)


def rows_of(folder: Path) -> list[tuple[list[int], list[float]]]:
    """Return each row's module id, layer and rank with its numbers, sorted: order says nothing."""
    facts = np.load(folder / "model.lora_config.npy")[0].tolist()
    rows = np.load(folder / "model.lora_weights.npy")[0].tolist()
    return sorted(zip(facts, rows, strict=True))


def main() -> None:
    """Write every case."""
    for case, dtype in (("linear-f32", "float32"), ("linear-f16", "float16")):
        folder = fresh("trt", case)
        by_hand(folder, dtype)
        facts = {"base": "base-llama", "made_by": "by hand, after TensorRT-LLM 2025"}
        facts["expected"] = "gguf/linear/expected.safetensors"
        (folder / "case.json").write_text(json.dumps(facts) + "\n")
        same = None
        if sys.argv[1:]:
            with tempfile.TemporaryDirectory() as scratch:
                by_nvidia(Path(sys.argv[1]), SOURCE, Path(scratch), dtype)
                same = rows_of(folder) == rows_of(Path(scratch))
        say(case=case, same_as_nvidias_script=same)


if __name__ == "__main__":
    main()
