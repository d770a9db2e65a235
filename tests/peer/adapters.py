"""How a tiny adapter is made with PEFT, saved, and edited into the copy our library is given."""

from __future__ import annotations

import copy
import json
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .bases import BASES, DTYPES

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
BERT_LINEARS = ["query", "key", "value", "dense"]
GPT2_LINEARS = ["c_attn", "c_proj", "c_fc"]
CONVS = ["conv1", "conv2", "conv3", "point2"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@dataclass(frozen=True)
class Variant:
    """One adapter: the base it belongs to, how PEFT makes it, and how our copy of it differs."""

    base: str
    config: Callable[[], peft.PeftConfig]
    dtype: str = "bf16"
    auto: str | None = None
    prepare: Callable[[nn.Module], Any] | None = None
    touch: Callable[[nn.Module], None] | None = None
    write: Callable[[Path, Path], None] | None = None
    edit: Callable[[Path], None] | None = None
    half: bool = False
    pickle: bool = False
    rename: Callable[[str], str] | None = None
    base_only: str | None = None


@dataclass(frozen=True)
class Made:
    """One variant on disk: its base, PEFT's adapter, and the copy our library is given."""

    variant: Variant
    base: Path
    original: Path
    adapter: Path

    def model(self, dtype: torch.dtype = torch.float64, path: Path | None = None) -> nn.Module:
        """The base model, or the checkpoint at `path`, ready for PEFT to wrap."""
        auto = self.variant.auto
        model = BASES[self.variant.base].load(path or self.base, dtype, auto)
        if path is None and self.variant.prepare is not None:
            self.variant.prepare(model)
        return model


def build(name: str, variant: Variant, root: Path) -> Made:
    """Write the base and the adapter of a variant under `root`."""
    base = save_base(variant.base, variant.dtype, root)
    original = root / f"{name}-peft"
    write_adapter(name, variant, base, original)
    return Made(variant, base, original, given_adapter(variant, original, root / name))


def save_base(name: str, dtype: str, root: Path) -> Path:
    path = root / (f"{name}.safetensors" if name == "conv" else f"{name}-base")
    if not path.exists():
        BASES[name].save(path, DTYPES[dtype])
    return path


def lora(targets: Any, r: int = 4, alpha: float = 6, **more: Any) -> Callable[[], peft.PeftConfig]:
    return lambda: peft.LoraConfig(
        target_modules=copy.deepcopy(targets), r=r, lora_alpha=alpha, **copy.deepcopy(more)
    )


def ia3(targets: Any, feedforward: Any, **more: Any) -> Callable[[], peft.PeftConfig]:
    return lambda: peft.IA3Config(
        target_modules=copy.deepcopy(targets),
        feedforward_modules=copy.deepcopy(feedforward),
        **more,
    )


def causal(make: Callable[[], peft.PeftConfig]) -> Callable[[], peft.PeftConfig]:
    """The same configuration with the task PEFT's users set for language models."""

    def build() -> peft.PeftConfig:
        config = make()
        config.task_type = peft.TaskType.CAUSAL_LM
        return config

    return build


def experts(*names: str, **more: Any) -> Callable[[], peft.PeftConfig]:
    return lora([], r=3, alpha=5, target_parameters=list(names), **more)


def randomise(model: nn.Module, seed: int) -> None:
    """Give every trained parameter a value of its own, small beside the base weights."""
    generator = torch.Generator().manual_seed(seed)

    def noise(parameter: nn.Parameter) -> torch.Tensor:
        return torch.randn(parameter.shape, generator=generator) * 0.07

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if re.search(r"lora_(embedding_)?[AB]|lora_E", name):
                parameter.copy_(noise(parameter))
            else:
                parameter.mul_(1 + noise(parameter)).add_(noise(parameter))


def write_adapter(name: str, variant: Variant, base: Path, out: Path) -> None:
    """Train nothing, but build, randomise and save the adapter exactly as PEFT's users do."""
    if variant.write is not None:
        variant.write(base, out)
        return
    model = BASES[variant.base].load(base, torch.float32, variant.auto)
    if variant.prepare is not None:
        variant.prepare(model)
    wrapped = peft.get_peft_model(model, variant.config())
    randomise(wrapped, zlib.crc32(name.encode()))
    if variant.touch is not None:
        variant.touch(wrapped)
    if variant.half:
        wrapped.to(torch.bfloat16)
    wrapped.save_pretrained(out, safe_serialization=not variant.pickle)


def given_adapter(variant: Variant, original: Path, out: Path) -> Path:
    """The adapter handed to our library: PEFT's own, or an edited copy with the same meaning."""
    if variant.edit is None:
        return original
    shutil.copytree(original, out)
    variant.edit(out)
    return out


def edit_config(path: Path, **changes: Any) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes, indent=2))


def edit_tensors(path: Path, change: Callable[[str, torch.Tensor], tuple[str, Any]]) -> None:
    file = path / "adapter_model.safetensors"
    changed = dict(change(name, tensor) for name, tensor in load_file(file).items())
    kept = {name: tensor.contiguous() for name, tensor in changed.items() if tensor is not None}
    save_file(kept, file, metadata={"format": "pt"})


def rename_keys(*pairs: tuple[str, str]) -> Callable[[Path], None]:
    """An edit that rewrites every tensor name by regular expressions, first match only."""

    def renamed(name: str) -> str:
        for pattern, new in pairs:
            if re.search(pattern, name):
                return re.sub(pattern, new, name)
        return name

    return lambda path: edit_tensors(path, lambda name, tensor: (renamed(name), tensor))
