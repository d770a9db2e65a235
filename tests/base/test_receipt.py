"""The receipt: what it says is true, it fits its schema, and its bytes repeat."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from builders import LINEARS, tiny_base, tiny_ia3, tiny_lora

import adaptertools
from adaptertools import schemas

from .edits import config_of, files_of, read


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base in two shards, a LoRA and an (IA)3 adapter."""
    base = tiny_base(tmp_path / "base", shards=2)
    lora = tiny_lora(tmp_path / "lora", base, rank=3, targets=("q_proj", "v_proj", "down_proj"))
    return base, lora, tiny_ia3(tmp_path / "ia3", base)


def receipt_of(out: Path) -> dict[str, Any]:
    """Return a receipt that fits its schema."""
    made = json.loads((out / "adaptertools.json").read_text())
    jsonschema.Draft202012Validator(schemas.json_schema("receipt")).validate(made)
    return made


def sha256(path: Path) -> str:
    """Return the hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_inputs_and_recipe(inputs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Paths, weights and options as given; adapters by their hash; the base by size and hash."""
    base, lora, ia3 = inputs
    options = {"dtype": "f32", "compute_dtype": "f64", "hash": True}
    adaptertools.merge(base, [(lora, 0.5), ia3], tmp_path / "out", **options)
    made = receipt_of(tmp_path / "out")
    assert made["recipe"] == {
        "base": str(base),
        "adapters": [{"path": str(lora), "weight": 0.5}, {"path": str(ia3), "weight": 1.0}],
        "dtype": "F32",
        "compute_dtype": "f64",
        "shard_size": None,
        "residual_base": False,
    }
    names = ("adapter_model.safetensors", "adapter_config.json")
    for told, place in zip(made["inputs"]["adapters"], (lora, ia3), strict=True):
        assert told == {name: {"sha256": sha256(place / name)} for name in names}
    shards = sorted(base.glob("*.safetensors"))
    assert made["inputs"]["base"] == {
        p.name: {"size": p.stat().st_size, "sha256": sha256(p)} for p in shards
    }
    assert made["config_changes"] == {"dtype": "float32"}
    assert config_of(tmp_path / "out")["dtype"] == "float32"


def test_tensors_and_summary(inputs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Each touched tensor with its formula and its norms; the counts add up."""
    base, lora, ia3 = inputs
    adaptertools.merge(base, [lora, (ia3, 0.5)], tmp_path / "out", dtype="f32")
    made, before, after = receipt_of(tmp_path / "out"), read(base), read(tmp_path / "out")
    touched = {n for n in before if not np.array_equal(before[n], after[n])}
    assert set(made["tensors"]) == touched
    updates = 2 * 3 + 2 * 3
    assert made["summary"] == {
        "updates": updates, "touched": len(touched), "untouched": len(before) - len(touched),
    }  # fmt: skip
    for name, told in made["tensors"].items():
        assert told["shape"] == list(before[name].shape)
        assert (told["dtype"], told["compute_dtype"], told["changed"]) == ("F32", "F64", True)
        symbol = {"q_proj": "W + 2.66667·B@A", "k_proj": "W ⊙ (1 + 0.5·(l - 1))",
                  "v_proj": "(W + 2.66667·B@A) ⊙ (1 + 0.5·(l - 1))",
                  "down_proj": "(W + 2.66667·B@A) ⊙ (1 + 0.5·(lᵀ - 1))"}  # fmt: skip
        assert told["formula"] == symbol[name.split(".")[-2]]
        if "q_proj" in name:
            norm = np.linalg.norm(after[name] - before[name])
            assert told["delta_norm_from"] == "factors"
            assert told["delta_norm"] == pytest.approx(norm, rel=1e-4)
        else:
            assert told["delta_norm_from"] == "sample"


def test_sampled_figures_are_near(tmp_path: Path) -> None:
    """‖W‖ and the share of changed elements, from some rows, are near the true ones."""
    base = tiny_base(tmp_path / "base", hidden=512, layers=1, inter=1024, heads=8, kv_heads=8)
    lora = tiny_lora(tmp_path / "lora", base, targets=LINEARS)
    adaptertools.merge(base, lora, tmp_path / "out")
    before, after = read(base), read(tmp_path / "out")
    for name, told in receipt_of(tmp_path / "out")["tensors"].items():
        share = np.mean(before[name] != after[name])
        assert told["weight_norm"] == pytest.approx(np.linalg.norm(before[name]), rel=0.15)
        assert told["changed_share"] == pytest.approx(share, abs=0.1)
        assert 0.02 < told["delta_norm"] / told["weight_norm"] < 0.5


def test_every_byte_repeats(inputs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Two runs write the same files, the receipt included, and nothing is left beside them."""
    base, lora, ia3 = inputs
    before = {p.name for p in tmp_path.iterdir()}
    for name in ("one", "two"):
        adaptertools.merge(base, [lora, ia3], tmp_path / name, jobs=2, shard_size="50KB")
    assert {p.name for p in tmp_path.iterdir()} == before | {"one", "two"}
    files = files_of(tmp_path / "one")
    assert files == files_of(tmp_path / "two")
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_notes_are_kept(inputs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """What the user was warned of is in the receipt."""
    base, lora, _ = inputs
    config = json.loads((lora / "adapter_config.json").read_text()) | {"brandnew": 1}
    (lora / "adapter_config.json").write_text(json.dumps(config))
    adaptertools.merge(base, lora, tmp_path / "out")
    notes = receipt_of(tmp_path / "out")["notes"]
    assert [(n["id"], n["key"]) for n in notes] == [("AT302", "brandnew")]
