"""What cannot be merged right is refused by name, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="the peer library transformers is not installed")
pytest.importorskip("peft", reason="the peer library peft is not installed")

import peft
import torch
from safetensors.torch import save_file

import adaptertools

from .adapters import (
    ATTENTION,
    Variant,
    build,
    causal,
    edit_config,
    edit_tensors,
    lora,
    rename_keys,
    save_base,
)
from .bases import read_tensors

pytestmark = pytest.mark.peer

QUERY = "base_model.model.model.layers.1.self_attn.q_proj"
CAUSAL = {"task_type": "CAUSAL_LM"}
PAIR = {"target_modules": ["q_proj", "v_proj"]}
# every other PEFT method a user may hold a folder of, smallest settings that build
METHODS: dict[str, Callable[[], Any]] = {
    "ADAPTION_PROMPT": lambda: peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=1, **CAUSAL),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=4, **PAIR),
    "C3A": lambda: peft.C3AConfig(block_size=8, **PAIR),
    "FOURIERFT": lambda: peft.FourierFTConfig(n_frequency=20, **PAIR),
    "HRA": lambda: peft.HRAConfig(r=4, **PAIR),
    "LOHA": lambda: peft.LoHaConfig(r=4, **PAIR),
    "LOKR": lambda: peft.LoKrConfig(r=4, **PAIR),
    "MISS": lambda: peft.MissConfig(r=4, **PAIR),
    "OFT": lambda: peft.OFTConfig(oft_block_size=4, **PAIR),
    "PREFIX_TUNING": lambda: peft.PrefixTuningConfig(num_virtual_tokens=4, **CAUSAL),
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(num_virtual_tokens=4, **CAUSAL),
    "P_TUNING": lambda: peft.PromptEncoderConfig(num_virtual_tokens=4, **CAUSAL),
    "RANDLORA": lambda: peft.RandLoraConfig(r=4, **PAIR),
    "SHIRA": lambda: peft.ShiraConfig(r=2, **PAIR),
    "VBLORA": lambda: peft.VBLoRAConfig(num_vectors=8, vector_length=8, topk=2, **PAIR),
    "VERA": lambda: peft.VeraConfig(r=4, **PAIR),
}
# configuration -> what the refusal has to name
VARIANTS = {
    "layer-replication": (
        lora(["q_proj"], layer_replication=[[0, 2], [1, 2]]),
        r"layer_replication",
    ),
    "alora": (
        causal(lora(["q_proj"], alora_invocation_tokens=[5, 6])),
        r"(?i)alora",
    ),
    "pissa": (lora(["q_proj"], init_lora_weights="pissa"), r"(?i)pissa"),
    "pissa-niter": (lora(["q_proj"], init_lora_weights="pissa_niter_4"), r"(?i)pissa"),
    "olora": (lora(["q_proj"], init_lora_weights="olora"), r"(?i)olora"),
    "lora-bias-without-base-bias": (lora(["q_proj"], lora_bias=True), r"bias"),
}
# edits of a sound adapter that PEFT itself loads, at most with a warning
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "corda": (lambda path: edit_config(path, init_lora_weights="corda"), r"(?i)corda"),
    "loftq": (lambda path: edit_config(path, init_lora_weights="loftq"), r"(?i)loftq"),
    "lora-ga": (lambda path: edit_config(path, init_lora_weights="lora_ga"), r"lora_ga"),
    "half-a-pair": (lambda path: drop_tensor(path, f"{QUERY}.lora_B.weight"), r"q_proj"),
    "unexpected-tensor": (
        lambda path: add_tensor(path, "base_model.model.model.layers.1.self_attn.x_proj.weight"),
        r"x_proj",
    ),
    "layer-the-base-lacks": (rename_keys((r"layers\.1\.", "layers.7.")), r"layers\.7"),
    "no-magnitude": (lambda path: edit_config(path, use_dora=True), r"(?i)magnitude|dora"),
    "unknown-method": (lambda path: edit_config(path, peft_type="BONE"), r"BONE"),
}


def drop_tensor(path: Path, name: str) -> None:
    assert name in read_tensors(path)
    edit_tensors(path, lambda key, tensor: (key, None if key == name else tensor))


def add_tensor(path: Path, name: str) -> None:
    tensors = read_tensors(path)
    save_file(tensors | {name: torch.ones(4, 4)}, path / "adapter_model.safetensors")


def check_refused(base: Path, adapters: Any, reason: str, root: Path) -> None:
    """Assert that the merge is refused for `reason` and leaves nothing behind."""
    place = root / "place"
    place.mkdir()
    out = place / ("merged.safetensors" if base.is_file() else "merged")
    with pytest.raises(adaptertools.AdapterError, match=reason) as caught:
        adaptertools.merge(base, adapters, out)
    assert caught.value.code
    assert list(place.iterdir()) == []


def trained(config: Callable[[], Any], root: Path, base: str = "llama", name: str = "a") -> Any:
    return build(name, Variant(base, config, "f32"), root)


@pytest.mark.parametrize("method", METHODS)
def test_other_methods_are_refused_by_name(method: str, tmp_path: Path) -> None:
    made = trained(METHODS[method], tmp_path)
    assert f'"peft_type": "{method}"' in (made.adapter / "adapter_config.json").read_text()
    check_refused(made.base, made.adapter, method, tmp_path)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_no_merge_can_hold(name: str, tmp_path: Path) -> None:
    config, reason = VARIANTS[name]
    made = trained(config, tmp_path)
    check_refused(made.base, made.adapter, reason, tmp_path)


@pytest.mark.parametrize("name", BROKEN)
def test_what_peft_lets_pass(name: str, tmp_path: Path) -> None:
    edit, reason = BROKEN[name]
    made = build("a", Variant("llama", lora(ATTENTION), edit=edit), tmp_path)
    check_refused(made.base, made.adapter, reason, tmp_path)


def test_grouped_convolution_has_no_exact_merge(tmp_path: Path) -> None:
    made = trained(lora(["grouped"], r=4), tmp_path, "conv")
    check_refused(made.base, made.adapter, r"grouped", tmp_path)


def test_base_of_other_shapes(tmp_path: Path) -> None:
    made = trained(lora(ATTENTION), tmp_path)
    other = save_base("llama-square", "f32", tmp_path)
    check_refused(other, made.adapter, r"(?s)_proj.*(48|64)", tmp_path)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"modules_to_save": ["lm_head"]}, r"lm_head"),
        ({"trainable_token_indices": [4, 9]}, r"embed_tokens"),
    ],
    ids=["modules-to-save", "token-rows"],
)
def test_two_adapters_cannot_both_replace(
    more: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    made = [trained(lora(["q_proj"], **more), tmp_path, name=name) for name in "ab"]
    check_refused(made[0].base, [one.adapter for one in made], reason, tmp_path)


def test_two_adapters_cannot_both_replace_biases(tmp_path: Path) -> None:
    config = lora(["c_attn"], bias="all")
    made = [trained(config, tmp_path, "gpt2", name) for name in "ab"]
    check_refused(made[0].base, [one.adapter for one in made], r"bias", tmp_path)
