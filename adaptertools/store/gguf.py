"""GGUF files: their key-value pairs and tensors, every rule of the format checked on reading.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
Magic, version, two counts, the key-value pairs, the tensor table, padding, then the data; offsets
count from the first data byte and are multiples of the alignment. Only the head is read here.

| code | fault, on reading or on writing |
|---|---|
| AT100, AT101 | the file cannot be read; a git-lfs pointer or an HTML page in its place |
| AT140 | no GGUF of a kind that is read: magic, byte order, version |
| AT141 | truncated or lying: the head claims more than the file holds |
| AT142 | a head beyond every real one (`MAX_HEADER`, `MAX_COUNT`) |
| AT143 | a key-value pair: its key, its type, its content; arrays of arrays |
| AT144 | a pair that rules the file (alignment, split) or that a caller needs has a wrong value |
| AT145 | a tensor's name or shape |
| AT146 | a tensor's type: unknown, or rows that are no whole blocks of it |
| AT147 | a tensor's offset: not aligned, or inside another tensor |
| AT148 | a tensor's data lies beyond the end of the file |
| AT149 | values that cannot be quantised, dequantised or written |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeVar

from adaptertools.errors import SourceError
from adaptertools.store.dtypes import GGML_TYPES, DType, nbytes
from adaptertools.store.gguf_head import DAMAGED, U32, U64, Head, Value
from adaptertools.store.header import MAX_ELEMENTS, look_alike
from adaptertools.store.slot import Slot

MAGIC = b"GGUF"
MAX_COUNT = 1 << 17
MAX_DIMS = 4
MAX_NAME = 128  # of forks; 64 in llama.cpp itself
MAX_ALIGNMENT = 1 << 20
DEFAULT_ALIGNMENT = 32
ALIGNMENT = "general.alignment"
_OBSOLETE = ("ggml", "ggmf", "ggjt", "ggla")
_REMAKE = "convert the original weights again with a current llama.cpp"
_SPLIT = re.compile(r"(?s)(.*)-(\d{5})-of-(\d{5})\.gguf")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A checked head: `raw` is every byte before the data; `slots` are in the table's order.

    Shapes are row-major (the file's own are reversed); offsets are absolute in the file.
    """

    file: Path
    version: int
    alignment: int
    raw: bytes
    values: dict[str, Value]
    slots: dict[str, Slot]
    file_size: int

    @property
    def data_start(self) -> int:
        return len(self.raw)

    @property
    def pairs(self) -> list[tuple[str, bytes]]:
        """The key-value pairs as the writer takes them, byte for byte."""
        return [(key, value.raw) for key, value in self.values.items()]

    def get(self, key: str, want: type[T]) -> T | None:
        """Return the value of a key, None without one; AT144 when it is no `want` (bool ≠ int)."""
        if key not in self.values:
            return None
        value = self.values[key].value
        if type(value) is not want:
            why = f"it is {self.values[key].kind}, where {want.__name__} is needed"
            raise SourceError("AT144", why, file=self.file, key=key, hint=DAMAGED)
        return value


def read_gguf(path: Path) -> GgufFile:
    """Read and check the head of a GGUF file; raises `SourceError` (the table of this module)."""
    try:
        with path.open("rb") as stream:
            return _read(Head(path, stream))
    except OSError as error:
        raise SourceError("AT100", f"cannot be read: {error.strerror}", file=path) from None


def _read(head: Head) -> GgufFile:
    version = _version(head)
    tensors, pairs = head.count("tensors", 24), head.count("key-value pairs", 13)
    if max(tensors, pairs) > MAX_COUNT:
        raise head.error("AT142", f"{tensors} tensors and {pairs} pairs, over {MAX_COUNT}")
    values: dict[str, Value] = {}
    for _ in range(pairs):
        value = head.pair()
        if value.key in values:
            raise head.error("AT143", "the key stands twice")
        values[value.key] = value
    alignment = _alignment(head, values)
    entries = [_entry(head, alignment) for _ in range(tensors)]
    head.key = None
    start = head.at + -head.at % alignment
    slots: dict[str, Slot] = {}
    for name, dtype, shape, offset in entries:
        if name in slots:
            raise SourceError("AT145", "the tensor stands twice", file=head.path, key=name)
        size = nbytes(dtype, prod(shape))
        slots[name] = Slot(name, dtype, shape, head.path, start + offset, size)
    _check_places(slots, head.size)
    start = min(start, head.size)
    head.load(start)
    raw = bytes(memoryview(head.data)[:start])
    return GgufFile(head.path, version, alignment, raw, values, slots, head.size)


def _version(head: Head) -> int:
    head.load(min(8, head.size))
    start, magic = bytes(head.data[:8]), bytes(head.data[:4])
    for name in _OBSOLETE:
        if magic in (name.encode(), name.encode()[::-1]):
            raise head.error("AT140", f"an obsolete {name!r} file, older than GGUF", _REMAKE)
    if magic not in (MAGIC, MAGIC[::-1]):
        found = look_alike(start)
        if found and "safetensors" not in found[0]:
            raise head.error("AT101", *found)
        raise head.error("AT140", "not a GGUF file: it does not start with 'GGUF'", "")
    head.take(4)
    version = head.number(U32)
    if magic != MAGIC or (version and not version & 0xFFFF):
        raise head.error("AT140", "a big-endian GGUF file, which is not supported", _REMAKE)
    if version not in (2, 3):
        hint = _REMAKE if version < 2 else "update adaptertools"
        raise head.error("AT140", f"GGUF version {version}; 2 and 3 are supported", hint)
    return version


def _alignment(head: Head, values: dict[str, Value]) -> int:
    if ALIGNMENT not in values:
        return DEFAULT_ALIGNMENT
    head.key = ALIGNMENT
    kind, alignment = values[ALIGNMENT].kind, values[ALIGNMENT].value
    if kind != "uint32" or not isinstance(alignment, int):
        raise head.error("AT144", f"it is {kind}, not uint32")
    check_alignment(alignment, head.path)
    return alignment


def check_alignment(alignment: int, path: Path | None = None) -> None:
    """Refuse (AT144) an alignment that is no power of two, or over a megabyte."""
    if not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        why = f"{alignment} is not a power of two up to {MAX_ALIGNMENT}"
        raise SourceError("AT144", why, file=path, key=ALIGNMENT)


def _entry(head: Head, alignment: int) -> tuple[str, str, tuple[int, ...], int]:
    head.key = None
    name = head.key = head.name("tensor's name", "AT145", MAX_NAME)
    dims = head.number(U32)
    if dims > MAX_DIMS:
        raise head.error("AT145", f"{dims} dimensions, over {MAX_DIMS}")
    shape = tuple(head.number(U64) for _ in range(dims))[::-1]
    number = head.number(U32)
    if number not in GGML_TYPES:
        hint = "a type of a newer llama.cpp, of a fork, or one that was removed"
        raise head.error("AT146", f"unknown ggml type {number}", hint)
    check_shape(name, GGML_TYPES[number], shape, head.path)
    offset = head.number(U64)
    if offset % alignment:
        raise head.error("AT147", f"its offset {offset} is not a multiple of {alignment}")
    return name, GGML_TYPES[number].name, shape, offset


def check_shape(name: str, dtype: DType, shape: tuple[int, ...], path: Path | None = None) -> None:
    """Refuse a row-major shape that no file can hold: too large (AT145), broken blocks (AT146)."""
    if max(shape, default=0) > MAX_ELEMENTS or prod(shape) > MAX_ELEMENTS:
        raise SourceError("AT145", f"{list(shape)} is too large", file=path, key=name, hint=DAMAGED)
    block = dtype.block[0] if dtype.block else 1
    row = shape[-1] if shape else 1
    if row % block:
        why = f"rows of {row} elements are no whole blocks of {dtype.name} ({block} elements)"
        raise SourceError("AT146", why, file=path, key=name)


def _check_places(slots: dict[str, Slot], size: int) -> None:
    end = 0
    for slot in sorted(slots.values(), key=lambda slot: slot.offset):
        if slot.end > size:
            why = f"truncated: its data ends at byte {slot.end}, the file has {size}"
            raise SourceError("AT148", why, file=slot.file, key=slot.name, hint="download it again")
        if slot.size and slot.offset < end:
            why = "its data overlaps another tensor's"
            raise SourceError("AT147", why, file=slot.file, key=slot.name, hint=DAMAGED)
        end = max(end, slot.end)


def split_of(gguf: GgufFile) -> tuple[int, int]:
    """Return which part of how many a file is: (0, 1) for a whole one; AT144 if it cannot be."""
    number, count = gguf.get("split.no", int), gguf.get("split.count", int)
    number, count = number or 0, 1 if count is None else count
    if count == 0 and number == 0:
        return 0, 1
    if not 0 <= number < count <= 99999:
        why = f"part {number} of {count} cannot be"
        raise SourceError("AT144", why, file=gguf.file, key="split.no", hint=DAMAGED)
    return number, count


def sibling_files(path: Path, count: int) -> list[Path]:
    """Return the files of a split model, in order, by the name of one; AT144 if one is missing."""
    if count == 1:
        return [path]
    match = _SPLIT.fullmatch(path.name)
    if not match or int(match[3]) != count:
        why = f"one of {count} parts, but its name does not end in -0000N-of-{count:05d}.gguf"
        raise SourceError("AT144", why, file=path, hint="give the parts their own names again")
    files = [path.with_name(f"{match[1]}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]
    for number, file in enumerate(files, 1):
        if not file.is_file():
            why = f"part {number} of {count} is missing: {file.name}"
            raise SourceError("AT144", why, file=path, hint="download it to the same folder")
    return files


def read_parts(path: Path) -> tuple[GgufFile, ...]:
    """Read a GGUF file, and with one part of a split model all of them, in order (AT144, AT145)."""
    given = read_gguf(path)
    _, count = split_of(given)
    if count == 1:
        return (given,)
    parts = tuple(map(read_gguf, sibling_files(path, count)))
    names: set[str] = set()
    for number, part in enumerate(parts):
        if split_of(part) != (number, count):
            why = f"it is not part {number} of {count} by its own words"
            raise SourceError("AT144", why, file=part.file, key="split.no", hint=DAMAGED)
        if twice := names & part.slots.keys():
            why = "the tensor stands in another part too"
            raise SourceError("AT145", why, file=part.file, key=min(twice), hint=DAMAGED)
        names |= part.slots.keys()
    total = parts[0].get("split.tensors.count", int)
    if total is not None and total != len(names):
        why = f"{total} tensors by its own words, but the parts hold {len(names)}"
        raise SourceError("AT144", why, file=path, key="split.tensors.count", hint=DAMAGED)
    return parts
