"""Reading PEFT's folders and judging merges that PEFT itself made."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="the peer library transformers is not installed")
pytest.importorskip("peft", reason="the peer library peft is not installed")

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file

import adaptertools

from . import oracle, zoo
from .adapters import Made, build
from .bases import read_tensors

pytestmark = pytest.mark.peer

# one of each way a tensor can change
JUDGED = [
    "lora",
    "lora-f32",
    "lora-patterns",
    "dora-f16",
    "conv1d-gpt2",
    "embedding",
    "conv",
    "lora-bias",
    "modules-to-save-tied",
    "token-rows",
    "experts",
    "per-expert",
    "ia3-bias",
    "ia3-conv1d",
]
# name -> rank, every rank, scale
SCALES: dict[str, tuple[int | None, set[int], float | None]] = {
    "lora": (4, {4}, 1.5),
    "lora-rslora": (5, {5}, 6 / 5**0.5),
    "lora-patterns": (None, {2, 3, 4, 5}, None),
    "conv1d-gpt2": (4, {4}, 1.5),
    "conv": (3, {3}, 2.0),
    "dora": (4, {4}, 1.5),
}


def verdicts(result: Any) -> set[str]:
    targets = result.to_json()["targets"]
    assert targets
    return {target["verdict"] for target in targets}


def judge(out: Path, made: Made) -> Any:
    return adaptertools.verify(out, base=made.base, adapters=[made.adapter])


@pytest.mark.parametrize("name", JUDGED)
def test_our_merge_verifies(name: str, tmp_path: Path) -> None:
    made = build(name, zoo.VARIANTS[name], tmp_path)
    out = tmp_path / ("merged.safetensors" if made.base.is_file() else "merged")
    adaptertools.merge(made.base, made.adapter, out)
    result = judge(out, made)
    assert result.ok
    assert verdicts(result) == {"exact"}


def peft_merge(made: Made, out: Path, weight: float = 1, *, safe: bool = False) -> Path:
    """Merge as PEFT's users do, in the base's own dtype."""
    model = made.model(torch.bfloat16)
    wrapped = peft.PeftModel.from_pretrained(model, made.original)
    if weight != 1:
        oracle.scale_adapter(wrapped, weight)
    wrapped.merge_and_unload(safe_merge=safe).save_pretrained(out)
    return out


def test_peft_merge_verifies(tmp_path: Path) -> None:
    made = build("lora", zoo.VARIANTS["lora"], tmp_path)
    result = judge(peft_merge(made, tmp_path / "merged"), made)
    assert result.ok
    assert verdicts(result) == {"exact"}


def test_peft_safe_merge_rounds_twice(tmp_path: Path) -> None:
    made = build("lora", zoo.VARIANTS["lora"], tmp_path)
    once = read_tensors(peft_merge(made, tmp_path / "once"))
    twice = read_tensors(peft_merge(made, tmp_path / "twice", safe=True))
    assert any(not torch.equal(once[name], twice[name]) for name in once)
    assert verdicts(judge(tmp_path / "twice", made)) == {"two-roundings"}


def test_base_alone_is_not_applied(tmp_path: Path) -> None:
    made = build("lora", zoo.VARIANTS["lora"], tmp_path)
    shutil.copytree(made.base, tmp_path / "copy")
    result = judge(tmp_path / "copy", made)
    assert not result.ok
    assert verdicts(result) == {"not-applied"}


def test_half_strength_is_told_apart(tmp_path: Path) -> None:
    made = build("lora", zoo.VARIANTS["lora"], tmp_path)
    result = judge(peft_merge(made, tmp_path / "half", 0.5), made)
    assert not result.ok
    assert verdicts(result) == {"other-strength"}


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"])
def test_one_changed_tensor_is_found(name: str, tmp_path: Path) -> None:
    made = build("lora", zoo.VARIANTS["lora"], tmp_path)
    out = peft_merge(made, tmp_path / "merged")
    tensors = read_tensors(out)
    tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    result = judge(out, made)
    assert not result.ok
    report = result.to_json()
    found = {t["name"]: t["verdict"] for t in report["targets"] + report["others"]}
    assert found[name] == "changed"
    assert [n for n, verdict in found.items() if verdict != "exact"] == [name]


@pytest.mark.parametrize("name", zoo.VARIANTS)
def test_inspect_accounts_for_every_tensor(name: str, tmp_path: Path) -> None:
    made = build(name, zoo.VARIANTS[name], tmp_path)
    report = adaptertools.inspect(made.adapter).to_json()
    method = name if name == "adalora" else "ia3" if name.startswith("ia3") else "lora"
    assert report["format"] == f"peft-{method}"
    assert report["targets"]
    assert report["unmatched"] == []


@pytest.mark.parametrize("name", SCALES)
def test_inspect_reads_rank_and_scale(name: str, tmp_path: Path) -> None:
    made = build(name, zoo.VARIANTS[name], tmp_path)
    report = adaptertools.inspect(made.adapter).to_json()
    rank, ranks, scale = SCALES[name]
    wrapped = peft.PeftModel.from_pretrained(made.model(), made.original)
    layers = [module for module in wrapped.modules() if isinstance(module, BaseTunerLayer)]
    assert report["rank"] == rank
    assert {target["rank"] for target in report["targets"]} == ranks
    assert len(report["targets"]) == len(layers)
    assert sorted(target["scale"] for target in report["targets"]) == pytest.approx(
        sorted(layer.scaling["default"] for layer in layers)
    )
    if scale is not None:
        assert report["scale"] == pytest.approx(scale)


@pytest.mark.parametrize("name", zoo.VARIANTS)
def test_validate_passes_what_peft_saved(name: str, tmp_path: Path) -> None:
    made = build(name, zoo.VARIANTS[name], tmp_path)
    result = adaptertools.validate(made.original, base=made.base)
    errors = [f for f in result.to_json()["findings"] if f["severity"] == "error"]
    assert result.ok, errors
    assert errors == []
