"""Torch files read as torch reads them: strides, shared storages, every dtype, old and new."""

from __future__ import annotations

import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import (
    Tensors,
    decode,
    read_checkpoint,
    read_safetensors,
    tiny_base,
    tiny_lora,
    write_json,
    write_safetensors,
)

import adaptertools
from adaptertools.errors import SourceError
from adaptertools.store.read import (
    read_bits,
    read_bytes,
    read_slots,
    read_tensor,
    same_bytes,
)
from adaptertools.store.scan import scan

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8")
TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


def variety() -> dict[str, torch.Tensor]:
    """Return tensors of every kind that a state dict may hold."""
    whole = torch.arange(60, dtype=torch.float32).reshape(5, 12)
    made = {
        "whole": whole,
        "transposed": whole.T,
        "rows": whole[1:4],
        "columns": whole[:, 3:7],
        "steps": whole[::2, ::3],
        "tail": whole[4:],
        "expanded": torch.arange(3.0).expand(4, 3),
        "empty": torch.empty(0, 3),
        "nothing": torch.empty(0),
        "scalar": torch.tensor(7.0),
        "one": torch.tensor([[[5.0]]]),
        "cube": torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
        "channels": torch.arange(16.0).reshape(1, 4, 2, 2).to(memory_format=torch.channels_last),
        "bools": torch.tensor([True, False, True]),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    return made | {name: torch.arange(7).to(getattr(torch, name)) for name in DTYPES}


@pytest.mark.parametrize(("protocol", "new"), [(2, True), (2, False), (3, True), (4, True)])
def test_every_tensor_reads_as_torch_loads_it(tmp_path: Path, protocol: int, new: bool) -> None:
    """Bit by bit, in the dtype and shape of torch.load, contiguous."""
    path = tmp_path / "x.bin"
    torch.save(variety(), path, _use_new_zipfile_serialization=new, pickle_protocol=protocol)
    wanted = variety()
    if protocol == 2:
        wanted = torch.load(path, weights_only=True)
    slots = read_slots(path)
    assert slots.keys() == wanted.keys()
    for name, tensor in wanted.items():
        got = read_tensor(slots[name])
        assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape), name
        assert got.is_contiguous(), name
        assert torch.equal(bits(got), bits(tensor)), name
        assert slots[name].elements == tensor.numel()
        raw = read_bits(slots[name])
        assert (raw.dtype.kind, raw.itemsize) == ("u", tensor.element_size())
        assert raw.shape == tuple(tensor.shape)
        assert raw.tobytes() == bits(tensor).numpy().tobytes(), name


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor, so that NaN equals itself."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("nest", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_nested_state_dicts_are_opened(tmp_path: Path, nest: str | None, new: bool) -> None:
    """One level of state_dict is opened; metadata on an OrderedDict does not disturb."""
    table = OrderedDict(a=torch.ones(2), b=torch.zeros(3, 1))
    table._metadata = {"": {"version": 1}}
    torch.save(table if nest is None else {nest: table, "epoch": 3}, tmp_path / "x.pt",
               _use_new_zipfile_serialization=new)  # fmt: skip
    slots = read_slots(tmp_path / "x.pt")
    assert {n: s.shape for n, s in slots.items()} == {"a": (2,), "b": (3, 1)}
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "y.pth")
    assert {n: s.shape for n, s in read_slots(tmp_path / "y.pth").items()} == {
        "weight": (3, 2), "bias": (3,),
    }  # fmt: skip


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_tensor_called_model_is_no_nest(tmp_path: Path, new: bool) -> None:
    """Only a dict is opened; numbers beside tensors are refused unless they lie outside it."""
    path, options = tmp_path / "x.pt", {"_use_new_zipfile_serialization": new}
    torch.save({"model": torch.ones(2), "a": torch.ones(3)}, path, **options)
    assert read_slots(path).keys() == {"model", "a"}
    torch.save({"model": {"a": torch.ones(3)}, "step": 3, "b": torch.ones(2)}, path, **options)
    assert read_slots(path).keys() == {"a"}
    for table in ({"a": torch.ones(3), "step": 3}, {"model": {"a": torch.ones(3), "step": 3}}):
        torch.save(table, path, **options)
        with pytest.raises(SourceError) as caught:
            read_slots(path)
        assert caught.value.code == "AT110"


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pth.lora", ".lora"])
def test_suffixes_of_torch_files(tmp_path: Path, suffix: str) -> None:
    """LitGPT calls its adapters lit_model.pth.lora."""
    path = tmp_path / f"lit_model{suffix}"
    torch.save({"model": {"a": torch.arange(3.0)}}, path)
    assert read_tensor(read_slots(path)["a"]).tolist() == [0, 1, 2]


def test_tensors_that_share_a_storage(tmp_path: Path) -> None:
    """Tied and overlapping tensors are ranges of one storage, each read as itself."""
    whole = torch.arange(12.0).reshape(3, 4)
    table = {"one": whole, "tied": whole, "row": whole[1], "column": whole[:, 2], "turned": whole.T}
    torch.save(table, tmp_path / "x.pt")
    slots = read_slots(tmp_path / "x.pt")
    assert slots["one"].offset == slots["tied"].offset == slots["row"].offset - 16
    for name, tensor in table.items():
        assert torch.equal(read_tensor(slots[name]), tensor)


@pytest.mark.parametrize("name", ["x.bin", "x.npz", "x.npy", "x.nemo", "x.safetensors"])
def test_a_file_that_cannot_be_opened(tmp_path: Path, name: str) -> None:
    """Missing, or a folder: AT100, at once or when a file vanished before it is read."""
    with pytest.raises(SourceError) as missing:
        read_slots(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(SourceError) as folder:
        read_slots(tmp_path / name)
    assert missing.value.code == folder.value.code == "AT100"
    torch.save({"a": torch.ones(3)}, tmp_path / "y.bin")
    slot = read_slots(tmp_path / "y.bin")["a"]
    (tmp_path / "y.bin").unlink()
    for read in (read_bytes, read_bits, read_tensor):
        with pytest.raises(SourceError) as gone:
            read(slot)
        assert gone.value.code == "AT100"


def save_as_torch(tensors: Tensors, path: Path, *, new: bool = True) -> None:
    """Write tensors as torch.save does, every third one as a view into a wider storage."""
    table = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        values = torch.from_numpy(decode(tensor).copy()).to(TORCH[tensor[0]])
        if number % 3 == 2 and values.ndim == 2:
            values = values.T.contiguous().T
        elif number % 3 == 1:
            values = torch.cat([values, values])[: values.shape[0]]
        table[name] = values
    torch.save(table, path, _use_new_zipfile_serialization=new)


@pytest.fixture
def twin(tmp_path: Path) -> tuple[Path, Tensors]:
    """A safetensors base and its tensors."""
    base = tiny_base(tmp_path / "base")
    return base, read_checkpoint(base)


@pytest.mark.parametrize("kind", ["zip", "legacy", "sharded"])
def test_a_bin_base_merges_like_its_twin(tmp_path: Path, twin, kind: str) -> None:
    """pytorch_model.bin, old or new or in shards, becomes the safetensors that its twin becomes."""
    base, tensors = twin
    other = tmp_path / "bin"
    write_json(other / "config.json", {})
    (other / "config.json").write_bytes((base / "config.json").read_bytes())
    if kind == "sharded":
        names = list(tensors)
        files = {n: f"pytorch_model-0000{1 + (k % 2)}-of-00002.bin" for k, n in enumerate(names)}
        for file in set(files.values()):
            save_as_torch({n: tensors[n] for n in names if files[n] == file}, other / file)
        write_json(other / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": files})
    else:
        save_as_torch(tensors, other / "pytorch_model.bin", new=kind == "zip")
    adapter = tiny_lora(tmp_path / "adapter", base)
    adaptertools.merge(base, adapter, tmp_path / "one")
    adaptertools.merge(other, adapter, tmp_path / "two", jobs=2)
    assert read_checkpoint(tmp_path / "two") == read_checkpoint(tmp_path / "one")
    names = {p.name for p in (tmp_path / "two").iterdir()}
    assert not [n for n in names if ".bin" in n]
    assert ("model.safetensors.index.json" in names) == (kind == "sharded")
    for file in (tmp_path / "two").glob("*.safetensors"):
        assert len(read_safetensors(file)) > 0
    assert adaptertools.verify(tmp_path / "two").ok
    assert adaptertools.verify(tmp_path / "two", base, adapter).ok


def test_a_bin_adapter_merges_like_its_twin(tmp_path: Path, twin) -> None:
    """adapter_model.bin gives the bytes that adapter_model.safetensors gives."""
    base, _ = twin
    adapter = tiny_lora(tmp_path / "adapter", base)
    adaptertools.merge(base, adapter, tmp_path / "one")
    weights = adapter / "adapter_model.safetensors"
    save_as_torch(read_safetensors(weights), adapter / "adapter_model.bin")
    weights.unlink()
    adaptertools.merge(base, adapter, tmp_path / "two")
    assert read_checkpoint(tmp_path / "two") == read_checkpoint(tmp_path / "one")


SPECIAL = [0.0, -0.0, 1.0, float("nan"), float("inf"), float("-inf"), 2.0**-14]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("special", SPECIAL)
def test_scan_sees_every_value(tmp_path: Path, dtype: str, special: float) -> None:
    """Finite and zero are told right, wherever the value stands, from the bits alone."""
    for place in (0, 5, 9):
        values = np.zeros(10)
        values[place] = special
        tensor = torch.from_numpy(values).to(TORCH[dtype])
        data = tensor.view(torch.uint8).numpy().tobytes()
        path = write_safetensors(tmp_path / "x.safetensors", {"a": (dtype, (10,), data)})
        found = scan(read_slots(path)["a"])
        assert (found.finite, found.zero) == (bool(np.isfinite(special)), special == 0)


def test_scan_looks_past_its_first_block(tmp_path: Path) -> None:
    """A tensor longer than one read of 16 MiB is looked at to its end."""
    values = np.zeros(2**22 + 3, np.float32)
    values[-1] = np.inf
    tensor = ("F32", values.shape, values.tobytes())
    found = scan(read_slots(write_safetensors(tmp_path / "x.safetensors", {"a": tensor}))["a"])
    assert (found.finite, found.zero) == (False, False)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_scan_sees_nan_in_torch_files(tmp_path: Path, new: bool) -> None:
    """A NaN in a .bin adapter is seen as well, whichever way the file was written."""
    torch.save({"a": torch.tensor([1.0, float("nan")])}, tmp_path / "x.bin",
               _use_new_zipfile_serialization=new)  # fmt: skip
    assert not scan(read_slots(tmp_path / "x.bin")["a"]).finite


def test_same_bytes(tmp_path: Path) -> None:
    """Equal only in dtype, shape and every byte."""
    data = struct.pack("<4f", 1, 2, 3, 4)
    tensors: Tensors = {
        "a": ("F32", (4,), data),
        "b": ("F32", (4,), data),
        "c": ("F32", (2, 2), data),
        "d": ("I32", (4,), data),
        "e": ("F32", (4,), data[:-1] + b"\0"),
    }
    slots = read_slots(write_safetensors(tmp_path / "x.safetensors", tensors))
    assert {n for n, s in slots.items() if same_bytes(slots["a"], s)} == {"a", "b"}
    nan = torch.tensor([[1.0, float("nan")], [-0.0, 2.0]])
    table = {"rows": nan, "columns": nan.T.contiguous().T, "zero": nan.abs()}
    torch.save(table, tmp_path / "x.bin")
    strided = read_slots(tmp_path / "x.bin")
    assert same_bytes(strided["rows"], strided["columns"])
    assert not same_bytes(strided["columns"], strided["zero"])
    assert bytes(read_bytes(slots["a"], 4, 8)) == data[4:12]
