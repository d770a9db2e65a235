"""AdapterHub adapters (LoRA, DoRA, IA3), saved, merged and run by the `adapters` library itself.

Run with the Python of adapters 1.3.0.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import adapters
import numpy as np
import torch
import transformers
from adapters.methods.lora import LoRALayer
from cases import (
    HERE,
    PROBE,
    config,
    fresh,
    keep_expected,
    keep_logits,
    numbers,
    say,
    weights,
)


@dataclass(frozen=True)
class Case:
    """One adapter: its base, its AdapterHub configuration, and the kind of file it is saved in."""

    base: str
    kind: type
    settings: dict[str, Any] = field(default_factory=dict)
    safetensors: bool = False


LORA, IA3 = adapters.LoRAConfig, adapters.IA3Config
EVERYWHERE = {"attn_matrices": ["q", "k", "v"], "intermediate_lora": True, "output_lora": True}
CASES = {
    "llama-lora": Case("base-llama", LORA, EVERYWHERE | {"leave_out": [1], "r": 4, "alpha": 6}),
    "llama-dora": Case(
        "base-llama",
        LORA,
        {"attn_matrices": ["q", "k"], "leave_out": [0, 2], "r": 3, "alpha": 3, "use_dora": True},
    ),
    "llama-ia3": Case("base-llama", IA3, {"leave_out": [0]}, safetensors=True),
    "bert-lora": Case("base-bert", LORA, EVERYWHERE | {"r": 3, "alpha": 6}, safetensors=True),
    "bert-ia3": Case("base-bert", IA3, {"alpha": 2, "attn_matrices": ["q", "k", "v"]}),
    "t5-lora": Case("base-t5", LORA, EVERYWHERE | {"r": 2, "alpha": 3}),
    "t5-ia3": Case("base-t5", IA3),
    "gpt2-lora": Case("base-gpt2", LORA, {"attn_matrices": ["q", "v"], "r": 3, "alpha": 6}),
    "gpt2-ia3": Case("base-gpt2", IA3),
}


def model_of(base: Path) -> Any:
    """Return a base ready for adapters, in fp32."""
    kind = getattr(transformers, config(base)["architectures"][0])
    model = kind.from_pretrained(base, dtype=torch.float32).eval()
    adapters.init(model)
    return model


def output_of(model: Any) -> np.ndarray:
    """Return the probe's logits, or the last hidden states of a model without a head."""
    tokens = torch.tensor([PROBE])
    more = {"decoder_input_ids": tokens.flip(1)} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        out = model(input_ids=tokens, **more)
    return (out.last_hidden_state if "last_hidden_state" in out else out.logits)[0].numpy()


def make(case: str, about: Case) -> None:
    """Save an adapter with random weights everywhere."""
    model = model_of(HERE / about.base)
    model.add_adapter(case, config=about.kind(**about.settings))
    mean = 1.0 if about.kind is IA3 else 0.0
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".loras." not in name:
                continue
            drawn = numbers(f"adapters/{case}/{name}", value.shape, 0.25, mean=mean)
            new = torch.from_numpy(drawn)
            value.copy_(value * (1 + new) if ".m." in name else new)
    folder = HERE / "adapters" / case
    head = case == "llama-lora"  # by default the model's head is saved beside the adapter
    model.save_adapter(str(folder), case, with_head=head, use_safetensors=about.safetensors)
    for path in folder.glob("*.json"):
        path.write_text(path.read_text().replace(f"{HERE}/", ""))


def new_biases(model: Any) -> dict[str, np.ndarray]:
    """Return what each adapted layer gives for zeros: its bias, as the adapter changes it."""
    out = {}
    for name, module in model.named_modules():
        if isinstance(module, LoRALayer) and module.loras and module.bias is not None:
            with torch.no_grad():
                given = module(torch.zeros(1, 1, module.in_features))
            out[f"{name}.bias"] = given.reshape(-1).numpy()
    return out


def merged_values(model: Any, adapter: str, base: Path) -> dict[str, np.ndarray]:
    """Return the weights that merge_adapter makes, and the biases as the layers give them.

    merge_adapter leaves a bias alone, even where IA3's forward pass scales it.
    """
    values = new_biases(model)
    model.merge_adapter(adapter)
    state = model.state_dict()
    return {name: state[name].numpy() for name in weights(base)} | values


def main() -> None:
    """Write every case."""
    version = importlib.metadata.version("adapters")
    for case, about in CASES.items():
        folder = fresh("adapters", case)
        make(case, about)
        model = model_of(HERE / about.base)
        more = {"with_head": False, "use_safetensors": about.safetensors}
        model.load_adapter(str(folder), set_active=True, **more)
        before = output_of(model)
        keep_logits(folder, before)
        base = HERE / about.base
        values = merged_values(model, case, base)
        names = keep_expected(folder, base, values, f"adapters {version}")
        gap = float(np.abs(output_of(model) - before).max())
        say(case=case, changed=names[:4], count=len(names), merge_adapter_against_layers=gap)


if __name__ == "__main__":
    main()
