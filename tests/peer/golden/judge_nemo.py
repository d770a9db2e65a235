"""Judge a `.nemo` LoRA with NeMo's own converter to Hugging Face form.

Run: PYTHON judge_nemo.py LORA.nemo EXPECTED NEMO, where NEMO is NeMo's source tree (only
nemo/export/utils/lora_converter.py and nemo/export/tarutils.py of it are used). For a fused q/k/v
the converter takes hidden/heads as the head size: use base-llama-even, not base-llama.
"""

from __future__ import annotations

import sys

from cases import asked, judge_weights, say, weights
from make_nemo import merged_by_nemo


def main() -> None:
    """Compare merged weights; every stored tensor must be one that the converter maps."""
    given = asked(__doc__, "nemo", base="base-llama-even")
    sys.path.insert(0, str(given.nemo))
    merged, count = merged_by_nemo(given.adapter, given.base)
    result = judge_weights(given.base, given.expected, weights(given.base) | merged)
    say(peer="nemo", tensors=count, **result)


if __name__ == "__main__":
    main()
