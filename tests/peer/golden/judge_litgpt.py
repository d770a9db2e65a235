"""Judge a LitGPT LoRA folder (lit_model.pth.lora, hyperparameters.yaml) with LitGPT's own code.

Run with the Python of litgpt 0.5.13, or of 0.5.4 for the older layout.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from cases import PROBE, asked, difference, judge_weights, say, write_merged
from litgpt.lora import GPT, Config
from litgpt.model import GPT as PlainGPT
from litgpt.scripts.merge_lora import load_lora_metadata
from litgpt_base import config_of, to_hf, write_base
from make_litgpt import merged_by_litgpt


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    """Return the probe's logits."""
    with torch.no_grad():
        return model.eval()(torch.tensor([PROBE]))[0]


def plain(checkpoint: Path, base: Path) -> torch.Tensor:
    """Return the logits of LitGPT's model without LoRA."""
    model = PlainGPT(config_of(base))
    model.load_state_dict(torch.load(checkpoint / "lit_model.pth", weights_only=True))
    return logits_of(model)


def main() -> None:
    """Load strictly, as LitGPT's merge script does; compare logits and merged weights."""
    given = asked(__doc__)
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        write_base(given.base, scratch / "base")
        write_base(write_merged(given.base, given.expected, scratch / "hf"), scratch / "wanted")
        wanted = plain(scratch / "wanted", given.base)
        moved = difference(plain(scratch / "base", given.base), wanted)
        settings, *_ = load_lora_metadata(given.adapter)
        model = GPT(Config.from_file(scratch / "base" / "model_config.yaml", **settings))
        state = torch.load(scratch / "base" / "lit_model.pth", weights_only=True)
        lora = torch.load(given.adapter / "lit_model.pth.lora", weights_only=True)
        lora = lora.get("model", lora)
        model.load_state_dict(state | lora, strict=True)
        gap = difference(logits_of(model), wanted)
        merged = merged_by_litgpt(given.adapter, scratch / "base", scratch)
        weights = judge_weights(given.base, given.expected, to_hf(merged))
    say(peer="litgpt", logits=gap, logits_moved=moved, tensors=len(lora), **weights)


if __name__ == "__main__":
    main()
