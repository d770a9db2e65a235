"""A base as LitGPT has it: its Config, its checkpoint folder, and the way back to HF names."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from cases import config
from litgpt.config import Config
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from litgpt.scripts.convert_lit_checkpoint import convert_lit_checkpoint
from litgpt.utils import save_config
from safetensors.torch import load_file


def config_of(base: Path) -> Config:
    """Return LitGPT's configuration of a Llama base."""
    hf = config(base)
    return Config(
        name=base.name,
        block_size=hf["max_position_embeddings"],
        vocab_size=hf["vocab_size"],
        padded_vocab_size=hf["vocab_size"],
        n_layer=hf["num_hidden_layers"],
        n_head=hf["num_attention_heads"],
        n_query_groups=hf["num_key_value_heads"],
        head_size=hf["head_dim"],
        n_embd=hf["hidden_size"],
        intermediate_size=hf["intermediate_size"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=hf["rms_norm_eps"],
        mlp_class_name="LLaMAMLP",
        rope_base=int(hf["rope_theta"]),
    )


def write_base(base: Path, folder: Path) -> None:
    """Write a base's LitGPT checkpoint folder, weights converted by LitGPT's own code."""
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, torch.Tensor] = {}
    copy_weights_hf_llama(config_of(base), {}, made, load_file(base / "model.safetensors"))
    torch.save(made, folder / "lit_model.pth")
    save_config(config_of(base), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # LitGPT asks that they exist
        (folder / name).write_text(json.dumps({}))


def to_hf(folder: Path) -> dict[str, Any]:
    """Return a LitGPT checkpoint under Hugging Face names, by LitGPT's own converter."""
    with tempfile.TemporaryDirectory() as scratch:
        with contextlib.redirect_stdout(io.StringIO()):
            convert_lit_checkpoint(folder, Path(scratch))
        # (0.5.4 leaves Python objects in this file, which was made two lines above)
        return torch.load(Path(scratch) / "model.pth", weights_only=False)
