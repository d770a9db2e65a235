"""Meta's own forward pass over our merged files gives the logits of PEFT's model.

The pass below is that of github.com/meta-llama/llama, llama/model.py (complex rotary embedding of
neighbouring pairs, repeated key/value heads), over files cut as its parallel layers cut them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="the peer library transformers is not installed")
pytest.importorskip("peft", reason="the peer library peft is not installed")

import peft
import torch
from base.metafiles import write_meta
from builders import LINEARS, read_checkpoint
from torch.nn.functional import silu
from transformers import LlamaConfig, LlamaForCausalLM

import adaptertools

pytestmark = pytest.mark.peer

CONFIG: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
TOKENS = torch.tensor([[1, 5, 90, 33, 2, 47, 47, 8, 61, 13]])


def make_base(path: Path) -> Path:
    """Save a seeded Llama with norms off one."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = LlamaForCausalLM(LlamaConfig(**CONFIG))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn(parameter.shape), alpha=0.1)
        model.save_pretrained(path)
    return path


LORA = peft.LoraConfig(r=4, lora_alpha=8, target_modules=[*LINEARS, "embed_tokens", "lm_head"])
IA3 = peft.IA3Config(
    target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
)
ADAPTERS = {"lora": LORA, "ia3": IA3}


def adapted(base: Path, config: Any, out: Path) -> torch.Tensor:
    """Save a random PEFT adapter; return the logits of the model with it."""
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(12)
        wrapped = peft.get_peft_model(model, config)
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape) * 0.2 + (config is IA3))
    wrapped.save_pretrained(out)
    with torch.no_grad():
        return wrapped.eval()(TOKENS).logits


class Meta:
    """The reference forward pass, every parallel layer as the sum or the join of its files."""

    def __init__(self, folder: Path) -> None:
        self.params = json.loads((folder / "params.json").read_text())
        files = sorted(folder.glob("*.pth"))
        self.shards = [torch.load(file, weights_only=True) for file in files]

    def column(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Join the outputs of the files."""
        return torch.cat([x @ shard[f"{name}.weight"].T for shard in self.shards], -1)

    def row(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Sum the outputs of the files, each of its part of the input."""
        parts = x.chunk(len(self.shards), -1)
        each = [part @ s[f"{name}.weight"].T for part, s in zip(parts, self.shards, strict=True)]
        return torch.stack(each).sum(0)

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.params["norm_eps"])
        return x * scale * self.shards[-1][f"{name}.weight"]

    def attention(self, name: str, x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
        heads, kv = self.params["n_heads"], self.params["n_kv_heads"]
        batch, length, _ = x.shape
        q, k = (
            rotated(self.column(f"{name}.{w}", x).view(batch, length, count, -1), rotary)
            for w, count in (("wq", heads), ("wk", kv))
        )
        v = self.column(f"{name}.wv", x).view(batch, length, kv, -1)
        k, v = (t.repeat_interleave(heads // kv, 2).transpose(1, 2) for t in (k, v))
        scores = q.transpose(1, 2) @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        scores = scores + torch.full((length, length), float("-inf")).triu(1)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1)
        return self.row(f"{name}.wo", mixed)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        embeddings = [shard["tok_embeddings.weight"][tokens] for shard in self.shards]
        x = torch.cat(embeddings, -1)
        half = self.params["dim"] // self.params["n_heads"] // 2
        frequencies = 1.0 / 10000.0 ** (torch.arange(half) / half)
        angles = torch.outer(torch.arange(tokens.shape[1]).float(), frequencies)
        rotary = torch.polar(torch.ones_like(angles), angles)
        for number in range(self.params["n_layers"]):
            layer = f"layers.{number}"
            normed = self.norm(f"{layer}.attention_norm", x)
            x = x + self.attention(f"{layer}.attention", normed, rotary)
            normed = self.norm(f"{layer}.ffn_norm", x)
            gate = self.column(f"{layer}.feed_forward.w1", normed)
            up = self.column(f"{layer}.feed_forward.w3", normed)
            x = x + self.row(f"{layer}.feed_forward.w2", silu(gate) * up)
        return self.column("output", self.norm("norm", x))


def rotated(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Turn neighbouring pairs as complex numbers."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotary[None, :, None, :]).flatten(3)


@pytest.mark.parametrize("mp", [1, 2, 8])
@pytest.mark.parametrize("name", ADAPTERS)
def test_logits(tmp_path: Path, name: str, mp: int) -> None:
    """What Meta's code computes from the merged files is what PEFT computes beside the base."""
    base = make_base(tmp_path / "hf")
    wanted = adapted(base, ADAPTERS[name], tmp_path / "adapter")
    meta = write_meta(tmp_path / "meta", read_checkpoint(base), CONFIG, mp)
    before = Meta(meta).logits(TOKENS)
    adaptertools.merge(meta, tmp_path / "adapter", tmp_path / "out")
    got = Meta(tmp_path / "out").logits(TOKENS)
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert (before - wanted).abs().max() > 0.1 * wanted.abs().max()
