"""Judge a GGUF LoRA with llama.cpp: base + adapter against the merged base, both made GGUF by it.

Run: PYTHON judge_llamacpp.py ADAPTER.gguf EXPECTED LLAMA_CPP, where LLAMA_CPP is its source tree
and PYTHON has llama-cpp-python, torch and transformers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from cases import PROBE, asked, difference, say, write_merged
from llamacpp import base_gguf, logits_of


def main() -> None:
    """Compare logits."""
    given = asked(__doc__, "llama_cpp")
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        plain = base_gguf(given.llama_cpp, given.base, scratch / "base.gguf")
        merged = write_merged(given.base, given.expected, scratch / "merged")
        wanted = logits_of(base_gguf(given.llama_cpp, merged, scratch / "merged.gguf"), PROBE)
        gap = difference(logits_of(plain, PROBE, given.adapter), wanted)
        moved = difference(logits_of(plain, PROBE), wanted)
    say(peer="llama.cpp", logits=gap, logits_moved=moved)


if __name__ == "__main__":
    main()
