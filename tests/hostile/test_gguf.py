"""GGUF files that are cut, lie about their sizes, or break a rule of the format."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptertools.errors import SourceError
from adaptertools.store.gguf import (
    MAX_COUNT,
    GgufFile,
    read_gguf,
    read_parts,
    sibling_files,
    split_of,
)

from .arena import CODE, assert_places, assert_sentence

UINT8, UINT32, BOOL, STRING, ARRAY, UINT64 = 0, 4, 7, 8, 9, 10
F32, F16, Q8_0, Q4_K = 0, 1, 8, 12
MIB = 1 << 20
HUGE = (2**31, 2**40, 2**60, 2**63 - 1, 2**63, 2**64 - 1)
SECONDS = 2


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def text(content: bytes, length: int | None = None) -> bytes:
    """Return a string, its length told as it is or as something else."""
    return u64(len(content) if length is None else length) + content


def pair(key: bytes, kind: int, payload: bytes) -> bytes:
    return text(key) + u32(kind) + payload


def array(key: bytes, kind: int, count: int, payload: bytes = b"") -> bytes:
    return pair(key, ARRAY, u32(kind) + u64(count) + payload)


def tensor(
    name: bytes = b"t",
    dims: tuple[int, ...] = (8,),
    kind: int = F32,
    offset: int = 0,
    told: int | None = None,
) -> bytes:
    """Return an entry of the tensor table; `dims` in the file's order, innermost first."""
    count = u32(len(dims) if told is None else told)
    return text(name) + count + b"".join(map(u64, dims)) + u32(kind) + u64(offset)


def pack(
    pairs: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: int = 32,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """Return a file of these pairs and entries and so many bytes of data."""
    told = counts or (len(tensors), len(pairs))
    head = b"GGUF" + u32(version) + u64(told[0]) + u64(told[1]) + b"".join((*pairs, *tensors))
    return head + bytes(-len(head) % alignment) + bytes(data)


ARCH = pair(b"general.architecture", STRING, text(b"llama"))
KEEP = (
    ARCH,
    pair(b"a.flag", BOOL, b"\1"),
    array(b"a.numbers", UINT32, 3, u32(1) * 3),
    array(b"a.words", STRING, 2, text(b"one") + text(b"two")),
)
ROWS = (tensor(b"one", (8, 2)), tensor(b"two", (32, 3), Q8_0, 64), tensor(b"three", (), F16, 192))
GOOD = pack(KEEP, ROWS, 194)


def read(path: Path, content: bytes) -> GgufFile:
    path.write_bytes(content)
    return read_gguf(path)


def refuses(path: Path, code: str, key: str | None = None) -> SourceError:
    """Reading must fail with this code and one clear sentence, at once and in little memory."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(SourceError) as caught:
            read_gguf(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    error = caught.value
    assert CODE.match(error.code)
    assert error.code == code, error
    assert error.where.key == key
    assert_sentence(str(error))
    assert_places(error.to_json(), str(path), key)
    assert time.process_time() - start < SECONDS
    assert peak < 2 * path.stat().st_blocks * 512 + MIB, f"{peak} bytes were allocated"
    return error


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.gguf"


def test_the_good_file_is_good(path: Path) -> None:
    """The control: what the cases below spoil is read."""
    mine = read(path, GOOD)
    assert mine.values["a.words"].value == ["one", "two"]
    assert mine.values["a.numbers"].value == [1, 1, 1]
    assert [(s.dtype, s.shape) for s in mine.slots.values()] == [
        ("F32", (2, 8)),
        ("Q8_0", (3, 32)),
        ("F16", ()),
    ]
    assert mine.slots["three"].end == mine.file_size


def test_cut_at_every_byte(path: Path) -> None:
    """However short the file ends, it is refused: in its magic, its head, its data."""
    head = 24 + len(b"".join((*KEEP, *ROWS)))
    codes = []
    for length in range(len(GOOD)):
        path.write_bytes(GOOD[:length])
        with pytest.raises(SourceError) as caught:
            read_gguf(path)
        assert_sentence(str(caught.value))
        codes.append(caught.value.code)
    magic, told, rest = codes[:4], codes[4:head], codes[head:]
    assert (set(magic), set(told), set(rest)) == ({"AT140"}, {"AT141"}, {"AT148"})


@settings(
    max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, len(GOOD) - 195), st.integers(0, 255), st.sampled_from([1, 4, 8]))
def test_bytes_changed_anywhere(path: Path, at: int, byte: int, count: int) -> None:
    """With some bytes changed a file is refused, or all that it says is inside it."""
    spoiled = bytearray(GOOD)
    spoiled[at : at + count] = bytes([byte] * min(count, len(GOOD) - at))
    try:
        mine = read(path, bytes(spoiled))
        assert all(value.value is not None for value in mine.values.values())
        split_of(mine)
    except SourceError as error:
        assert_sentence(str(error))
        return
    assert len(mine.raw) <= len(GOOD)
    assert b"".join(raw for _, raw in mine.pairs) in mine.raw
    for slot in mine.slots.values():
        assert mine.data_start <= slot.offset
        assert slot.end <= mine.file_size
        assert slot.bytes_needed == slot.size


@pytest.mark.parametrize(
    ("content", "code", "what"),
    [
        (b"", "AT140", "GGUF"),
        (b"GG", "AT140", "GGUF"),
        (bytes(64), "AT140", "GGUF"),
        (b"gguf" + GOOD[4:], "AT140", "GGUF"),
        (b"PK\x03\x04" + bytes(64), "AT140", "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "AT101", "git-lfs"),
        (b"<!DOCTYPE html><html>", "AT101", "HTML"),
        (b"GGUF" + GOOD[7:3:-1] + GOOD[8:], "AT140", "big-endian"),
        (b"FUGG" + GOOD[4:], "AT140", "big-endian"),
        (pack(version=0), "AT140", "version 0"),
        (pack(version=1), "AT140", "version 1"),
        (pack(version=4), "AT140", "version 4"),
        (b"ggml" + bytes(64), "AT140", "obsolete 'ggml'"),
        (b"lmgg" + bytes(64), "AT140", "obsolete 'ggml'"),
        (b"fmgg" + bytes(64), "AT140", "obsolete 'ggmf'"),
        (b"tjgg" + bytes(64), "AT140", "obsolete 'ggjt'"),
        (b"algg" + bytes(64), "AT140", "obsolete 'ggla'"),
    ],
)
def test_no_gguf_or_an_unknown_one(path: Path, content: bytes, code: str, what: str) -> None:
    """Something else, another byte order and another age are told apart."""
    path.write_bytes(content)
    assert what in refuses(path, code).message


@pytest.mark.parametrize("count", HUGE)
@pytest.mark.parametrize("which", ["tensors", "pairs"])
def test_lying_counts(path: Path, count: int, which: str) -> None:
    """A count that the file cannot hold is refused before anything is made of it."""
    counts = (count, len(KEEP)) if which == "tensors" else (len(ROWS), count)
    path.write_bytes(pack(KEEP, ROWS, counts=counts))
    refuses(path, "AT141")


@pytest.mark.parametrize("length", HUGE)
def test_lying_lengths(path: Path, length: int) -> None:
    """Strings and arrays that claim more than there is: in keys, values, items and names."""
    told = length
    cases: dict[str | None, list[bytes]] = {
        None: [pack((text(b"k", told),), data=99), pack((), (text(b"t", told),), data=99)],
        "k": [
            pack((pair(b"k", STRING, text(b"v", told)),), data=99),
            pack((array(b"k", STRING, told, text(b"v")),), data=99),
            pack((array(b"k", STRING, 2, text(b"v") + text(b"v", told)),), data=99),
            pack((array(b"k", STRING, 2, text(b"v", told) + text(b"v")),), data=99),
            pack((array(b"k", UINT8, told),), data=99),
            pack((array(b"k", UINT64, told),), data=99),
        ],
    }
    for key, files in cases.items():
        for content in files:
            path.write_bytes(content)
            refuses(path, "AT141", key)


def test_huge_headers_of_sparse_files(path: Path) -> None:
    """Lengths that a file of holes does hold are refused by the limits, not loaded."""
    cases = {
        "AT142": [
            pack((pair(b"k", STRING, text(b"", 2**36)),)),
            pack((array(b"k", UINT32, 2**34),)),
            pack((array(b"k", STRING, 2, text(b"", 2**35)),)),
        ]
    }
    for code, files in cases.items():
        for content in files:
            path.write_bytes(content)
            os.truncate(path, 2**37)
            refuses(path, code, "k")
    path.write_bytes(pack(counts=(2**20, 0)))
    os.truncate(path, 2**37)
    refuses(path, "AT142")


PAIRS: dict[str, tuple[str | None, bytes]] = {
    "empty key": (None, pair(b"", UINT8, b"\0")),
    "key not UTF-8": (None, pair(b"k\xff", UINT8, b"\0")),
    "surrogate in a key": (None, pair(b"\xed\xa0\x80", UINT8, b"\0")),
    "key twice": ("general.architecture", ARCH),
    "unknown type": ("k", pair(b"k", 13, bytes(8))),
    "type 2^32-1": ("k", pair(b"k", 2**32 - 1, bytes(8))),
    "unknown type of items": ("k", array(b"k", 13, 0)),
    "array of arrays": ("k", array(b"k", ARRAY, 1, u32(UINT8) + u64(0))),
    "bool 2": ("k", pair(b"k", BOOL, b"\2")),
    "bool 255 among bools": ("k", array(b"k", BOOL, 3, b"\1\xff\0")),
    "key of 64 KiB": (None, pair(b"k" * 65_536, UINT8, b"\0")),
    "long key": ("k" * 120 + "…", pair(b"k" * 65_535, 99, b"")),
    "control characters": ("\x1b[2J", pair(b"\x1b[2J", 99, b"")),
}


@pytest.mark.parametrize("case", PAIRS)
def test_broken_pairs(path: Path, case: str) -> None:
    """A pair that breaks the format is refused by its key."""
    key, content = PAIRS[case]
    path.write_bytes(pack((ARCH, content), ROWS, 194))
    refuses(path, "AT143", key)


def test_nested_arrays_to_any_depth(path: Path) -> None:
    """A tower of arrays does not climb the stack."""
    path.write_bytes(pack((pair(b"k", ARRAY, (u32(ARRAY) + u64(1)) * 100_000),)))
    refuses(path, "AT143", "k")


@pytest.mark.parametrize(
    "content",
    [
        *(pair(b"general.alignment", UINT32, u32(n)) for n in (0, 3, 24, 33, 2**21, 2**31)),
        pair(b"general.alignment", UINT64, u64(32)),
        pair(b"general.alignment", STRING, text(b"32")),
        pair(b"general.alignment", BOOL, b"\1"),
        array(b"general.alignment", UINT32, 1, u32(32)),
        array(b"general.alignment", UINT32, 0),
    ],
)
def test_alignments_that_are_none(path: Path, content: bytes) -> None:
    """The alignment is a uint32, a power of two, and not absurd."""
    path.write_bytes(pack((content,), ROWS, 194))
    refuses(path, "AT144", "general.alignment")


TENSORS: dict[str, tuple[str, bytes]] = {
    "five dimensions": ("AT145", tensor(dims=(1, 1, 1, 1, 1))),
    "2^32-1 dimensions": ("AT145", tensor(told=2**32 - 1)),
    "one size of 2^63": ("AT145", tensor(dims=(2**63,))),
    "2^64-1 rows of nothing": ("AT145", tensor(dims=(0, 2**64 - 1))),
    "product wraps to 8": ("AT145", tensor(dims=(2**61 + 1, 8))),
    "product over 2^63": ("AT145", tensor(dims=(2**32, 2**32))),
    "unknown type": ("AT146", tensor(kind=42)),
    "a removed type": ("AT146", tensor(kind=4)),
    "type 2^32-1": ("AT146", tensor(kind=2**32 - 1)),
    "half a block": ("AT146", tensor(dims=(16, 2), kind=Q8_0)),
    "a block across rows": ("AT146", tensor(dims=(128, 2), kind=Q4_K)),
    "a scalar of blocks": ("AT146", tensor(dims=(), kind=Q8_0)),
    "offset not aligned": ("AT147", tensor(offset=16)),
    "offset 1": ("AT147", tensor(offset=1)),
    "outside": ("AT148", tensor(offset=32)),
    "one element too many": ("AT148", tensor(dims=(9,))),
    "nothing, outside": ("AT148", tensor(dims=(0,), offset=64)),
    "offset 2^63": ("AT148", tensor(offset=2**63)),
    "offset wraps": ("AT148", tensor(offset=2**64 - 32)),
    "size of 2^62": ("AT148", tensor(dims=(2**31, 2**31))),
    "blocks of 2^62": ("AT148", tensor(dims=(2**31, 2**31), kind=Q8_0)),
}


@pytest.mark.parametrize("case", TENSORS)
def test_broken_tensors(path: Path, case: str) -> None:
    """A tensor that breaks the format is refused by its name."""
    code, entry = TENSORS[case]
    assert list(read(path, pack((ARCH,), (tensor(),))).slots) == ["t"]
    path.write_bytes(pack((ARCH,), (entry,)))
    refuses(path, code, "t")


@pytest.mark.parametrize(
    ("one", "other", "key"),
    [
        (tensor(b"a"), tensor(b"b"), "b"),
        (tensor(b"a", (16,)), tensor(b"b", offset=32), "b"),
        (tensor(b"a", offset=32), tensor(b"b", (16,)), "a"),
        (tensor(b"a", (24,)), tensor(b"b", (1,), offset=32), "b"),
    ],
)
def test_overlaps(path: Path, one: bytes, other: bytes, key: str) -> None:
    """Two tensors never share a byte, whatever their order in the table."""
    path.write_bytes(pack((), (one, other), 96))
    refuses(path, "AT147", key)


def test_tensors_of_one_name(path: Path) -> None:
    """A name stands once, is UTF-8, and is no longer than any loader takes."""
    path.write_bytes(pack((), (tensor(), tensor(offset=32)), 64))
    refuses(path, "AT145", "t")
    for name in (b"\xff", b"t" * 129):
        path.write_bytes(pack((), (tensor(name),)))
        refuses(path, "AT145")
    assert len(read(path, pack((), (tensor(b"t" * 128),))).slots) == 1


def test_nothing_overlaps_nothing(path: Path) -> None:
    """Empty tensors may lie where another one does, and hide no overlap."""
    rows = (tensor(b"a", (0,)), tensor(b"b"), tensor(b"c", (4, 0)), tensor(b"d", (0,), offset=32))
    assert len(read(path, pack((), rows)).slots) == 4
    hidden = (tensor(b"a", (16,)), tensor(b"e", (0,), offset=32), tensor(b"b", offset=32))
    path.write_bytes(pack((), hidden, 64))
    refuses(path, "AT147", "b")


def test_many_small_things_are_quick(path: Path) -> None:
    """As many pairs as the limit allows are read in seconds; one more is refused."""
    pairs = tuple(pair(b"%d" % n, UINT8, b"\0") for n in range(MAX_COUNT + 1))
    start = time.process_time()
    mine = read(path, pack(pairs[:-1]))
    assert len(mine.values) == MAX_COUNT
    assert time.process_time() - start < SECONDS
    path.write_bytes(pack(pairs))
    refuses(path, "AT142")


@pytest.mark.parametrize("kind", ["folder", "missing"])
def test_unreadable_places(path: Path, kind: str) -> None:
    """A folder, or nothing, in place of the file."""
    if kind == "folder":
        path.mkdir()
    with pytest.raises(SourceError) as caught:
        read_gguf(path)
    assert caught.value.code == "AT100"
    assert_places(caught.value.to_json(), str(path), None)


@pytest.mark.parametrize("count", [2, 65535])
def test_split_without_its_parts(tmp_path: Path, count: int) -> None:
    """One part alone, or one that claims thousands, names the first that is missing."""
    path = tmp_path / f"m-00001-of-{count:05d}.gguf"
    told = pair(b"split.no", 2, bytes(2)), pair(b"split.count", 2, struct.pack("<H", count))
    path.write_bytes(pack(told))
    with pytest.raises(SourceError, match=f"00002-of-{count:05d}") as caught:
        read_parts(path)
    assert caught.value.code == "AT144"
    with pytest.raises(SourceError, match="its name"):
        sibling_files(tmp_path / "m.gguf", count)


@pytest.mark.parametrize("payload", [text(b"1"), text(b"\xff")])
def test_split_keys_of_another_kind(path: Path, payload: bytes) -> None:
    """A split key that is no number is refused by name."""
    mine = read(path, pack((pair(b"split.count", STRING, payload),)))
    with pytest.raises(SourceError) as caught:
        split_of(mine)
    assert (caught.value.code, caught.value.where.key) == ("AT144", "split.count")
