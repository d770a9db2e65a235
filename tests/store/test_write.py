"""Writers: the bytes do not depend on jobs or layout, and the real libraries read them back."""

from __future__ import annotations

import errno
import io
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptertools.errors import OutputError, SourceError
from adaptertools.store import torchsave, write
from adaptertools.store.dtypes import DTYPES, GGML_TYPES, torch_dtype
from adaptertools.store.header import read_header
from adaptertools.store.read import read_bits, read_slots
from adaptertools.store.stored import Stored
from adaptertools.store.torchsave import torch_size, write_torch
from adaptertools.store.write import WRITERS, raw_bytes, write_safetensors, write_weights

from .test_npz import LAYOUTS, PROPERTY, SHAPES, random_bits, refusal, sha, stored

SIZES = {8: "U8", 16: "U16", 32: "U32", 64: "U64"}
WHOLE = sorted(name for name, dtype in DTYPES.items() if dtype.bits in SIZES)
TORCH = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "C64"]
NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=9).filter(
    lambda name: name != "__metadata__"
)
SUFFIX = {"safetensors": ".safetensors", "torch": ".pt", "npz": ".npz"}


def bits_of(dtype: str, shape: tuple[int, ...], layout: str, seed: int) -> Any:
    """Return random bits of any whole dtype."""
    word = "BOOL" if dtype == "BOOL" else SIZES[DTYPES[dtype].bits]
    return random_bits(word, shape, layout, seed)


def tables(dtypes: list[str]) -> Any:
    """Return the strategy for tables of tensors of these dtypes, as (dtype, bits)."""
    row = st.builds(
        lambda dtype, *rest: (dtype, bits_of(dtype, *rest)),
        st.sampled_from(dtypes),
        SHAPES,
        st.sampled_from(LAYOUTS),
        st.integers(0, 99),
    )
    return st.dictionaries(NAMES, row, max_size=5)


def rows_of(table: dict[str, Any]) -> list[Stored]:
    """Return a table as tensors to be written."""
    return [stored(name, dtype, bits) for name, (dtype, bits) in table.items()]


def same(tensor: torch.Tensor, dtype: str, bits: Any) -> bool:
    """Say whether a torch tensor has these bits, in this dtype and shape."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    told = (tensor.dtype, tuple(tensor.shape), data)
    return bool(told == (torch_dtype(dtype), bits.shape, bits.tobytes()))


@PROPERTY
@given(tables(WHOLE), st.dictionaries(NAMES, NAMES, max_size=3), st.integers(1, 3))
def test_safetensors(tmp_path: Path, table: Any, metadata: dict[str, str], jobs: int) -> None:
    """The official library reads it; names keep their order; jobs change nothing."""
    one, two = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    write_safetensors(one, rows_of(table), metadata)
    write_safetensors(two, rows_of(table), dict(reversed(metadata.items())), jobs)
    assert sha(one) == sha(two)
    header = read_header(one)
    assert header.metadata == metadata
    assert sorted(header.slots, key=list(table).index) == list(table)
    starts = [header.slots[name].offset for name in table]
    assert starts == sorted(starts)
    for name, (dtype, bits) in table.items():
        assert header.slots[name].dtype == dtype
        assert np.array_equal(read_bits(header.slots[name]), bits)
    with safetensors.safe_open(one, "pt") as official:
        assert set(official.keys()) == set(table)
        for name, (dtype, bits) in table.items():
            assert same(official.get_tensor(name), dtype, bits), (name, dtype)


@PROPERTY
@given(tables(TORCH), st.sampled_from([None, "model", "state_dict"]), st.integers(1, 3))
def test_torch(tmp_path: Path, table: Any, nest: str | None, jobs: int) -> None:
    """torch.load gives equal tensors, mapped or not; files and streams have the same bytes."""
    rows, path = rows_of(table), tmp_path / "x.pt"
    write_torch(path, rows, nest, jobs)
    stream = io.BytesIO()
    write_torch(stream, rows, nest)
    assert path.read_bytes() == stream.getvalue()
    assert len(stream.getvalue()) == torch_size(rows, nest)
    for options in ({"weights_only": True}, {"weights_only": True, "mmap": True}, {}):
        loaded = torch.load(path, **{"weights_only": False, **options})
        assert type(loaded) is dict and (nest is None or list(loaded) == [nest])
        loaded = loaded if nest is None else loaded[nest]
        assert list(loaded) == list(table)
        for name, (dtype, bits) in table.items():
            assert same(loaded[name], dtype, bits)
            assert loaded[name].stride() == torch.empty(bits.shape).stride()
            assert not loaded[name].requires_grad
    slots = read_slots(path)
    assert list(slots) == list(table)
    for name, (dtype, bits) in table.items():
        assert (slots[name].dtype, slots[name].shape) == (dtype, bits.shape)
        assert np.array_equal(read_bits(slots[name]), bits)
        assert slots[name].offset % 64 == 0


def test_a_torch_file_is_laid_out_as_torch_lays_it_out(tmp_path: Path) -> None:
    """The same records; torch's own reader finds them, and storages at multiples of 64."""
    tensors = OrderedDict(a=torch.ones(3, 4), b=torch.zeros(2, dtype=torch.bfloat16))
    torch.save(dict(tensors), tmp_path / "archive.pt")
    rows = [
        stored("a", "F32", tensors["a"].numpy().view(np.uint32)),
        stored("b", "BF16", np.zeros(2, np.uint16)),
    ]
    write_torch(tmp_path / "ours.pt", rows)
    theirs = torch.PyTorchFileReader(str(tmp_path / "archive.pt"))
    ours = torch.PyTorchFileReader(str(tmp_path / "ours.pt"))
    names = set(theirs.get_all_records()) - {".format_version", ".storage_alignment"}
    assert names == set(ours.get_all_records())
    for name in names - {"data.pkl", ".data/serialization_id"}:
        assert ours.get_record(name) == theirs.get_record(name)
        assert not name.startswith("data/") or ours.get_record_offset(name) % 64 == 0
    identity = ours.get_record(".data/serialization_id")
    assert len(identity) == 40 and identity.isdigit()
    write_torch(tmp_path / "other.pt", [rows[0], stored("b", "BF16", np.ones(2, np.uint16))])
    other = torch.PyTorchFileReader(str(tmp_path / "other.pt"))
    assert other.get_record("data.pkl") == ours.get_record("data.pkl")
    assert other.get_record(".data/serialization_id") != identity


@pytest.mark.parametrize("limits", [(64, 0xFFFF), (0xFFFFFFFF, 2), (1000, 2)])
def test_large_torch_files_use_zip64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int]
) -> None:
    """torch reads the zip64 fields that sizes and places past 4 GiB need (limits moved down)."""
    monkeypatch.setattr(torchsave, "MAX32", limits[0])
    monkeypatch.setattr(torchsave, "MAX16", limits[1])
    table = {f"t{k}": ("F32", bits_of("F32", (k, 50), "rows", k)) for k in range(9)}
    write_torch(tmp_path / "x.pt", rows_of(table))
    for mapped in (False, True):
        loaded = torch.load(tmp_path / "x.pt", weights_only=True, mmap=mapped)
        assert all(same(loaded[name], *row) for name, row in table.items())
    slots = read_slots(tmp_path / "x.pt")
    assert all(np.array_equal(read_bits(slots[n]), bits) for n, (_, bits) in table.items())


def test_large_numbers_in_a_pickle(tmp_path: Path) -> None:
    """Sizes past a byte and past 31 bits: an empty tensor may have them."""
    for shape in ((255, 0), (256, 0), (65536, 0), (2**31, 0), (0, 2**40)):
        bits = np.empty(shape, np.uint8)
        write_torch(tmp_path / "x.pt", [stored("a", "U8", bits)])
        assert tuple(torch.load(tmp_path / "x.pt", weights_only=True)["a"].shape) == shape
        assert read_slots(tmp_path / "x.pt")["a"].shape == shape


@pytest.mark.parametrize("container", WRITERS)
def test_one_table_of_writers(tmp_path: Path, container: str) -> None:
    """Each is asked the same way, and its file reads back under its own suffix."""
    path = tmp_path / f"x{SUFFIX[container]}"
    table = {f"a.{k}": ("F16", bits_of("F16", (k, 9), "columns", k)) for k in range(7)}
    hashes = set()
    for jobs in (1, 2, 8):
        write_weights(path, rows_of(table), {"a": "b"}, container=container, jobs=jobs)
        hashes.add(sha(path))
    assert len(hashes) == 1
    slots = read_slots(path)
    assert {n: read_bits(slot).tolist() for n, slot in slots.items()} == {
        name: bits.tolist() for name, (_, bits) in table.items()
    }


@pytest.mark.parametrize("dtype", ["Q4_0", "Q8_0", "NONE"])
@pytest.mark.parametrize("container", WRITERS)
def test_a_dtype_that_the_container_lacks(tmp_path: Path, container: str, dtype: str) -> None:
    """AT150, before a file is made."""
    row = Stored("a", dtype, (32,), lambda: np.zeros(18, np.uint8))
    error = refusal(lambda: write_weights(tmp_path / "x", [row], {}, container=container))
    assert (error.code, error.where.key) == ("AT150", "a")
    assert dtype in str(error) and not (tmp_path / "x").exists()
    assert dtype == "NONE" or dtype in {t.name for t in GGML_TYPES.values()}


def test_half_bytes(tmp_path: Path) -> None:
    """Packed types are counted in bytes, and may not end within one."""
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    write_safetensors(tmp_path / "x.safetensors", [Stored("a", "F4", (2, 6), lambda: values)], {})
    slot = read_slots(tmp_path / "x.safetensors")["a"]
    assert slot.shape == (2, 6) and np.array_equal(read_bits(slot), values)
    row = Stored("a", "F4", (3,), lambda: np.zeros(2, np.uint8))
    assert refusal(lambda: write_safetensors(tmp_path / "y", [row], {})).code == "AT150"


@pytest.mark.parametrize("container", WRITERS)
@pytest.mark.parametrize("names", [("a", "a"), ("a", "b\ud800")])
def test_names_that_cannot_be_written(
    tmp_path: Path, container: str, names: tuple[str, ...]
) -> None:
    """Twice the same name, or one that is no text."""
    rows = [stored(name, "U8", np.zeros(1, np.uint8)) for name in names]
    error = refusal(lambda: write_weights(tmp_path / "x", rows, {}, container=container))
    assert (error.code, error.where.key) == ("AT151", names[1])
    metadata = [stored("__metadata__", "U8", np.zeros(1, np.uint8))]
    assert refusal(lambda: write_safetensors(tmp_path / "x", metadata, {})).code == "AT151"


@pytest.mark.parametrize("container", WRITERS)
@pytest.mark.parametrize(
    "values",
    [
        np.zeros((2, 3), np.float32),
        np.zeros((2, 3), np.int32),
        np.zeros((2, 3), np.uint16),
        np.zeros((3, 2), np.uint32),
        np.zeros(6, np.uint32),
        np.zeros((2, 4), np.uint32),
    ],
    ids=lambda values: f"{values.dtype}{values.shape}",
)
def test_values_that_are_not_as_they_were_announced(
    tmp_path: Path, container: str, values: Any
) -> None:
    """AT152 names the tensor, and the unfinished file is taken away."""
    path, rows = tmp_path / "x", [stored("good", "U8", np.zeros(9, np.uint8))]
    rows.append(Stored("a", "F32", (2, 3), lambda: values))
    for jobs in (1, 2):
        error = refusal(lambda j=jobs: write_weights(path, rows, {}, container=container, jobs=j))
        assert (error.code, error.where.key) == ("AT152", "a")
        assert not path.exists()


def test_big_endian_values_are_turned(tmp_path: Path) -> None:
    """A file of weights is little-endian, whatever the array is."""
    values = np.array([1, 256, 65536], ">u4")
    write_safetensors(tmp_path / "x.safetensors", [Stored("a", "U32", (3,), lambda: values)], {})
    assert read_bits(read_slots(tmp_path / "x.safetensors")["a"]).tolist() == [1, 256, 65536]


@pytest.mark.parametrize("container", WRITERS)
def test_what_the_system_refuses(
    tmp_path: Path, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AT505 with the file, in place of an OSError; what could not be opened is left alone."""

    def put(path: Path) -> OutputError:
        rows = [stored("a", "U8", np.zeros(9, np.uint8))]
        with pytest.raises(OutputError) as caught:
            write_weights(path, rows, {}, container=container, jobs=2)
        assert (caught.value.code, caught.value.where.file) == ("AT505", str(path))
        return caught.value

    put(tmp_path / "none" / "x")
    (tmp_path / "folder").mkdir()
    put(tmp_path / "folder")
    assert (tmp_path / "folder").is_dir()

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    assert "free some space" in put(tmp_path / "x").hint
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("container", WRITERS)
def test_a_short_write_goes_on(
    tmp_path: Path, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may take less than it is given."""
    rows = [stored("a", "U8", random_bits("U8", (5000,)))]
    write_weights(tmp_path / "x", rows, {}, container=container)
    whole, real = sha(tmp_path / "x"), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:777], at))
    write_weights(tmp_path / "x", rows, {}, container=container, jobs=2)
    assert sha(tmp_path / "x") == whole


@pytest.mark.parametrize("container", WRITERS)
@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_each_thread_holds_one_tensor(tmp_path: Path, container: str, jobs: int) -> None:
    """Never more than `jobs` loaded tensors are alive."""
    lock, alive, most = threading.Lock(), [0], [0]

    def load() -> Any:
        values = np.zeros((64, 64), np.uint8)
        with lock:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
        weakref.finalize(values, drop)
        return values

    def drop() -> None:
        with lock:
            alive[0] -= 1

    rows = [Stored(f"a{k}", "U8", (64, 64), load) for k in range(40)]
    write_weights(tmp_path / "x", rows, {}, container=container, jobs=jobs)
    assert 0 < most[0] <= jobs and alive == [0]


def test_the_first_fault_stops_the_rest(tmp_path: Path) -> None:
    """Tensors whose turn has not come are not loaded any more."""
    loaded: list[int] = []

    def load(number: int) -> Callable[[], Any]:
        def call() -> Any:
            loaded.append(number)
            raise SourceError("AT108", "the file ended early", key=str(number))

        return call

    for jobs in (1, 2):
        loaded.clear()
        rows = [Stored(f"a{k}", "U8", (1,), load(k)) for k in range(1000)]
        with pytest.raises(SourceError, match="ended early"):
            write_safetensors(tmp_path / "x", rows, {}, jobs)
        assert len(loaded) < 900


SOME = [(3, 5), (1, 5), (5, 1), (700, 9), (9, 700), (64, 64), (2, 40, 30), (3, 30, 40), (0, 4)]


@pytest.mark.parametrize("word", ["u1", "u2", "u4", "u8"])
@pytest.mark.parametrize("shape", [*SOME, (2100, 2100)])
def test_every_layout_becomes_rows(word: str, shape: tuple[int, ...]) -> None:
    """Transposed, sliced, reversed and plain: the bytes are those of the row-major array."""
    dtype = SIZES[8 * int(word[1])]
    made = np.arange(np.prod(shape), dtype="u8").reshape(shape).astype(word)
    turned = np.swapaxes(made, -1, -2)
    for array in (made, turned, turned[..., ::-1], turned[::2], np.asfortranarray(made), made.T):
        row = Stored("a", dtype, array.shape, lambda a=array: a)
        assert bytes(raw_bytes(row)) == array.tobytes()
    if made.size:
        assert np.shares_memory(np.frombuffer(raw_bytes(stored("a", dtype, made)), "u1"), made)
    assert write._KEEP < 2100 * 2100 * 4
