"""Ask transformers about every case: its logits on the merged weights against the peer's own.

This joins two independent answers, `expected.safetensors` and `logits.npy`, so a wrong row order or
name in the first cannot pass. Run: PYTHON check.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from cases import HERE, PROBE, config, difference, merged_base, say, write_merged
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file as torch_file


def logits_of(base: str, folder: Path) -> np.ndarray:
    """Return transformers' logits of the probe on the base with a case's expected weights."""
    with tempfile.TemporaryDirectory() as scratch:
        write_merged(HERE / base, folder / "expected.safetensors", Path(scratch))
        name = config(HERE / base)["architectures"][0]
        model = getattr(transformers, name).from_pretrained(scratch, dtype=torch.float32).eval()
    tokens = torch.tensor([PROBE])
    more = {"decoder_input_ids": tokens.flip(1)} if "T5" in name else {}
    with torch.no_grad():
        out = model(input_ids=tokens, **more)
    return (out.last_hidden_state if "Bert" in name else out.logits)[0].numpy()


def export_gap(base: Path, folder: Path) -> float:
    """Return how far PEFT's merge of torchtune's PEFT export is from torchtune's own merge."""
    weights = torch_file(folder / "adapter_model.safetensors")
    about = json.loads((folder / "adapter_config.json").read_text())
    names = {key: about[key] for key in ("r", "lora_alpha", "target_modules")}
    dora = any("magnitude" in name for name in weights)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(use_dora=dora, **names))
    found = set_peft_model_state_dict(model, weights)
    if found.unexpected_keys:
        raise ValueError(found.unexpected_keys)
    merged = model.merge_and_unload().state_dict()
    wanted = merged_base(base, folder / "expected.safetensors")
    return max(difference(merged[name].numpy(), value) for name, value in wanted.items())


def main() -> None:
    """Print one line for each case that has logits."""
    transformers.utils.logging.disable_progress_bar()
    for path in sorted(HERE.glob("*/*/logits.npy")):
        folder = path.parent
        base = json.loads((folder / "case.json").read_text())["base"]
        gap = difference(logits_of(base, folder), np.load(path))
        say(case=str(folder.relative_to(HERE)), base=base, gap=gap)
    for path in sorted(HERE.glob("torchtune/*")):
        base = json.loads((path / "case.json").read_text())["base"]
        say(case=str(path.relative_to(HERE)), peft_export_gap=export_gap(HERE / base, path))


if __name__ == "__main__":
    main()
