"""The safetensors header: what is rendered is read back, byte-stable, with the official library."""

from __future__ import annotations

import itertools
from math import prod
from pathlib import Path

import pytest
import safetensors.numpy
from builders import read_header as read_by_hand
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptertools.errors import SourceError
from adaptertools.store.dtypes import DTYPES, nbytes
from adaptertools.store.header import read_header, render_header

WHOLE = sorted(name for name, dtype in DTYPES.items() if dtype.bits % 8 == 0)
KEYS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
NAMES = KEYS.filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
TENSORS = st.dictionaries(NAMES, st.tuples(st.sampled_from(WHOLE), SHAPES), max_size=6)
METADATA = st.dictionaries(KEYS, st.text(st.characters(exclude_categories=("Cs",))), max_size=3)
PROPERTY = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(path: Path, tensors: dict, metadata: dict[str, str]) -> dict[str, int]:
    """Write a file by render_header with countable data; returns the offsets."""
    rows = [(name, dtype, shape) for name, (dtype, shape) in tensors.items()]
    raw, offsets = render_header(rows, metadata)
    size = sum(nbytes(dtype, prod(shape)) for _, dtype, shape in rows)
    path.write_bytes(raw + bytes(itertools.islice(itertools.cycle(range(251)), size)))
    return offsets


@PROPERTY
@given(TENSORS, METADATA)
def test_render_then_read(tmp_path: Path, tensors: dict, metadata: dict[str, str]) -> None:
    """Names, dtypes, shapes, offsets and metadata come back; the data starts at a multiple of 8."""
    path = tmp_path / "x.safetensors"
    offsets = write(path, tensors, metadata)
    header = read_header(path)
    assert header.metadata == metadata
    assert {n: (s.dtype, s.shape) for n, s in header.slots.items()} == tensors
    assert {n: s.offset for n, s in header.slots.items()} == offsets
    assert header.data_start % 8 == 0
    assert header.raw == path.read_bytes()[: header.data_start]
    assert header.file_size == path.stat().st_size
    entries, start = read_by_hand(path)
    assert start == header.data_start
    assert entries.keys() - {"__metadata__"} == tensors.keys()


@PROPERTY
@given(METADATA)
def test_bytes_do_not_depend_on_metadata_order(metadata: dict[str, str]) -> None:
    """The same metadata in another order renders to the same bytes."""
    turned = dict(reversed(metadata.items()))
    rows = [("a", "F32", (2,)), ("b", "BF16", ())]
    assert render_header(rows, metadata) == render_header(rows, turned)


def test_the_official_library_reads_it(tmp_path: Path) -> None:
    """safetensors itself takes a rendered file, scalars, empty tensors and odd names included."""
    path = tmp_path / "x.safetensors"
    tensors = {"a": ("F32", (2, 3)), "ключ \"'\\ 键": ("I64", ()), "empty": ("F16", (0, 4))}
    write(path, tensors, {"format": "pt", "b": "2"})
    loaded = safetensors.numpy.load_file(path)
    assert {name: tuple(array.shape) for name, array in loaded.items()} == {
        name: shape for name, (_, shape) in tensors.items()
    }


def test_slots_are_in_file_order(tmp_path: Path) -> None:
    """Whatever the order of the JSON, slots come by offset, empty ones before their neighbour."""
    path = tmp_path / "x.safetensors"
    body = (
        b'{"z":{"dtype":"U8","shape":[2],"data_offsets":[3,5]},'
        b'"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},'
        b'"e":{"dtype":"U8","shape":[0],"data_offsets":[3,3]}}'
    )
    path.write_bytes(len(body).to_bytes(8, "little") + body + b"12345")
    assert list(read_header(path).slots) == ["a", "e", "z"]


BODY = '{"a":{"dtype":"%s","shape":%s,"data_offsets":%s}}'


@pytest.mark.parametrize(
    ("dtype", "shape", "offsets", "code"),
    [
        ("F31", "[1]", "[0,4]", "AT105"),
        ("F32", "[-1]", "[0,4]", "AT105"),
        ("F32", "[1.0]", "[0,4]", "AT105"),
        ("F32", "[true]", "[0,4]", "AT105"),
        ("F32", '"1"', "[0,4]", "AT105"),
        ("F32", "[4294967296,4294967296]", "[0,4]", "AT105"),
        ("F4", "[3]", "[0,2]", "AT105"),
        ("F32", "[1]", "[0,8]", "AT106"),
        ("F32", "[1]", "[4,0]", "AT106"),
        ("F32", "[1]", "[0]", "AT106"),
        ("F32", "[1]", "[-4,0]", "AT106"),
        ("F32", "[1]", "[4,8]", "AT107"),
        ("F32", "[2]", "[0,8]", "AT108"),
        ("U8", "[3]", "[0,3]", "AT108"),
    ],
)
def test_rules_of_the_format(
    tmp_path: Path, dtype: str, shape: str, offsets: str, code: str
) -> None:
    """Each broken rule has its code; the same file with nothing broken is read."""
    path = tmp_path / "x.safetensors"
    for told, wanted in ((("F32", "[1]", "[0,4]"), None), ((dtype, shape, offsets), code)):
        body = (BODY % told).encode()
        path.write_bytes(len(body).to_bytes(8, "little") + body + b"\0" * 4)
        if wanted is None:
            assert read_header(path).slots["a"].size == 4
            continue
        with pytest.raises(SourceError) as caught:
            read_header(path)
        assert caught.value.code == wanted
        assert caught.value.where.key == ("a" if wanted != "AT108" else None)
