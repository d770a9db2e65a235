"""transformers' own GGUF reader, on our merged files: the logits of PEFT's model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="the peer library transformers is not installed")
pytest.importorskip("peft", reason="the peer library peft is not installed")
pytest.importorskip("gguf", reason="the peer library gguf is not installed")

import torch
from base.gguffiles import write_gguf
from builders import read_checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

import adaptertools

from .test_meta_base import ADAPTERS, CONFIG, TOKENS, adapted, make_base

pytestmark = pytest.mark.peer
# how far rounding to the type alone moves these logits, with room
CLOSE = {"F32": 1e-4, "F16": 5e-3, "BF16": 5e-2}


def logits_of(path: Path) -> torch.Tensor:
    """Return the logits of a GGUF file as transformers reads it."""
    model = LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(TOKENS).logits


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("name", ADAPTERS)
def test_logits(tmp_path: Path, name: str, dtype: str) -> None:
    """Permuted rows, both ways: read back by others they are PEFT's model."""
    base = make_base(tmp_path / "hf")
    wanted = adapted(base, ADAPTERS[name], tmp_path / "adapter")
    folder = tmp_path / "gguf"
    folder.mkdir()
    path = write_gguf(folder / "base.gguf", read_checkpoint(base), CONFIG, dtype)
    before = logits_of(path)
    adaptertools.merge(path, tmp_path / "adapter", folder / "out.gguf")
    got = logits_of(folder / "out.gguf")
    assert (got - wanted).abs().max() < CLOSE[dtype] * wanted.abs().max()
    assert (before - wanted).abs().max() > 0.1 * wanted.abs().max()


@pytest.mark.parametrize("asked", ["bf16", "q8_0"])
def test_quantised_base(tmp_path: Path, asked: str) -> None:
    """Mixed types are read by others; the change arrives on top of the quantised base."""
    base = make_base(tmp_path / "hf")
    config: Any = ADAPTERS["lora"]
    folder = tmp_path / "gguf"
    folder.mkdir()
    path = write_gguf(folder / "base.gguf", read_checkpoint(base), CONFIG, "Q8_0")
    read = LlamaForCausalLM.from_pretrained(folder, gguf_file=path.name, dtype=torch.float32)
    plain = LlamaForCausalLM(LlamaConfig(**CONFIG))
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(tmp_path / "dequantised")
    wanted = adapted(tmp_path / "dequantised", config, tmp_path / "adapter")
    adaptertools.merge(path, tmp_path / "adapter", folder / "out.gguf", dtype=asked)
    got = logits_of(folder / "out.gguf")
    assert (got - wanted).abs().max() < 5e-2 * wanted.abs().max()
