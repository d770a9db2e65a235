"""torchtune adapters, saved, merged and converted back to HF names by torchtune itself.

Each case is the recipe's adapter_model.pt (native) with its PEFT export (check.py asks PEFT whether
the export is right). Run with torchtune's Python.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from cases import EVEN, HERE, PROBE, fresh, keep_expected, keep_logits, numbers, say
from torchtune import training
from torchtune.modules.peft import (
    get_adapter_state_dict,
    get_lora_module_names,
    get_merged_lora_ckpt,
)
from torchtune.training import FullModelHFCheckpointer
from torchtune_model import build, to_hf

ATTENTION = ["q_proj", "k_proj", "v_proj", "output_proj"]
QWEN2 = HERE / "base-qwen2"
# case → base, model type, rank, alpha, settings
CASES: dict[str, tuple[Path, str, int, float, dict[str, Any]]] = {
    "all": (
        EVEN,
        "LLAMA2",
        4,
        8.0,
        {
            "lora_attn_modules": ATTENTION,
            "apply_lora_to_mlp": True,
            "apply_lora_to_output": True,
        },
    ),
    "dora": (EVEN, "LLAMA2", 3, 6.0, {"lora_attn_modules": ATTENTION, "use_dora": True}),
    "qwen2": (QWEN2, "QWEN2", 3, 6.0, {"lora_attn_modules": ["q_proj", "k_proj"]}),
}


def fill(model: torch.nn.Module, case: str) -> None:
    """Draw every adapter weight; a magnitude moves away from the norm it starts at."""
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "initialize_dora_magnitude"):
                module.initialize_dora_magnitude()
        for name, value in model.named_parameters():
            drawn = torch.from_numpy(numbers(f"torchtune/{case}/{name}", value.shape, 0.18))
            if name.endswith("magnitude"):
                value.mul_(1 + drawn)
            elif "lora_" in name:
                value.copy_(drawn)


def save(folder: Path, case: str, model: torch.nn.Module) -> None:
    """Save as the recipe does: FullModelHFCheckpointer, adapter weights only."""
    base, kind, rank, alpha, settings = CASES[case]
    modules = get_lora_module_names(
        list(settings["lora_attn_modules"]),
        settings.get("apply_lora_to_mlp", False),
        settings.get("apply_lora_to_output", False),
    )
    about = {"r": rank, "lora_alpha": alpha, "target_modules": modules, "peft_type": "LORA"}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        files = ["model.safetensors"]
        saver = FullModelHFCheckpointer(str(base), files, kind, str(out))
        state = get_adapter_state_dict(model.state_dict())
        whole = {training.ADAPTER_KEY: state, training.ADAPTER_CONFIG: about}
        saver.save_checkpoint(whole, epoch=0, adapter_only=True)
        for path in (out / "epoch_0").glob("adapter_*"):
            shutil.copy(path, folder)


def main() -> None:
    """Write every case."""
    version = importlib.metadata.version("torchtune")
    for case, (base, _, rank, alpha, settings) in CASES.items():
        folder = fresh("torchtune", case)
        model = build(base, lora_rank=rank, lora_alpha=alpha, **settings)
        fill(model, case)
        save(folder, case, model)
        with torch.no_grad():
            keep_logits(folder, model(torch.tensor([PROBE]))[0])
            merged = get_merged_lora_ckpt(dict(model.state_dict()), rank, alpha)
        values = {name: value.numpy() for name, value in to_hf(base, merged).items()}
        names = keep_expected(folder, base, values, f"torchtune {version}")
        say(case=case, version=version, changed=len(names))


if __name__ == "__main__":
    main()
