"""Write a random PEFT LoRA on every linear of a checkpoint made by make_base.py.

python make_adapter.py BASE OUT --rank 16
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path

import layout
import numpy as np

CONFIG = {
    "base_model_name_or_path": None,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_dropout": 0.0,
    "modules_to_save": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "rank_pattern": {},
    "alpha_pattern": {},
    "target_modules": sorted(layout.ATTENTION + layout.MLP),
    "task_type": "CAUSAL_LM",
    "use_dora": False,
    "use_rslora": False,
}
STD = {"lora_A": 0.05, "lora_B": 0.005}  # rank 16, scale 2: a delta of a tenth of 0.02


def factors(llama: layout.Llama, rank: int) -> dict[str, tuple[int, int]]:
    """Return key and shape of every A (rank, in) and B (out, rank)."""
    shapes = {}
    for path, (rows, columns) in llama.linears():
        shapes[f"base_model.model.{path}.lora_A.weight"] = (rank, columns)
        shapes[f"base_model.model.{path}.lora_B.weight"] = (rows, rank)
    return shapes


def encode(values: np.ndarray, dtype: str) -> bytes:
    """Return f32 values as bytes of a storage dtype."""
    if dtype == "BF16":
        return ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16).tobytes()
    return values.astype({"F32": np.float32, "F16": np.float16}[dtype]).tobytes()


def write_weights(path: Path, shapes: dict, dtype: str, sparse: bool, seed: int) -> int:
    """Write the adapter's tensors, normal or left as a hole; return their size."""
    rng = np.random.default_rng(seed)
    head, size = layout.header(shapes, dtype)
    with path.open("wb") as file:
        file.write(head)
        if sparse:
            file.flush()
            os.ftruncate(file.fileno(), len(head) + size)
            return size
        for key, shape in shapes.items():
            std = np.float32(STD[key.split(".")[-2]])
            file.write(encode(rng.standard_normal(math.prod(shape), np.float32) * std, dtype))
    return size


def main() -> int:
    """Read the options, write the adapter, say what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=int, default=32)
    parser.add_argument("--dtype", choices=sorted(layout.ITEM_SIZES), default="F32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sparse", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    config = CONFIG | {"r": options.rank, "lora_alpha": options.alpha}
    (options.out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    shapes = factors(layout.from_config(options.base), options.rank)
    path = options.out / "adapter_model.safetensors"
    size = write_weights(path, shapes, options.dtype, options.sparse, options.seed)
    print(f"{options.out}: {len(shapes)} tensors, {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
