"""Write a LLaMA-2 shaped checkpoint of random weights, fast, or a sparse one, at once.

    python make_base.py OUT --layers 8                       # 3.8 GB
    python make_base.py OUT --layers 80 --hidden 8192 --inter 28672 --heads 64 --kv-heads 8 \\
        --shards 15 --sparse                                 # 70B: 138 GB of holes, 723 tensors
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import BinaryIO

import layout
import numpy as np

BLOCK = 64 << 20
STEP = 10_485_767 * 4  # a tensor starts this much further in the block than the one before


def random_block(dtype: str) -> memoryview:
    """Return 64 MB of normal weights, times 0.02, in a storage dtype."""
    count = BLOCK // layout.ITEM_SIZES[dtype]
    values = np.random.default_rng(0).standard_normal(count, np.float32) * np.float32(0.02)
    if dtype == "BF16":
        values = ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    elif dtype == "F16":
        values = values.astype(np.float16)
    return memoryview(values).cast("B")


def write_tensor(file: BinaryIO, size: int, block: memoryview, start: int) -> None:
    """Write `size` bytes out of the block, from `start` on and round and round."""
    while size:
        piece = block[start : start + size]
        file.write(piece)
        size -= len(piece)
        start = 0


def write_shard(path: Path, shapes: dict, dtype: str, block: memoryview | None) -> int:
    """Write one file, its data from the block or left as a hole; return the size of the data."""
    head, size = layout.header(shapes, dtype)
    with path.open("wb", buffering=0) as file:
        file.write(head)
        if block is None:
            os.ftruncate(file.fileno(), len(head) + size)
            return size
        for number, shape in enumerate(shapes.values()):
            bytes_ = math.prod(shape) * layout.ITEM_SIZES[dtype]
            write_tensor(file, bytes_, block, (number + 1) * STEP % BLOCK)
    return size


def write_base(out: Path, llama: layout.Llama, count: int, sparse: bool) -> int:
    """Write config, shards and index; return the size of the weights."""
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(llama.config(), indent=2) + "\n")
    block = None if sparse else random_block(llama.dtype)
    parts = layout.shards(llama.tensors(), count)
    names = [f"model-{n:05d}-of-{len(parts):05d}.safetensors" for n in range(1, len(parts) + 1)]
    names = ["model.safetensors"] if len(parts) == 1 else names
    total = 0
    for name, part in zip(names, parts, strict=True):
        total += write_shard(out / name, part, llama.dtype, block)
    if len(parts) > 1:
        weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2) + "\n"
        (out / "model.safetensors.index.json").write_text(text)
    return total


def main() -> int:
    """Read the options, write the checkpoint, say what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    layout.add_flags(parser)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--sparse", action="store_true")
    options = parser.parse_args()
    llama = layout.from_flags(options)
    total = write_base(options.out, llama, options.shards, options.sparse)
    print(f"{options.out}: {len(llama.tensors())} tensors, {total / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
