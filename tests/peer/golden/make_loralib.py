"""loralib state dicts: layers of a transformers model replaced by loralib's, merged by its eval().

The files hold no alpha and no enable_lora; case.json's `settings` says them.
Run with loralib's Python.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import loralib
import torch
import transformers
from cases import (
    HERE,
    LLAMA,
    PROBE,
    difference,
    fresh,
    keep_expected,
    keep_logits,
    numbers,
    say,
    weights,
)
from torch import nn

GPT2 = HERE / "base-gpt2"
MERGED = {"r": 3, "lora_alpha": 6, "enable_lora": [True, False, True], "fan_in_fan_out": True}
# case → base, bias, {end of a module's name: settings}
Chosen = dict[str, dict[str, Any]]
CASES: dict[str, tuple[Path, str, Chosen]] = {
    "gpt2": (
        GPT2,
        "none",
        {"attn.c_attn": MERGED, "mlp.c_fc": {"r": 2, "lora_alpha": 3, "fan_in_fan_out": True}},
    ),
    "gpt2-bias": (GPT2, "lora_only", {"attn.c_attn": MERGED}),
    "llama": (
        LLAMA,
        "none",
        {
            "1.self_attn.q_proj": {"r": 4, "lora_alpha": 8},
            "1.self_attn.v_proj": {"r": 4, "lora_alpha": 8},
            "model.embed_tokens": {"r": 4, "lora_alpha": 8},
        },
    ),
}


def layer_for(module: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """Return loralib's layer in the place of a module, with the module's weight and bias."""
    outside, inside = module.weight.shape
    if isinstance(module, nn.Embedding):
        layer = loralib.Embedding(outside, inside, **settings)
    else:
        if settings.get("fan_in_fan_out"):  # Conv1D keeps its weight as [in, out]
            outside, inside = inside, outside
        kind = loralib.MergedLinear if "enable_lora" in settings else loralib.Linear
        layer = kind(inside, outside, bias=module.bias is not None, **settings)
        layer.bias = module.bias
    layer.weight = module.weight
    return layer


def replaced(base: Path, chosen: Chosen) -> nn.Module:
    """Return the base with loralib's layers in the chosen places, without any dropout."""
    kind = transformers.AutoModelForCausalLM
    model = kind.from_pretrained(base, dtype=torch.float32)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for end, settings in chosen.items():
            if name.endswith(end):
                model.set_submodule(name, layer_for(module, settings))
    return model


def logits_of(model: nn.Module) -> Any:
    """Return the probe's logits; in train mode loralib adds the update, in eval mode it merges."""
    with torch.no_grad():
        return model(torch.tensor([PROBE])).logits[0].numpy()


def stored(model: nn.Module, base: Path) -> dict[str, Any]:
    """Return a model's weights that the base stores too."""
    state = model.state_dict()
    return {name: state[name].numpy() for name in weights(base)}


def main() -> None:
    """Write every case."""
    version = importlib.metadata.version("loralib")
    for case, (base, bias, chosen) in CASES.items():
        folder = fresh("loralib", case)
        model = replaced(base, chosen)
        loralib.mark_only_lora_as_trainable(model, bias=bias)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if value.requires_grad:
                    drawn = torch.from_numpy(numbers(f"loralib/{case}/{name}", value.shape, 0.2))
                    value.copy_(value + drawn if name.endswith("bias") else drawn)
        torch.save(loralib.lora_state_dict(model, bias=bias), folder / "lora.pt")
        before = logits_of(model.train())
        after = logits_of(model.eval())
        keep_logits(folder, before)
        names = keep_expected(folder, base, stored(model, base), f"loralib {version}")
        facts = json.loads((folder / "case.json").read_text())
        facts |= {"bias": bias, "settings": chosen}
        (folder / "case.json").write_text(json.dumps(facts) + "\n")
        gap = difference(before, after)
        say(case=case, changed=names, version=version, merged_against_layers=gap)


if __name__ == "__main__":
    main()
