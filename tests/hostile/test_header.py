"""Every rule of the safetensors format, broken and bent, in an adapter and in a base."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import (
    read_header,
    tiny_base,
)

from .arena import A0, Q0, Arena, cli, snapshot

Entries = dict[str, Any]
SIDES = ("adapter", "base")
KEYS = {"adapter": A0, "base": f"{Q0}.weight"}


def pack(header: object, data: bytes, length: int | None = None) -> bytes:
    """Return a file of this header (bytes as they are, else as JSON) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(field: str, value: object) -> Callable[[Entries, bytes, str], bytes]:
    """Return a case that gives one field of one tensor another value."""

    def spoil(header: Entries, data: bytes, key: str) -> bytes:
        header[key][field] = value
        return pack(header, data)

    return spoil


def without(field: str) -> Callable[[Entries, bytes, str], bytes]:
    """Return a case that drops one field of one tensor."""

    def spoil(header: Entries, data: bytes, key: str) -> bytes:
        del header[key][field]
        return pack(header, data)

    return spoil


def metadata(value: object) -> Callable[[Entries, bytes, str], bytes]:
    """Return a case with another `__metadata__`."""
    return lambda header, data, key: pack({"__metadata__": value, **header}, data)


def literal(field: str, text: str) -> Callable[[Entries, bytes, str], bytes]:
    """Return a case whose field is raw JSON text that Python's own writer cannot make."""

    def spoil(header: Entries, data: bytes, key: str) -> bytes:
        header[key][field] = "@@"
        return pack(json.dumps(header).replace('"@@"', text).encode(), data)

    return spoil


def shift(header: Entries, start: int, by: int) -> Entries:
    """Move the offsets of every tensor that begins at `start` or later."""
    for value in header.values():
        begin, end = value["data_offsets"]
        if begin >= start:
            value["data_offsets"] = [begin + by, end + by]
    return header


def reversed_offsets(header: Entries, data: bytes, key: str) -> bytes:
    header[key]["data_offsets"].reverse()
    return pack(header, data)


def overlapping(header: Entries, data: bytes, key: str) -> bytes:
    return pack(shift(header, header[key]["data_offsets"][1], -8), data[:-8])


def same_range_twice(header: Entries, data: bytes, key: str) -> bytes:
    return pack({**header, "again": dict(header[key])}, data)


def hole(header: Entries, data: bytes, key: str) -> bytes:
    start = header[key]["data_offsets"][1]
    return pack(shift(header, start, 8), data[:start] + bytes(8) + data[start:])


def not_from_zero(header: Entries, data: bytes, key: str) -> bytes:
    return pack(shift(header, 0, 8), bytes(8) + data)


def outside(header: Entries, data: bytes, key: str) -> bytes:
    header[key]["data_offsets"] = [at + len(data) for at in header[key]["data_offsets"]]
    return pack(header, data)


def duplicate(header: Entries, data: bytes, key: str) -> bytes:
    text = json.dumps(header)
    return pack(f"{text[:-1]}, {json.dumps(key)}: {json.dumps(header[key])}}}".encode(), data)


def duplicate_escaped(header: Entries, data: bytes, key: str) -> bytes:
    name = "".join(f"\\u{ord(char):04x}" for char in key)
    text = json.dumps(header)
    return pack(f'{text[:-1]}, "{name}": {json.dumps(header[key])}}}'.encode(), data)


def surrogate_name(header: Entries, data: bytes, key: str) -> bytes:
    return pack({**header, "\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, data)


FILE_CASES: dict[str, Callable[[Entries, bytes, str], bytes]] = {
    "seven bytes": lambda header, data, key: bytes(7),
    "length only": lambda header, data, key: bytes(8),
    "length beyond file": lambda header, data, key: pack(header, data, 99_000_000),
    "length one too long": lambda header, data, key: pack(header, b"", len(json.dumps(header)) + 1),
    "length over 100 MB": lambda header, data, key: pack(header, data, 100_000_001),
    "length 2^63": lambda header, data, key: pack(header, data, 2**63),
    "length 2^64-1": lambda header, data, key: pack(header, data, 2**64 - 1),
    "length too short": lambda header, data, key: pack(header, data, 40),
    "not UTF-8": lambda header, data, key: pack(b'{"\xff\xfe":1}', data),
    "UTF-8 byte order mark": lambda h, d, k: pack(b"\xef\xbb\xbf" + json.dumps(h).encode(), d),
    "UTF-16": lambda header, data, key: pack(json.dumps(header).encode("utf-16"), data),
    "not JSON": lambda header, data, key: pack(b'{"a": }', data),
    "JSON with a comment": lambda header, data, key: pack(b'{"a": 1} // no', data),
    "two JSON documents": lambda header, data, key: pack(b"{}{}", data),
    "not an object": lambda header, data, key: pack([1, 2], data),
    "a string": lambda header, data, key: pack("tensors", data),
    "leading space": lambda header, data, key: pack(b" " + json.dumps(header).encode(), data),
    "trailing NULs": lambda header, data, key: pack(json.dumps(header).encode() + bytes(8), data),
    "empty object, data": lambda header, data, key: pack({}, data),
    "nested bomb": lambda header, data, key: pack(b'{"a":' + b"[" * 200_000, data),
    "nested bomb, closed": lambda h, d, k: pack(
        b'{"a":' + b'{"a":' * 99_999 + b"1" + b"}" * 100_000, d
    ),
    "trailing bytes": lambda header, data, key: pack(header, data + b"\0"),
    "truncated data": lambda header, data, key: pack(header, data[:-1]),
    "no data": lambda header, data, key: pack(header, b""),
    "overlapping": overlapping,
    "same range twice": same_range_twice,
    "hole": hole,
    "offsets outside": outside,
    "not from zero": not_from_zero,
    "surrogate in a name": surrogate_name,
    "shape infinite": literal("shape", "[Infinity, 1]"),
    "shape 1e400": literal("shape", "[1e400, 1]"),
    "shape of 5000 digits": literal("shape", f"[{'9' * 5000}]"),
    "offsets NaN": literal("data_offsets", "[0, NaN]"),
    "metadata: a list": metadata(["pt"]),
    "metadata: a string": metadata("pt"),
    "metadata: a number as value": metadata({"format": 1}),
    "metadata: null as value": metadata({"format": None}),
    "metadata: an object as value": metadata({"format": {"a": "b"}}),
}
KEY_CASES: dict[str, Callable[[Entries, bytes, str], bytes]] = {
    "duplicate key": duplicate,
    "duplicate key, escaped": duplicate_escaped,
    "unknown dtype": entry("dtype", "F33"),
    "dtype lower case": entry("dtype", "f32"),
    "dtype a number": entry("dtype", 32),
    "dtype a list": entry("dtype", ["F32"]),
    "dtype null": entry("dtype", None),
    "dtype too wide": entry("dtype", "F64"),
    "dtype too narrow": entry("dtype", "U8"),
    "dtype half a byte": entry("dtype", "F4"),
    "shape negative": entry("shape", [-4, -64]),
    "shape a float": entry("shape", [4.0, 64.0]),
    "shape a bool": entry("shape", [True, 64]),
    "shape a string": entry("shape", "4x64"),
    "shape of strings": entry("shape", ["4", "64"]),
    "shape a number": entry("shape", 256),
    "shape null": entry("shape", None),
    "shape nested": entry("shape", [[4], [64]]),
    "shape huge": entry("shape", [2**63, 1]),
    "shape product overflows 2^64": entry("shape", [2**32, 2**32]),
    "shape product wraps to right": entry("shape", [2**62 + 1, 4, 64]),
    "shape wrong": entry("shape", [3, 64]),
    "shape scalar": entry("shape", []),
    "shape zero": entry("shape", [0, 64]),
    "offsets reversed": reversed_offsets,
    "offsets negative": entry("data_offsets", [-1024, 0]),
    "offsets three": entry("data_offsets", [0, 1024, 2048]),
    "offsets one": entry("data_offsets", [1024]),
    "offsets floats": entry("data_offsets", [0.0, 1024.0]),
    "offsets bools": entry("data_offsets", [False, True]),
    "offsets strings": entry("data_offsets", ["0", "1024"]),
    "offsets an object": entry("data_offsets", {"begin": 0, "end": 1024}),
    "offsets null": entry("data_offsets", None),
    "offsets 2^64": entry("data_offsets", [2**64, 2**64 + 1024]),
    "no dtype": without("dtype"),
    "no shape": without("shape"),
    "no offsets": without("data_offsets"),
    "entry a list": lambda header, data, key: pack({**header, key: [1, 2]}, data),
    "entry a string": lambda header, data, key: pack({**header, key: "F32"}, data),
    "entry null": lambda header, data, key: pack({**header, key: None}, data),
    "entry empty": lambda header, data, key: pack({**header, key: {}}, data),
}
CASES = {**FILE_CASES, **KEY_CASES}
SAMPLE = (
    "seven bytes",
    "length 2^63",
    "nested bomb",
    "duplicate key",
    "shape of 5000 digits",
    "surrogate in a name",
    "hole",
)


def side_file(arena: Arena, side: str) -> Path:
    """Return the weights of one side."""
    return arena.weights if side == "adapter" else arena.model


def spoil(path: Path, case: Callable[[Entries, bytes, str], bytes], key: str) -> None:
    """Rewrite a good file as a bad one."""
    header, start = read_header(path)
    header.pop("__metadata__", None)
    path.write_bytes(case(header, path.read_bytes()[start:], key))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", FILE_CASES)
def test_broken_file_is_named(arena: Arena, case: str, side: str) -> None:
    """A file that breaks the format is refused by name."""
    path = side_file(arena, side)
    spoil(path, CASES[case], KEYS[side])
    error = arena.refuses(file=str(path))
    assert "Error" not in error.message, "a Python exception is no explanation"


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", KEY_CASES)
def test_broken_tensor_is_named(arena: Arena, case: str, side: str) -> None:
    """A tensor whose entry breaks the format is refused by file and key."""
    path = side_file(arena, side)
    spoil(path, CASES[case], KEYS[side])
    arena.refuses(file=str(path), key=KEYS[side])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", SAMPLE)
def test_command_line_refuses(arena: Arena, case: str, side: str) -> None:
    """The command gives exit code 1, one sentence and one JSON document."""
    path = side_file(arena, side)
    spoil(path, CASES[case], KEYS[side])
    key = KEYS[side] if case in KEY_CASES else None
    arena.refuses_cli(file=str(path), key=key)


@pytest.mark.parametrize("verb", ["inspect", "validate"])
@pytest.mark.parametrize("case", ["length 2^63", "duplicate key", "hole"])
def test_reading_verbs_refuse(arena: Arena, case: str, verb: str) -> None:
    """Reading verbs refuse a broken file like merge does, and write nothing."""
    spoil(arena.weights, CASES[case], A0)
    before = snapshot(arena.root)
    result = cli(verb, arena.adapter)
    assert result.code == 1
    assert arena.weights.name in result.text
    json.loads(cli(verb, arena.adapter, "--json").out)
    assert snapshot(arena.root) == before


def test_dry_run_refuses(arena: Arena) -> None:
    """A dry run sees a broken header too."""
    spoil(arena.model, hole, KEYS["base"])
    arena.refuses(file=str(arena.model), dry_run=True)


def test_one_bad_shard_of_many(arena: Arena) -> None:
    """The broken shard is named, not its neighbours."""
    arena.base = tiny_base(arena.root / "many", shards=5)
    shard = arena.base / "model-00004-of-00005.safetensors"
    spoil(shard, FILE_CASES["trailing bytes"], "")
    arena.refuses(file=str(shard))
