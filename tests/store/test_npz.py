"""NumPy files: what numpy and MLX write is read, what we write numpy loads, bit by bit."""

from __future__ import annotations

import hashlib
import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptertools.errors import SourceError
from adaptertools.store import torchsave
from adaptertools.store.npz import DESCR, read_npy, write_npy, write_npz
from adaptertools.store.read import read_bits, read_bytes, read_flat, read_slots, read_tensor
from adaptertools.store.slot import Slot
from adaptertools.store.stored import Stored

SHAPES = st.lists(st.sampled_from([0, 1, 1, 2, 3, 5]), max_size=4).map(tuple)
NAMES = st.text("abc./0ключ_ ", min_size=1, max_size=9).filter(
    lambda name: ".." not in name.split("/") and not name.startswith("/")
)
LAYOUTS = ("rows", "columns", "steps", "back")
PROPERTY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NUMBERS = ["<f8", "<f4", "<f2", "<c8", "<i8", "<i4", "<i2", "|i1", "<u8", "<u4", "<u2", "|u1", "?"]


def width(dtype: str) -> int:
    """Return the bytes of an element of a dtype."""
    return int(DESCR[dtype][2:]) if dtype in DESCR else 1


def random_bits(dtype: str, shape: tuple[int, ...], layout: str = "rows", seed: int = 0) -> Any:
    """Return random bits of a dtype, laid out in memory in one of `LAYOUTS`."""
    size = width(dtype)
    top = 2 if dtype == "BOOL" else 256**size - 1
    made = np.random.default_rng(seed).integers(0, top, shape, f"u{size}")
    made = np.asarray(made, f"u{size}")
    if layout == "columns":
        return np.asfortranarray(made)
    if layout == "steps" and made.ndim:
        wide = np.zeros((*shape[:-1], 3 * shape[-1]), made.dtype)
        wide[..., ::3] = made
        return wide[..., ::3]
    return made[::-1].copy()[::-1] if layout == "back" and made.ndim else made


def stored(name: str, dtype: str, bits: Any) -> Stored:
    """Return bits as a tensor to be written."""
    return Stored(name, dtype, bits.shape, lambda: bits)


def sha(path: Path) -> str:
    """Return the hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def as_bits(array: np.ndarray) -> np.ndarray:
    """Return the bits of an array as numpy loads it."""
    return np.ascontiguousarray(array).view(f"u{array.itemsize}").reshape(array.shape)


def agree(slot: Slot, dtype: str, bits: Any) -> None:
    """Check that every way of reading a slot gives these bits."""
    assert (slot.dtype, slot.shape, slot.bytes_needed) == (dtype, bits.shape, bits.nbytes)
    got = read_bits(slot)
    assert (got.dtype, got.shape) == (bits.dtype, bits.shape)
    assert np.array_equal(got, bits)
    tensor = read_tensor(slot)
    assert tensor.is_contiguous() and tuple(tensor.shape) == bits.shape
    assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == bits.tobytes()
    part = read_flat(slot, 0, min(3, slot.elements))
    assert part.view(torch.uint8).numpy().tobytes() == bits.reshape(-1)[:3].tobytes()


TENSORS = st.dictionaries(
    NAMES,
    st.tuples(st.sampled_from(sorted(DESCR)), SHAPES, st.sampled_from(LAYOUTS)),
    max_size=5,
)


@PROPERTY
@given(TENSORS, st.integers(1, 3))
def test_what_is_written_is_read(tmp_path: Path, tensors: dict[str, Any], jobs: int) -> None:
    """Every dtype, shape and layout comes back, here and in numpy, from the same bytes."""
    table = {
        name: (dtype, random_bits(dtype, shape, layout, seed))
        for seed, (name, (dtype, shape, layout)) in enumerate(tensors.items())
    }
    rows = [stored(name, dtype, bits) for name, (dtype, bits) in table.items()]
    one, two = tmp_path / "x.npz", tmp_path / "y.npz"
    write_npz(one, rows)
    write_npz(two, rows, jobs)
    assert sha(one) == sha(two)
    slots = read_slots(one)
    assert list(slots) == list(table)
    loaded = np.load(one, allow_pickle=False)
    with zipfile.ZipFile(one) as archive:
        assert archive.testzip() is None
        assert {info.date_time for info in archive.infolist()} <= {(1980, 1, 1, 0, 0, 0)}
    for name, (dtype, bits) in table.items():
        agree(slots[name], dtype, bits)
        assert np.array_equal(as_bits(loaded[name]), bits)
        told = loaded[name].dtype
        assert told == np.dtype("V2" if dtype == "BF16" else DESCR[dtype])
        assert slots[name].held is None and slots[name].strides is None
        data = one.read_bytes()[slots[name].offset : slots[name].end]
        assert data == bits.tobytes()


@PROPERTY
@given(
    st.sampled_from(NUMBERS), SHAPES, st.sampled_from("CF"), st.booleans(), st.integers(0, 2**31)
)
def test_what_numpy_writes_is_read(
    tmp_path: Path, descr: str, shape: tuple[int, ...], order: str, packed: bool, seed: int
) -> None:
    """savez and savez_compressed, in either order of the axes."""
    made = np.random.default_rng(seed).integers(0, 2, shape).astype(descr)
    array = np.asarray(made, order=order)  # type: ignore[call-overload]
    path = tmp_path / "x.npz"
    (np.savez_compressed if packed else np.savez)(path, first=array, second=array[..., None])
    slots = read_slots(path)
    names = {text[1:]: dtype for dtype, text in DESCR.items()}
    dtype = names[np.dtype(descr).str[1:]]
    agree(slots["first"], dtype, as_bits(array))
    agree(slots["second"], dtype, as_bits(array[..., None]))
    np.save(tmp_path / "y.npy", array)
    agree(read_npy(tmp_path / "y.npy"), dtype, as_bits(array))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_npy_is_read(tmp_path: Path, version: tuple[int, int]) -> None:
    """The three versions differ in the length and the encoding of the header."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    with (tmp_path / "x.npy").open("wb") as stream:
        np.lib.format.write_array(stream, array, version)
    assert (tmp_path / "x.npy").read_bytes()[6] == version[0]
    slots = read_slots(tmp_path / "x.npy")
    agree(slots["x"], "F32", as_bits(array))


def mlx_npy(descr: str, fortran: bool, shape: tuple[int, ...], data: bytes) -> bytes:
    """Return a .npy as mlx/io/load.cpp writes it: bf16 is V2, the padding is not to 64."""
    sizes = "".join(f"{size}, " for size in shape)
    text = f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': ({sizes})}}".encode()
    text += b" " * ((6 + 2 + 4 + len(text) + 1) % 16) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_mlx_writes_is_read(tmp_path: Path, packed: int) -> None:
    """MLX calls a vector, and a transposed matrix, Fortran-ordered, and writes through zipfile."""
    bits = np.arange(12, dtype=np.uint16).reshape(3, 4) * 257
    members = {
        "rows": mlx_npy("<V2", False, (3, 4), bits.tobytes()),
        "columns": mlx_npy("<V2", True, (3, 4), bits.T.tobytes()),
        "vector": mlx_npy("<V2", True, (12,), bits.tobytes()),
        "bare": mlx_npy("|V2", False, (12,), bits.tobytes()),
    }
    with zipfile.ZipFile(tmp_path / "adapters.npz", "w", packed) as archive:
        for name, data in members.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                stream.write(data)
    slots = read_slots(tmp_path / "adapters.npz")
    for name, slot in slots.items():
        assert slot.dtype == "BF16"
        assert np.array_equal(read_bits(slot).reshape(3, 4), bits), name
    assert slots["columns"].strides == (1, 3)
    assert [n for n, s in slots.items() if s.plain] == (
        [] if packed else ["rows", "vector", "bare"]
    )


def mlx_load(data: bytes) -> tuple[str, bool, tuple[int, ...], bytes]:
    """Read a .npy as mlx/io/load.cpp does: by fixed places in the header."""
    assert data[:7] == b"\x93NUMPY\x01"
    length = struct.unpack("<H", data[8:10])[0]
    header = data[10 : 10 + length].decode()
    sizes = header[header.rindex("(") + 1 : header.rindex(")")].rstrip(",")
    shape = tuple(int(size) for size in sizes.split(", ")) if sizes else ()
    return header[11:14], header[34] == "T", shape, data[10 + length :]


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (1, 1, 7)])
@pytest.mark.parametrize("dtype", ["BF16", "F32", "BOOL"])
def test_mlx_reads_what_is_written(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    """Its reader takes dtype and order from fixed places."""
    bits = random_bits(dtype, shape)
    write_npy(tmp_path / "x.npy", stored("x", dtype, bits))
    data = (tmp_path / "x.npy").read_bytes()
    assert mlx_load(data) == (DESCR[dtype], False, shape, bits.tobytes())
    assert (len(data) - bits.nbytes) % 64 == 0
    agree(read_npy(tmp_path / "x.npy"), dtype, bits)
    loaded = np.load(io.BytesIO(data))
    assert np.array_equal(as_bits(loaded), bits)


def test_compressed_arrays_are_inflated_only_when_read(tmp_path: Path) -> None:
    """Opening takes no memory for the values; each read inflates them, with their checksum."""
    path = tmp_path / "x.npz"
    array = np.random.default_rng(0).integers(0, 4, (1 << 22,), np.uint8)
    np.savez_compressed(path, a=array)
    tracemalloc.start()
    slot = read_slots(path)["a"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < array.nbytes / 8
    assert slot.held is not None and np.array_equal(read_bits(slot), array)
    assert bytes(read_bytes(slot, 5, 7)) == array[5:12].tobytes()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert read_slots(path)["a"].shape == array.shape
    with pytest.raises(SourceError) as caught:
        read_bits(slot)
    assert (caught.value.code, caught.value.where.key) == ("AT112", "a.npy")


@pytest.mark.parametrize("limits", [(64, 0xFFFF), (0xFFFFFFFF, 2), (64, 2)])
def test_large_archives_use_zip64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int]
) -> None:
    """With the limits of plain zip moved down, sizes, places and counts go to zip64 fields."""
    monkeypatch.setattr(torchsave, "MAX32", limits[0])
    monkeypatch.setattr(torchsave, "MAX16", limits[1])
    table = {f"t{k}": random_bits("F32", (k, 5), seed=k) for k in range(9)}
    write_npz(tmp_path / "x.npz", [stored(n, "F32", bits) for n, bits in table.items()])
    assert b"PK\x06\x06" in (tmp_path / "x.npz").read_bytes()
    loaded, slots = np.load(tmp_path / "x.npz"), read_slots(tmp_path / "x.npz")
    assert loaded.files == list(slots) == list(table)
    for name, bits in table.items():
        assert np.array_equal(as_bits(loaded[name]), bits)
        assert np.array_equal(read_bits(slots[name]), bits)


def refusal(call: Callable[[], Any]) -> SourceError:
    """Return the error that a call ends in."""
    with pytest.raises(SourceError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "..", "a\0b"])
def test_a_name_that_leaves_the_archive_is_not_written(tmp_path: Path, name: str) -> None:
    """What would be refused on reading is not written either."""
    rows = [stored("good", "U8", random_bits("U8", (2,)))]
    write_npz(tmp_path / "x.npz", rows)
    rows.append(stored(name, "U8", random_bits("U8", (2,))))
    assert refusal(lambda: write_npz(tmp_path / "x.npz", rows)).code == "AT151"


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F4", "Q8_0"])
def test_a_dtype_that_numpy_lacks_is_not_written(tmp_path: Path, dtype: str) -> None:
    """It would come back as something else."""
    row = stored("a", dtype, np.zeros(32, np.uint8))
    assert refusal(lambda: write_npz(tmp_path / "x.npz", [row])).code == "AT150"
    assert refusal(lambda: write_npy(tmp_path / "x.npy", row)).code == "AT150"
    assert not list(tmp_path.iterdir())
