"""Regenerate the repository's fixtures with real PEFT: `python tests/peer/make_fixtures.py OUT`."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
from torch import nn

COMMAND = "python tests/peer/make_fixtures.py fixtures"
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.1}


@dataclass(frozen=True)
class Fixture:
    """One folder: what makes it, and what a reader of it must report."""

    make: Callable[[Path], None]
    made: str
    tool: str
    format: str
    method: str | None
    targets: int


def tiny_llama() -> nn.Module:
    config = transformers.LlamaConfig(
        **TOKENS,
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config)


def tiny_gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        **TOKENS, vocab_size=128, n_embd=32, n_head=4, n_layer=2, n_positions=64
    )
    return transformers.GPT2LMHeadModel(config)


def base(build: Callable[[], nn.Module]) -> Callable[[Path], None]:
    """Write a seeded base in bf16, its biases and norm weights moved off 0 and 1."""

    def make(out: Path) -> None:
        torch.manual_seed(11)
        model = build()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn(parameter.shape), alpha=0.1)
        model.to(torch.bfloat16).save_pretrained(out)

    return make


def adapter(base_name: str, config: Callable[[], peft.PeftConfig]) -> Callable[[Path], None]:
    """Write an adapter whose every trained parameter is drawn from a fixed seed."""

    def make(out: Path) -> None:
        loader = transformers.AutoModelForCausalLM
        model = loader.from_pretrained(out.parent / base_name, dtype=torch.float32)
        wrapped = peft.get_peft_model(model, config())
        generator = torch.Generator().manual_seed(13)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator) * 0.07
                    parameter.copy_(noise if is_factor(name) else parameter * (1 + noise))
        wrapped.save_pretrained(out)
        settle_config(out / "adapter_config.json", base_name)

    return make


def is_factor(name: str) -> bool:
    return "lora_A" in name or "lora_B" in name


def settle_config(file: Path, base_name: str) -> None:
    """Name the base without this machine's path, and sort what PEFT keeps as sets."""
    config = json.loads(file.read_text()) | {"base_model_name_or_path": base_name}
    for field in ("target_modules", "feedforward_modules"):
        if config.get(field):
            config[field] = sorted(config[field])
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def lora(targets: list[str], **more: Any) -> Callable[[], peft.PeftConfig]:
    return lambda: peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=list(targets), task_type="CAUSAL_LM", **more
    )


def ia3() -> peft.PeftConfig:
    return peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        task_type="CAUSAL_LM",
    )


FIXTURES = {
    "tiny-llama": Fixture(
        base(tiny_llama),
        "transformers LlamaForCausalLM, 8 query and 2 key/value heads, bf16, weights from seed 11",
        "transformers",
        "hf",
        None,
        21,
    ),
    "tiny-llama-lora": Fixture(
        adapter("tiny-llama", lora(LINEARS)),
        "peft LoRA r=4 alpha=8 on every linear of tiny-llama, parameters from seed 13",
        "peft",
        "peft-lora",
        "lora",
        14,
    ),
    "tiny-llama-dora": Fixture(
        adapter("tiny-llama", lora(LINEARS, use_dora=True)),
        "peft DoRA r=4 alpha=8 on every linear of tiny-llama, parameters from seed 13",
        "peft",
        "peft-lora",
        "lora",
        14,
    ),
    "tiny-llama-ia3": Fixture(
        adapter("tiny-llama", ia3),
        "peft (IA)3 on k_proj, v_proj and (feedforward) down_proj of tiny-llama, from seed 13",
        "peft",
        "peft-ia3",
        "ia3",
        6,
    ),
    "tiny-gpt2": Fixture(
        base(tiny_gpt2),
        "transformers GPT2LMHeadModel, tied embeddings, bf16, weights from seed 11",
        "transformers",
        "hf",
        None,
        28,
    ),
    "tiny-gpt2-lora": Fixture(
        adapter("tiny-gpt2", lora(["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
        "peft LoRA r=4 alpha=8 on every Conv1D of tiny-gpt2, parameters from seed 13",
        "peft",
        "peft-lora",
        "lora",
        8,
    ),
}


def write_manifest(folder: Path, fixture: Fixture) -> None:
    files = sorted(path for path in folder.iterdir() if path.name != "manifest.json")
    manifest = {
        "tool": fixture.tool,
        "version": version(fixture.tool),
        "command": COMMAND,
        "made": fixture.made,
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "expected": {
            "format": fixture.format,
            "method": fixture.method,
            "targets": fixture.targets,
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def make_all(out: Path) -> None:
    """Write every fixture folder anew under `out`."""
    for name, fixture in FIXTURES.items():
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        fixture.make(folder)
        (folder / "README.md").unlink(missing_ok=True)
        write_manifest(folder, fixture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the folder to write the fixtures into")
    make_all(parser.parse_args().out)


if __name__ == "__main__":
    main()
