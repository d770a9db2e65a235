"""LitGPT LoRA checkpoints, saved, merged and converted back to HF names by LitGPT itself.

Run with the Python of litgpt 0.5.13 (`[Q | K | V]` rows, `attn.qkv`) and of 0.5.4 (rows interleaved
per query group, `attn.attn`): each makes its own cases.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import lightning
import numpy
import torch
from cases import EVEN, LLAMA, PROBE, difference, fresh, keep_expected, keep_logits, numbers, say
from litgpt.finetune.lora import save_lora_checkpoint, setup
from litgpt.lora import GPT, Config
from litgpt.model import GPT as PlainGPT
from litgpt.scripts.merge_lora import merge_lora
from litgpt_base import config_of, to_hf, write_base

try:
    from litgpt.parser_config import save_hyperparameters
except ImportError:
    from litgpt.utils import save_hyperparameters

PARTS = ("query", "key", "value", "projection", "mlp", "head")
# case → base, parts, rank, alpha
NEW = {
    "qv": (LLAMA, ("query", "value"), 3, 6),
    "qkv": (LLAMA, ("query", "key", "value"), 3, 4),
    "all": (EVEN, PARTS, 4, 8),
    "k": (LLAMA, ("key",), 2, 4),
}
OLD = {
    "old-qv": (EVEN, ("query", "value"), 3, 6),
    "old-qkv": (EVEN, ("query", "key", "value"), 3, 4),
}


def quiet(call: Any, *args: Any, **options: Any) -> None:
    """Call a function that prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        call(*args, **options)


def make(case: str, folder: Path, checkpoint: Path) -> None:
    """Save a LoRA checkpoint with random weights, as `litgpt finetune_lora` does."""
    base, parts, rank, alpha = (NEW | OLD)[case]
    settings = {f"lora_{part}": part in parts for part in PARTS}
    settings |= {"lora_r": rank, "lora_alpha": alpha, "lora_dropout": 0.0}
    config = Config.from_file(checkpoint / "model_config.yaml", **settings)
    model = GPT(config)
    model.load_state_dict(torch.load(checkpoint / "lit_model.pth", weights_only=True), strict=False)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                drawn = numbers(f"litgpt/{case}/{name}", value.shape, 0.18)
                value.copy_(torch.from_numpy(drawn))
    fabric = lightning.Fabric(devices=1, accelerator="cpu", precision="32-true")
    save_lora_checkpoint(fabric, model, folder / "lit_model.pth.lora")
    shutil.copy(checkpoint / "model_config.yaml", folder)
    words = ["litgpt", "finetune_lora", f"checkpoints/{base.name}", "--precision", "32-true"]
    words += [f"--{key}={str(value).lower()}" for key, value in settings.items()]
    with mock.patch.object(sys, "argv", words):
        save_hyperparameters(setup, folder)
    model.eval()
    with torch.no_grad():
        keep_logits(folder, model(torch.tensor([PROBE]))[0])


def merged_by_litgpt(folder: Path, checkpoint: Path, scratch: Path) -> Path:
    """Merge a LoRA folder by LitGPT's script into a copy of it, which is returned."""
    merged = scratch / "merged"
    shutil.copytree(folder, merged)
    for name in ("tokenizer.json", "tokenizer_config.json", "model_config.yaml"):
        if not (merged / name).exists():
            shutil.copy(checkpoint / name, merged)
    quiet(merge_lora, merged, checkpoint, "32-true")
    return merged


def main() -> None:
    """Write this version's cases."""
    version = importlib.metadata.version("litgpt")
    for case, (base, *_) in (OLD if version == "0.5.4" else NEW).items():
        folder = fresh("litgpt", case)
        with tempfile.TemporaryDirectory() as scratch:
            checkpoint = Path(scratch) / "base"
            write_base(base, checkpoint)
            quiet(make, case, folder, checkpoint)
            merged = merged_by_litgpt(folder, checkpoint, Path(scratch))
            names = keep_expected(folder, base, to_hf(merged), f"litgpt {version}")
            plain = PlainGPT(config_of(base)).eval()
            plain.load_state_dict(torch.load(merged / "lit_model.pth", weights_only=True))
        with torch.no_grad():
            after = plain(torch.tensor([PROBE]))[0].numpy()
        gap = difference(after, numpy.load(folder / "logits.npy"))
        say(case=case, version=version, changed=len(names), merged_against_layers=gap)


if __name__ == "__main__":
    main()
