"""Judge a torchtune folder: adapter_model.pt, and adapter_config.json with r, alpha and modules.

Run with torchtune's Python. Its builders need head_dim · heads = hidden: base-llama-even, not
base-llama.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from cases import PROBE, asked, difference, judge_weights, say, write_merged
from torchtune.models.convert_weights import _TO_PEFT_TARGET_MODULES as TO_PEFT
from torchtune.modules.peft import get_merged_lora_ckpt
from torchtune_model import build, to_hf


def lora_of(folder: Path, state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return the arguments of torchtune's builder, from the adapter's own files."""
    about = json.loads((folder / "adapter_config.json").read_text())
    back = {name: own for own, name in TO_PEFT.items()}
    modules = [back[name] for name in about["target_modules"]]
    return {
        "lora_attn_modules": [name for name in modules if name.endswith("_proj")],
        "apply_lora_to_mlp": "w1" in modules,
        "apply_lora_to_output": "output" in modules,
        "lora_rank": about["r"],
        "lora_alpha": about["lora_alpha"],
        "use_dora": any(name.endswith("magnitude") for name in state),
    }


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    """Return the probe's logits."""
    with torch.no_grad():
        return model(torch.tensor([PROBE]))[0]


def main() -> None:
    """Load strictly (nothing unknown, nothing left as it was), compare logits and weights."""
    given = asked(__doc__, base="base-llama-even")
    state = torch.load(given.adapter / "adapter_model.pt", weights_only=True)
    lora = lora_of(given.adapter, state)
    model = build(given.base, **lora)
    missing, unexpected = model.load_state_dict(state, strict=False)
    left = [name for name in missing if "lora_" in name or "magnitude" in name]
    if unexpected or left:
        raise SystemExit(f"not stored: {left}, extra: {unexpected}")
    nothing = {"lora_attn_modules": ["q_proj"], "lora_rank": 1, "lora_alpha": 0.0}
    with tempfile.TemporaryDirectory() as scratch:
        wanted_base = write_merged(given.base, given.expected, Path(scratch))
        wanted = logits_of(build(wanted_base, **nothing))
    count, gap = len(state), difference(logits_of(model), wanted)
    moved = difference(logits_of(build(given.base, **nothing)), wanted)
    with torch.no_grad():
        merged = get_merged_lora_ckpt(
            dict(model.state_dict()), lora["lora_rank"], lora["lora_alpha"]
        )
    weights = judge_weights(given.base, given.expected, to_hf(given.base, merged))
    say(peer="torchtune", logits=gap, logits_moved=moved, tensors=count, **weights)


if __name__ == "__main__":
    main()
