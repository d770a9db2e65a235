"""Adapters that other libraries wrote: read by us, each gives the weights that its maker merged.

`golden/` holds the files; `expected.safetensors` the weights as the maker's own code merged them,
under Hugging Face names. The change of weights is computed here, from the factors that
`adaptertools.open` returns.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import adaptertools
from adaptertools.formats.model import read_model

GOLDEN = Path(__file__).parent / "golden"
WEIGHTS = ("*.gguf", "*.safetensors", "*.npz", "*.pt", "*.lora", "*.nemo", "pytorch_adapter.bin")
# largest difference of a merged weight: peers merge in fp32, and the 16-bit files were rounded
TOLERANCE = {"adapter-f16": 5e-4, "adapter-bf16": 4e-3, "adapter-q8_0": 5e-3}
FP32 = 2e-6
REFUSED = "adapters/llama-dora/pytorch_adapter.bin"
NOT_YET = {
    "mlx/dora-embeddings/adapters.safetensors": "MLX keeps a magnitude for each token: [vocab]",
    "nemo/canonical/lora.nemo": "a .nemo compressed by gzip is refused",
    "nemo/tp2/lora.nemo": "the shards of tensor parallelism are not joined",
}
Weights = dict[str, np.ndarray]


def golden_files() -> Iterator[Path]:
    """Yield every adapter file, of cases whose maker merged it."""
    for expected in sorted(GOLDEN.glob("*/*/expected.safetensors")):
        found = sorted({f for glob in WEIGHTS for f in expected.parent.glob(glob)} - {expected})
        assert found, f"{expected.parent} holds no adapter"
        yield from (file for file in found if name_of(file) != REFUSED)


def cases() -> Iterator[Any]:
    """Yield every file as a test's parameter; what is not read yet is expected to fail."""
    for file in golden_files():
        name = name_of(file)
        reason = NOT_YET.get(name)
        mark = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
        yield pytest.param(file, id=name, marks=mark)


def name_of(path: Path) -> str:
    return path.relative_to(GOLDEN).as_posix()


def case_of(file: Path) -> dict[str, Any]:
    return json.loads((file.parent / "case.json").read_text())


def doubled(factor: Any) -> np.ndarray:
    return factor.read().double().numpy()


def merge(weights: Weights, update: Any, flipped: bool) -> None:
    """Apply one update to the weights; `flipped` modules keep them as [in, out]."""
    name = update.target.name
    old = weights[name].T if flipped else weights[name]
    if update.kind == "low_rank":
        assert not flipped or "in out" in update.weight
        new = old + update.scale * doubled(update.up) @ doubled(update.down)
        if update.magnitude is not None:
            norms = np.linalg.norm(new, axis=1, keepdims=True)
            new = new / norms * doubled(update.magnitude).reshape(-1, 1)
    elif update.kind == "scaling":
        vector = update.scale * doubled(update.vector)
        new = old * (vector[:, None] if update.axis == "out" else vector)
        if update.axis == "out" and (bias := f"{update.target.module}.bias") in weights:
            weights[bias] = weights[bias] * vector
    else:
        new = doubled(update.value)
    weights[name] = new.T if flipped else new


def merged(file: Path, given: Mapping[str, Any], ends: str = "") -> Weights:
    """Return the base's weights with the adapter merged, of the modules that end so."""
    base = GOLDEN / case_of(file)["base"]
    weights = {k: v.astype(np.float64) for k, v in load_file(base / "model.safetensors").items()}
    adapter = adaptertools.open(file, model=read_model(base), given=given)
    assert not adapter.errors, adapter.errors
    assert not adapter.unmatched
    for update in adapter.updates:
        target = update.target
        if target.module.endswith(ends):
            flipped = "embed" in target.name or (
                base.name == "base-gpt2" and target.param != "bias"
            )
            merge(weights, update, flipped)
    return weights


def expected_of(file: Path) -> Weights:
    base = GOLDEN / case_of(file)["base"] / "model.safetensors"
    return load_file(base) | load_file(file.parent / "expected.safetensors")


def worst(got: Weights, wanted: Mapping[str, np.ndarray], ends: str = "") -> float:
    """Return the largest difference of any weight of modules that end so."""
    assert got.keys() == wanted.keys()
    names = [n for n in got if n.rpartition(".")[0].endswith(ends)]
    assert names
    return max(np.abs(got[n] - wanted[n]).max() for n in names)


@pytest.mark.parametrize("file", list(cases()))
def test_it_means_what_its_maker_merged(file: Path) -> None:
    """Every weight of the base, changed or not, is what the maker's own merge gives."""
    settings = case_of(file).get("settings", {"": {}})
    every = {field: value for given in settings.values() for field, value in given.items()}
    for ends, given in settings.items():
        got, wanted = merged(file, every | given, ends), expected_of(file)
        assert worst(got, wanted, ends) <= TOLERANCE.get(file.stem, FP32), ends


def test_the_tolerances_would_show_a_wrong_row_order() -> None:
    """What the adapters change is a hundred times what the widest tolerance allows."""
    for file in golden_files():
        base = load_file(GOLDEN / case_of(file)["base"] / "model.safetensors")
        new = load_file(file.parent / "expected.safetensors")
        moved = min(np.abs(value - base[name]).max() for name, value in new.items())
        assert moved > 20 * TOLERANCE.get(file.stem, FP32), name_of(file)


def test_adapterhubs_dora_is_refused() -> None:
    """Its norm leaves the scale out, so no other library means the same by these tensors."""
    adapter = adaptertools.open(GOLDEN / REFUSED)
    assert "AT230" in {finding.id for finding in adapter.errors}


# --- what we write, against what the format's own tools wrote ------------------------------------


def gguf_contents(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return keys and tensors of a GGUF file, as gguf-py reads them."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(str(path))
    keys = {name: f.contents() for name, f in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {
        t.name: (t.tensor_type.name, t.shape.tolist(), t.data.tobytes()) for t in reader.tensors
    }
    return keys, tensors


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("gguf/*/*.gguf")), ids=name_of)
def test_gguf_is_what_llamacpp_converts(file: Path, tmp_path: Path) -> None:
    """From the same PEFT folder: the same keys that matter, tensors, order, types and bytes."""
    base, out = GOLDEN / case_of(file)["base"], tmp_path / "out.gguf"
    dtype = file.stem.partition("-")[2]
    adaptertools.convert(file.parent / "peft", "gguf-lora", out, base=base, dtype=dtype, jobs=1)
    (theirs, wanted), (ours, got) = gguf_contents(file), gguf_contents(out)
    assert list(got) == list(wanted)
    assert [name for name in wanted if got[name] != wanted[name]] == []
    about = ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha")
    assert {key: ours[key] for key in about} == {key: theirs[key] for key in about}


def rows(folder: Path) -> dict[tuple[int, ...], np.ndarray]:
    """Return the rows of TensorRT-LLM's two files by (module, layer, rank)."""
    facts = np.load(folder / "model.lora_config.npy")[0].tolist()
    return dict(zip(map(tuple, facts), np.load(folder / "model.lora_weights.npy")[0], strict=True))


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_rows_are_what_nvidias_script_converts(dtype: str, tmp_path: Path) -> None:
    """The same rows, within one rounding of the scale that both multiply into B."""
    source, base = GOLDEN / "gguf/linear/peft", GOLDEN / "base-llama"
    adaptertools.convert(source, "trtllm-lora", tmp_path / "out", base=base, dtype=dtype, jobs=1)
    got, wanted = rows(tmp_path / "out"), rows(GOLDEN / f"trt/linear-{dtype}")
    assert got.keys() == wanted.keys()
    for facts, row in wanted.items():
        assert got[facts].dtype == row.dtype
        np.testing.assert_array_max_ulp(got[facts], row, maxulp=1)


def test_torchtune_becomes_what_torchtune_exports(tmp_path: Path) -> None:
    """Its own PEFT export and our conversion of its native file agree bit for bit."""
    folder = GOLDEN / "torchtune/all"
    base = GOLDEN / case_of(folder / "x")["base"]
    adaptertools.convert(
        folder / "adapter_model.pt", "peft-lora", tmp_path / "out", base=base, jobs=1
    )
    got = load_file(tmp_path / "out/adapter_model.safetensors")
    wanted = load_file(folder / "adapter_model.safetensors")
    assert got.keys() == wanted.keys()
    assert all(np.array_equal(got[key], wanted[key]) for key in wanted)


def test_a_nemo_archive_unpacked_from_gzip(tmp_path: Path) -> None:
    """The canonical NeMo case, of which only the compression is refused."""
    folder, inside = GOLDEN / "nemo/canonical", tmp_path / "lora.nemo"
    inside.write_bytes(gzip.decompress((folder / "lora.nemo").read_bytes()))
    for name in ("case.json", "expected.safetensors"):
        shutil.copy(folder / name, tmp_path)
    assert worst(merged(inside, {}), expected_of(inside)) <= FP32
