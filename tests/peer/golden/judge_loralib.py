"""Judge a loralib state dict with loralib's own layers. Run with its Python.

A state dict holds neither alpha nor which module is which: they come from `settings` in case.json
beside the file (as the golden cases have it), as {end of a module's name: loralib's arguments}.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from cases import asked, difference, judge_weights, say, write_merged
from make_loralib import logits_of, replaced, stored


def main() -> None:
    """Load strictly (nothing unknown, nothing left as it was), compare logits and weights."""
    given = asked(__doc__)
    settings = json.loads((given.adapter.parent / "case.json").read_text())["settings"]
    state = torch.load(given.adapter, weights_only=True)
    model = replaced(given.base, settings)
    missing, unexpected = model.load_state_dict(state, strict=False)
    left = [name for name in missing if "lora_" in name]
    if unexpected or left:
        raise SystemExit(f"not stored: {left}, extra: {unexpected}")
    with tempfile.TemporaryDirectory() as scratch:
        merged_base = write_merged(given.base, given.expected, Path(scratch))
        wanted = logits_of(replaced(merged_base, {}).eval())
    gap = difference(logits_of(model.train()), wanted)
    moved = difference(logits_of(replaced(given.base, {}).eval()), wanted)
    weights = judge_weights(given.base, given.expected, stored(model.eval(), given.base))
    say(peer="loralib", logits=gap, logits_moved=moved, tensors=len(state), **weights)


if __name__ == "__main__":
    main()
