"""Faults an independent review found: each once silently wrong, or told wrongly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import adaptertools
from adaptertools import AdapterError

FIXTURES = Path(__file__).parent.parent.parent / "fixtures"
LORA, BASE = FIXTURES / "tiny-llama-lora", FIXTURES / "tiny-llama"
Q = "model.layers.0.self_attn.q_proj.weight"


def saved(folder: Path, tensors: dict[str, torch.Tensor], modules: list[str]) -> Path:
    """Write a LoRA adapter that only brings full values."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "modules_to_save": modules}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    named = {f"base_model.model.{name}": value for name, value in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    return folder


def test_the_same_new_head_is_written_once(tmp_path: Path) -> None:
    score = {"score.weight": torch.ones(2, 64)}
    pair = [saved(tmp_path / name, score, ["score"]) for name in "ab"]
    adaptertools.merge(BASE, pair, tmp_path / "out")
    assert torch.equal(
        load_file(tmp_path / "out/model.safetensors")["score.weight"].float(), score["score.weight"]
    )
    assert adaptertools.verify(tmp_path / "out").ok


@pytest.mark.parametrize("other", [torch.zeros(2, 64), torch.ones(3, 64)])
def test_different_new_heads_are_refused(tmp_path: Path, other: torch.Tensor) -> None:
    one = saved(tmp_path / "a", {"score.weight": torch.ones(2, 64)}, ["score"])
    two = saved(tmp_path / "b", {"score.weight": other}, ["score"])
    with pytest.raises(AdapterError, match="different values"):
        adaptertools.merge(BASE, [one, two], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_verify_sees_nan(tmp_path: Path) -> None:
    adaptertools.merge(BASE, LORA, tmp_path / "out")
    file = tmp_path / "out/model.safetensors"
    tensors = load_file(file)
    tensors[Q][3, 5] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    found = adaptertools.verify(tmp_path / "out")
    assert [t.name for t in found.targets if t.verdict != "exact"] == [Q]
    assert not found.ok


def test_verify_of_integers_where_floats_belong(tmp_path: Path) -> None:
    adaptertools.merge(BASE, LORA, tmp_path / "out")
    file = tmp_path / "out/model.safetensors"
    tensors = load_file(file)
    tensors[Q] = tensors[Q].to(torch.int8)
    save_file(tensors, file, metadata={"format": "pt"})
    (verdict,) = [t for t in adaptertools.verify(tmp_path / "out").targets if t.name == Q]
    assert verdict.verdict == "changed"


def test_only_vocabularies_and_heads_grow(tmp_path: Path) -> None:
    wide = {"model.layers.0.mlp.up_proj.weight": torch.ones(200, 64)}
    with pytest.raises(AdapterError) as caught:
        adaptertools.merge(BASE, saved(tmp_path / "a", wide, ["up_proj"]), tmp_path / "out")
    assert caught.value.code == "AT403"


def test_an_embedding_does_not_outgrow_its_head(tmp_path: Path) -> None:
    grown = {"model.embed_tokens.weight": torch.ones(140, 64)}
    with pytest.raises(AdapterError, match="same rows"):
        adaptertools.merge(BASE, saved(tmp_path / "a", grown, ["embed_tokens"]), tmp_path / "out")


def test_a_second_weight_on_the_same_value_counts(tmp_path: Path) -> None:
    name = "model.norm.weight"
    before = load_file(BASE / "model.safetensors")[name].double()
    value = torch.full((64,), 3.0)
    pair = [(saved(tmp_path / n, {name: value}, ["norm"]), w) for n, w in (("a", 0.5), ("b", 1.0))]
    adaptertools.merge(BASE, pair, tmp_path / "out")
    assert not torch.equal(before, value.double())
    assert torch.equal(load_file(tmp_path / "out/model.safetensors")[name].float(), value)


def test_companions_of_other_models_stay_where_they_are(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(LORA, adapter)
    for folder in ("checkpoint-1", "othermodel"):
        (adapter / folder).mkdir()
        (adapter / folder / "tokenizer.json").write_text("{}")
    (adapter / "chat_templates").mkdir()
    (adapter / "chat_templates" / "tool.jinja").write_text("x")
    adaptertools.merge(BASE, adapter, tmp_path / "out")
    folders = sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir())
    assert folders == ["chat_templates"]


def test_a_failing_receipt_costs_no_output(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    (tmp_path / "out.adaptertools.json").mkdir()
    with pytest.raises(AdapterError):
        adaptertools.merge(BASE / "model.safetensors", LORA, out, overwrite=True)
    assert out.read_bytes() == b"old"


def test_a_folder_named_like_a_file_can_be_verified(tmp_path: Path) -> None:
    adaptertools.merge(BASE, LORA, tmp_path / "m.safetensors")
    assert adaptertools.verify(tmp_path / "m.safetensors").ok


def test_a_damaged_receipt_is_said_to_be_damaged(tmp_path: Path) -> None:
    adaptertools.merge(BASE, LORA, tmp_path / "out")
    receipt = json.loads((tmp_path / "out/adaptertools.json").read_text())
    for field, value in (("inputs", 5), ("recipe", {**receipt["recipe"], "compute_dtype": "f16"})):
        (tmp_path / "out/adaptertools.json").write_text(json.dumps({**receipt, field: value}))
        with pytest.raises(AdapterError, match="receipt is damaged"):
            adaptertools.verify(tmp_path / "out")


def test_the_current_folder_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AdapterError) as caught:
        adaptertools.merge(BASE, LORA, ".", dry_run=True)
    assert caught.value.code == "AT503"


def test_an_absurd_count_of_experts_takes_no_time(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "mixtral", "num_local_experts": 2_000_000_000}
    (base / "config.json").write_text(json.dumps(config))
    names = {
        "model.layers.0.mlp.experts.lora_A.weight": torch.ones(8, 64),
        "model.layers.0.mlp.experts.lora_B.weight": torch.ones(96, 8),
    }
    adapter = saved(tmp_path / "a", names, [])
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["target_parameters"] = ["experts.gate_up_proj"]
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(AdapterError) as caught:
        adaptertools.merge(base, adapter, tmp_path / "out")
    assert caught.value.code == "AT401"


def test_a_bare_file_warns_of_a_tied_embedding(tmp_path: Path) -> None:
    tensors = load_file(BASE / "model.safetensors")
    tensors = {name: value for name, value in tensors.items() if name != "lm_head.weight"}
    save_file(tensors, tmp_path / "base.safetensors", metadata={"format": "pt"})
    name = "model.embed_tokens.weight"
    full = saved(tmp_path / "a", {name: torch.ones_like(tensors[name])}, ["embed_tokens"])
    plan = adaptertools.merge(
        tmp_path / "base.safetensors", full, tmp_path / "o.safetensors", dry_run=True
    )
    assert "AT323" in {note.id for note in plan.notes}
