"""The same bytes whatever the threads and the adapter file's layout; dtype and shards as asked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from builders import LINEARS, Tensors, read_checkpoint, read_safetensors, tiny_base, tiny_lora
from builders import write_safetensors as write

import adaptertools
from adaptertools.algebra import blocks

from .exact import check, load
from .layers import Layer, base_of, make_lora
from .world import World

WEIGHTS = "adapter_model.safetensors"


def hashes(folder: Path, but: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the sha256 of every file below a folder."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in but]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, Path]:
    """A base in three shards and an adapter on every linear."""
    base = tiny_base(tmp_path / "base", shards=3, layers=3)
    return base, tiny_lora(tmp_path / "adapter", base, rank=5, targets=LINEARS)


@pytest.mark.parametrize("dora", [False, True])
def test_jobs_do_not_change_a_byte(
    inputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dora: bool
) -> None:
    """1, 2 and 5 threads write the same files, with many tasks for one tensor."""
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 512)
    monkeypatch.setattr(blocks, "CHUNK_BLOCKS", 2)
    base, adapter = inputs
    if dora:
        adapter = tiny_lora(tmp_path / "dora", base, rank=5, use_dora=True)
        tensors = read_safetensors(adapter / WEIGHTS)
        for name in [name for name in tensors if "lora_B" in name]:
            size = tensors[name][1][0]
            key = name.replace("lora_B.weight", "lora_magnitude_vector")
            tensors[key] = ("F32", (size,), np.linspace(0.1, 0.3, size, dtype=np.float32).tobytes())
        write(adapter / WEIGHTS, tensors, {"format": "pt"})
    seen = []
    for jobs in (1, 2, 5):
        out = tmp_path / f"out{jobs}"
        adaptertools.merge(base, adapter, out, jobs=jobs)
        seen.append(hashes(out))
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) >= 6


def test_chunks_cover_the_tensor_once(
    inputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks and chunks of any size give the values of one block."""
    base, adapter = inputs
    adaptertools.merge(base, adapter, tmp_path / "whole", jobs=1)
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 200)
    monkeypatch.setattr(blocks, "CHUNK_BLOCKS", 3)
    adaptertools.merge(base, adapter, tmp_path / "pieces", jobs=1)
    whole, pieces = (read_checkpoint(tmp_path / name) for name in ("whole", "pieces"))
    assert whole.keys() == pieces.keys()
    for name, tensor in whole.items():
        difference = np.abs(load(tensor) - load(pieces[name]))
        assert (difference <= 2.0**-7 * np.abs(load(tensor)) + 1e-9).all(), name
        assert (difference > 0).mean() < 1e-3, name


def test_tensor_order_does_not_matter(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    """An adapter file with its header and its data in other orders merges to the same bytes."""
    base, adapter = inputs
    adaptertools.merge(base, adapter, tmp_path / "one", jobs=2)
    tensors = read_safetensors(adapter / WEIGHTS)
    names = sorted(tensors, key=lambda name: hashlib.md5(name.encode()).digest())
    shuffled = {name: tensors[name] for name in names}
    write(adapter / WEIGHTS, shuffled, {"format": "pt"}, order=names[::-1], pad=16)
    adaptertools.merge(base, adapter, tmp_path / "two", jobs=2)
    receipt = ("adaptertools.json",)
    assert hashes(tmp_path / "one", receipt) == hashes(tmp_path / "two", receipt)


def test_factor_dtype_does_not_matter(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    """The same factor values in F32, F64 and mixed give the same weights."""
    base, adapter = inputs
    adaptertools.merge(base, adapter, tmp_path / "F32", jobs=2)
    tensors = read_safetensors(adapter / WEIGHTS)
    for name, pick in (("F64", ""), ("mixed", "lora_A")):
        wide: Tensors = {}
        for key, tensor in tensors.items():
            values = load(tensor)
            keep = pick and pick not in key
            wide[key] = tensor if keep else ("F64", values.shape, values.tobytes())
        write(adapter / WEIGHTS, wide, {"format": "pt"})
        adaptertools.merge(base, adapter, tmp_path / name, jobs=2)
        receipt = ("adaptertools.json",)
        assert hashes(tmp_path / "F32", receipt) == hashes(tmp_path / name, receipt)


@pytest.mark.parametrize(("stored", "asked"), [("BF16", "f32"), ("F32", "bf16"), ("F32", "f16")])
def test_dtype_override(stored: str, asked: str) -> None:
    """Every floating tensor takes the dtype asked for, computed from the base's own values."""
    rng = np.random.default_rng(5)
    world = World(stored)
    layer = Layer("out in", 33, 21)
    weight = base_of(rng, world, layer)
    lora = make_lora(rng, layer, 3, "F32")
    world.adapter({"r": 3, "lora_alpha": 6}, lora.tensors)
    dtype = asked.upper()
    got = world.merge(dtype=asked)
    compute = "F32" if dtype == "BF16" else "F64"
    check(got[f"{layer.module}.weight"], *lora.apply(weight, 2.0), dtype, compute)
    other = world.values["bystander.weight"]
    check(got["bystander.weight"], other, np.abs(other), dtype, compute)


def test_dtype_override_reaches_header_and_config(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    """The header and config.json both say the new dtype."""
    base, adapter = inputs
    adaptertools.merge(base, adapter, tmp_path / "out", dtype="f16")
    assert {t[0] for t in read_checkpoint(tmp_path / "out").values()} == {"F16"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    before = json.loads((base / "config.json").read_text())
    assert config == before | {"dtype": "float16"}


@pytest.mark.parametrize("size", ["20KB", "64KiB", 1, "1GB"])
def test_shard_size_only_moves_tensors(
    inputs: tuple[Path, Path], tmp_path: Path, size: str | int
) -> None:
    """Resharding gives the same tensors, an index that agrees, and no shard over the limit."""
    base, adapter = inputs
    adaptertools.merge(base, adapter, tmp_path / "plain")
    adaptertools.merge(base, adapter, tmp_path / "out", shard_size=size)
    assert read_checkpoint(tmp_path / "out") == read_checkpoint(tmp_path / "plain")
    limit = {"20KB": 20_000, "64KiB": 65_536, 1: 1, "1GB": 10**9}[size]
    shards = {p.name: read_safetensors(p) for p in (tmp_path / "out").glob("*.safetensors")}
    for tensors in shards.values():
        taken = sum(len(data) for _, _, data in tensors.values())
        assert taken <= limit or len(tensors) == 1
    index = tmp_path / "out" / "model.safetensors.index.json"
    if size == "1GB":
        assert list(shards) == ["model.safetensors"] and not index.exists()
        return
    placed = {name: file for file, tensors in shards.items() for name in tensors}
    told = json.loads(index.read_text())
    assert told["weight_map"] == placed
    total = sum(len(t[2]) for tensors in shards.values() for t in tensors.values())
    assert told["metadata"]["total_size"] == total
