"""Judge TensorRT-LLM LoRA files against what NVIDIA's own script makes of the same PEFT adapter.

Run: PYTHON judge_trt.py FOLDER PEFT_FOLDER SCRIPT, where SCRIPT is examples/hf_lora_convert.py.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from cases import difference, say
from make_trt import by_nvidia, rows_of


def main() -> None:
    """Compare the rows: the same modules, layers and ranks, and how far the numbers are apart."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("folder", "peft", "script"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    mine = rows_of(given.folder)
    kind = np.load(given.folder / "model.lora_weights.npy").dtype.name
    with tempfile.TemporaryDirectory() as scratch:
        by_nvidia(given.script, given.peft, Path(scratch), kind)
        theirs = rows_of(Path(scratch))
    if [facts for facts, _ in mine] != [facts for facts, _ in theirs]:
        raise SystemExit(f"rows {[row[0] for row in mine]}, wanted {[row[0] for row in theirs]}")
    gap = max(difference(a, b) for (_, a), (_, b) in zip(mine, theirs, strict=True))
    say(peer="tensorrt-llm", rows=len(mine), numbers=gap)


if __name__ == "__main__":
    main()
