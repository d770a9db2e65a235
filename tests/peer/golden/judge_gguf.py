"""List a GGUF file as gguf-py reads it: keys with their types and values, tensors with theirs.

Run: PYTHON judge_gguf.py FILE, with a Python that has gguf.
"""

from __future__ import annotations

import json
import sys

import gguf


def main() -> None:
    """Print one JSON object."""
    reader = gguf.GGUFReader(sys.argv[1])
    keys = {
        name: {"types": [kind.name for kind in field.types], "value": field.contents()}
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    tensors = {
        tensor.name: {"ne": tensor.shape.tolist(), "type": tensor.tensor_type.name}
        for tensor in reader.tensors
    }
    sys.stdout.write(json.dumps({"keys": keys, "tensors": tensors}) + "\n")


if __name__ == "__main__":
    main()
