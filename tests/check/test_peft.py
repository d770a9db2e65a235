"""What PEFT itself writes and applies, beside what the findings say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")

import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adaptertools.adapter.model import Adapter
from adaptertools.check.profile import load_profile
from adaptertools.check.serving import Violation, violations
from adaptertools.formats.opening import open_adapter

pytestmark = pytest.mark.peer
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}


def base(**sizes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "tie_word_embeddings": False, **sizes}))


def written(place: Path, **config: Any) -> tuple[Any, Adapter]:
    """Let PEFT wrap a tiny Llama and save; return its model and what we read."""
    fields = {"r": 8, "lora_alpha": 16, "target_modules": LINEARS, "init_lora_weights": False}
    model = peft.get_peft_model(base(), peft.LoraConfig(**{**fields, **config}))
    model.save_pretrained(place)
    return model, open_adapter(place)


def broken(adapter: Adapter, server: str) -> dict[str, Violation]:
    return {v.rule.when: v for v in violations(adapter, load_profile(server))}


def scalings(model: Any) -> dict[str, float]:
    """The factor that PEFT applies, by the key of the A tensor."""
    return {
        f"{name}.lora_A.weight": module.scaling["default"]
        for name, module in model.named_modules()
        if isinstance(getattr(module, "scaling", None), dict) and "default" in module.scaling
    }


def test_a_plain_one_is_served(tmp_path: Path) -> None:
    """As PEFT writes it, nothing is said by the servers that read PEFT folders."""
    _, adapter = written(tmp_path / "x")
    for server in ("vllm", "sglang", "tgi", "trt-llm"):
        assert broken(adapter, server) == {}


@pytest.mark.parametrize(
    ("config", "when"),
    [
        ({"use_rslora": True}, "rslora"),
        ({"alpha_pattern": {"q_proj": 4, "0.mlp.up_proj": 6}}, "alpha_pattern"),
        ({"use_rslora": True, "alpha_pattern": {"v_proj": 2}}, "alpha_pattern"),
    ],
)
def test_the_scale_it_should_be(tmp_path: Path, config: dict[str, Any], when: str) -> None:
    """The places told are those where PEFT's factor is not lora_alpha / r, and no others."""
    model, adapter = written(tmp_path / "x", **config)
    found = broken(adapter, "sglang")
    assert when in found
    told = {hit.key for name in ("rslora", "alpha_pattern") if name in found
            for hit in found[name].hits}  # fmt: skip
    wrong = {key for key, scale in scalings(model).items() if scale != pytest.approx(16 / 8)}
    assert told == wrong
    assert wrong


def test_the_scale_that_is_told(tmp_path: Path) -> None:
    """Expected is PEFT's factor of rsLoRA, found is what the server takes."""
    model, adapter = written(tmp_path / "x", use_rslora=True)
    factors = set(scalings(model).values())
    hits = broken(adapter, "sglang")["rslora"].hits
    assert {hit.expected for hit in hits} == {f"scale {factor:g}" for factor in factors}
    assert {hit.found for hit in hits} == {f"scale {16 / 8:g}"}


def test_ranks_by_pattern(tmp_path: Path) -> None:
    """The places told are those where PEFT's own rank is not r."""
    pattern = {"q_proj": 4, r"1\.self_attn\.v_proj": 16}
    model, adapter = written(tmp_path / "x", rank_pattern=pattern)
    ranks = {
        f"{name}.lora_A.weight": module.r["default"]
        for name, module in model.named_modules()
        if isinstance(getattr(module, "r", None), dict) and "default" in module.r
    }
    others = {key for key, rank in ranks.items() if rank != 8}
    assert {hit.key for hit in broken(adapter, "sglang")["rank_pattern"].hits} == others
    assert len(others) == 3


def test_alpha_zero_is_nothing(tmp_path: Path) -> None:
    """PEFT applies nothing at alpha 0, where llama.cpp applies all of it."""
    model, adapter = written(tmp_path / "x", lora_alpha=0)
    assert set(scalings(model).values()) == {0.0}
    assert len(broken(adapter, "llama.cpp")["alpha_zero"].hits) == 14


@pytest.mark.parametrize(
    ("config", "when", "count"),
    [
        ({"use_dora": True}, "dora", 14),
        ({"lora_bias": True, "target_modules": ["q_proj", "v_proj"]}, "lora_bias", 4),
        ({"modules_to_save": ["lm_head"]}, "full_tensor", 1),
        ({"target_modules": ["q_proj", "v_proj", "embed_tokens"]}, "embedding_lora", 1),
        ({"trainable_token_indices": [1, 5]}, "token_rows", 1),
        ({"init_lora_weights": "pissa"}, "init", 1),
        ({"init_lora_weights": "olora"}, "init", 1),
    ],
)
def test_the_keys_that_peft_writes(
    tmp_path: Path, config: dict[str, Any], when: str, count: int
) -> None:
    """Each kind of content is seen in the file that PEFT itself wrote for it."""
    fields = {"lora_bias": False} | config
    model, adapter = written(tmp_path / "x", **fields)
    found = broken(adapter, "vllm")
    assert len(found[when].hits) == count
    assert set(found) <= {when, "base_layer", "embedding_size"}
    if when == "init":
        changed = model.unload().state_dict()
        fresh = base().state_dict()
        name = "model.layers.0.self_attn.q_proj.weight"
        assert not torch.allclose(changed[name], fresh[name], atol=1e-4)


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", True])
def test_inits_that_leave_the_base_alone(tmp_path: Path, init: Any) -> None:
    """These set A and B only, so that the saved adapter is a plain LoRA."""
    model, adapter = written(tmp_path / "x", init_lora_weights=init)
    assert "init" not in broken(adapter, "vllm")
    after, before = model.unload().state_dict(), base().state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_resized_vocabulary_is_saved_whole(tmp_path: Path) -> None:
    """PEFT saves resized embeddings: whole ones, or the copy beside LoRA on them."""
    adapters = {}
    for name in ("q_proj", "embed_tokens"):
        model = base()
        model.resize_token_embeddings(104, mean_resizing=False)
        wrapped = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=[name]))
        wrapped.save_pretrained(tmp_path / name, save_embedding_layers=True)
        adapters[name] = open_adapter(tmp_path / name)
    whole = broken(adapters["q_proj"], "vllm")["full_tensor"].hits
    assert {hit.found for hit in whole} == {"embed_tokens", "lm_head"}
    copy = broken(adapters["embed_tokens"], "vllm")["base_layer"]
    assert ([hit.found for hit in copy.hits], copy.rule.does) == (["embed_tokens"], "ignored")
    known = violations(adapters["embed_tokens"], load_profile("vllm"), SIZES)
    (size,) = [v for v in known if v.rule.when == "embedding_size"]
    assert (size.hits[0].found, size.hits[0].expected) == ("104 rows", "96 rows")


def test_one_side_of_tied_embeddings(tmp_path: Path) -> None:
    """In PEFT an update on a tied embedding leaves the head as it was: what MLX cannot do."""
    model = base(tie_word_embeddings=True)
    head = model.lm_head.weight.detach().clone()
    config = peft.LoraConfig(r=8, target_modules=["embed_tokens"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config)
    hidden = torch.randn(1, 3, 64)
    applied = wrapped.base_model.model.lm_head(hidden)
    assert torch.equal(applied, hidden @ head.T)
    wrapped.save_pretrained(tmp_path / "x")
    adapter = open_adapter(tmp_path / "x")
    tied = violations(adapter, load_profile("mlx"), SIZES | {"tie_word_embeddings": True})
    assert "tied" in {v.rule.when for v in tied}


def test_a_pattern_of_modules(tmp_path: Path) -> None:
    """PEFT keeps a pattern as a string, which SGLang refuses."""
    _, adapter = written(tmp_path / "x", target_modules=r".*self_attn\.(q|k|v)_proj")
    assert {"target_regex"} == set(broken(adapter, "sglang"))


def test_some_layers_only(tmp_path: Path) -> None:
    """layers_to_transform leaves the rest without tensors, so TGI drops every kind of module."""
    _, adapter = written(tmp_path / "x", layers_to_transform=[1], layers_pattern="layers")
    assert len(broken(adapter, "tgi")["layers_missing"].hits) == 7
    assert broken(adapter, "vllm") == {}
