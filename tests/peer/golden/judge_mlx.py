"""Judge an MLX adapter folder with mlx_lm's own loader. Run with mlx-lm's Python."""

from __future__ import annotations

import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from cases import PROBE, asked, difference, judge_weights, say, write_merged
from make_mlx import fuse, load, load_base, to_hf
from mlx.utils import tree_flatten


def main() -> None:
    """Load strictly (nothing unknown, nothing left as it was), compare logits and weights."""
    mx.set_default_device(mx.cpu)
    given = asked(__doc__)
    model = load(given.base, given.adapter)
    stored = set(mx.load(str(given.adapter / "adapters.safetensors")))
    ends = {"lora_a", "lora_b", "m"}
    made = {name for name, _ in tree_flatten(model.parameters()) if name.split(".")[-1] in ends}
    if stored != made:
        raise SystemExit(f"not stored: {sorted(made - stored)}, extra: {sorted(stored - made)}")
    tokens = mx.array([PROBE])
    with tempfile.TemporaryDirectory() as scratch:
        reference = load_base(write_merged(given.base, given.expected, Path(scratch)))
        wanted = np.array(reference(tokens)[0])
    gap = difference(np.array(model(tokens)[0]), wanted)
    moved = difference(np.array(load_base(given.base)(tokens)[0]), wanted)
    weights = judge_weights(given.base, given.expected, to_hf(fuse(model)))
    say(peer="mlx-lm", logits=gap, logits_moved=moved, tensors=len(stored), **weights)


if __name__ == "__main__":
    main()
