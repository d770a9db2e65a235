"""Torch files written without torch, and the plain zip they lie in: the same bytes each time.

Format: torch/serialization.py (`_save`): a zip of stored members `archive/data.pkl` (a protocol 2
pickle that names each storage), `byteorder`, `data/N` at multiples of 64, `version`, and an id.
Zip: PKWARE's APPNOTE.TXT 6.3, with zip64 fields where a number needs them. Faults: see `write`.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from adaptertools.store.pickled import STORAGES
from adaptertools.store.stored import Stored
from adaptertools.store.torchfile import row_major
from adaptertools.store.write import Piece, check, data_of, write_pieces

Buffers = Iterable[bytes | memoryview]

ALIGNMENT = 64
# from these on, a number goes to a zip64 field and all ones stand in its place
MAX32, MAX16 = 0xFFFFFFFF, 0xFFFF
_STORAGES = {dtype: storage for storage, dtype in STORAGES.items()}
_REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
_HOOKS = b"ccollections\nOrderedDict\n)R"


def write_torch(
    target: Path | BinaryIO, tensors: Sequence[Stored], nest: str | None = None, jobs: int = 1
) -> None:
    """Write a file that `torch.load` reads as a dict of tensors, or as `{nest: {...}}`.

    Each tensor is loaded when its turn comes; into a stream they go one by one, into a file by
    `jobs` threads. Raises `SourceError` (AT150 to AT152) and `OutputError` (AT505).
    """
    write_zip(target, _members(tensors, nest), ALIGNMENT, jobs)


def torch_size(tensors: Sequence[Stored], nest: str | None = None) -> int:
    """Return the size of the file that `write_torch` writes; nothing is loaded."""
    return _Layout(_members(tensors, nest), ALIGNMENT).size


def _members(tensors: Sequence[Stored], nest: str | None) -> list[ZipMember]:
    check(tensors, _STORAGES, "a torch file")
    members = [_text("data.pkl", _pickle(tensors, nest)), _text("byteorder", b"little")]
    members += [
        ZipMember(f"archive/data/{number}", tensor.size, data_of(tensor))
        for number, tensor in enumerate(tensors)
    ]
    members.append(_text("version", b"3\n"))

    def identity() -> list[bytes]:
        told = ";".join(f"{m.name}:{m.size}:{m.crc}" for m in members[:-1])
        number = int.from_bytes(hashlib.sha256(told.encode()).digest(), "big")
        return [b"%040d" % (number % 10**40)]

    members.append(ZipMember("archive/.data/serialization_id", 40, identity))
    return members


def _text(name: str, data: bytes) -> ZipMember:
    return ZipMember(f"archive/{name}", len(data), lambda: [data])


def _pickle(tensors: Sequence[Stored], nest: str | None) -> bytes:
    """Return the pickle of a dict of tensors; storage N belongs to the Nth."""
    table = b"}(" + b"".join(_tensor(str(n), t) for n, t in enumerate(tensors)) + b"u"
    if nest is not None:
        table = b"}" + _string(nest) + table + b"s"
    return b"\x80\x02" + table + b"."


def _tensor(key: str, tensor: Stored) -> bytes:
    elements = 1
    for extent in tensor.shape:
        elements *= extent
    kind = f"ctorch\n{_STORAGES[tensor.dtype]}\n".encode()
    storage = _string("storage") + kind + _string(key) + _string("cpu") + _integer(elements)
    strides = row_major(tuple(max(1, extent) for extent in tensor.shape))
    numbers = _integer(0) + _integers(tensor.shape) + _integers(strides)
    call = b"((" + storage + b"tQ" + numbers + b"\x89" + _HOOKS + b"tR"
    return _string(tensor.name) + _REBUILD + call


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return b"X" + len(data).to_bytes(4, "little") + data


def _integers(numbers: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t"


def _integer(number: int) -> bytes:
    if number < 256:
        return b"K" + number.to_bytes(1, "little")
    if number < 2**31:
        return b"J" + number.to_bytes(4, "little")
    size = number.bit_length() // 8 + 1
    return b"\x8a" + size.to_bytes(1, "little") + number.to_bytes(size, "little")


def _capped(number: int) -> int:
    return number if number < MAX32 else 0xFFFFFFFF


@dataclass(slots=True)
class ZipMember:
    """A stored member of `size` bytes; its place and checksum are known once it is written."""

    name: str
    size: int
    make: Callable[[], Buffers]
    offset: int = 0
    crc: int = 0

    def header(self, align: int) -> bytes:
        """Return the local header, padded (as torch does) so that the data is aligned."""
        name = self.name.encode("utf-8")
        extra = self._extra(self.size, self.size)
        pad = -(self.offset + 30 + len(name) + len(extra)) % align
        if pad:
            pad += align * (pad < 4)
            extra += struct.pack("<2s H", b"FB", pad - 4) + b"Z" * (pad - 4)
        lengths = struct.pack("<2H", len(name), len(extra))
        return b"PK\x03\x04" + self._common() + lengths + name + extra

    def entry(self) -> bytes:
        """Return the member's entry in the central directory."""
        name = self.name.encode("utf-8")
        extra = self._extra(self.size, self.size, self.offset)
        rest = struct.pack("<5H2L", len(name), len(extra), 0, 0, 0, 0, _capped(self.offset))
        return b"PK\x01\x02\x2d\x00" + self._common() + rest + name + extra

    def _extra(self, *numbers: int) -> bytes:
        large = [number for number in numbers if number >= MAX32]
        return struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) if large else b""

    def _common(self) -> bytes:
        """Version, flag (names are UTF-8), stored, 1980-01-01, checksum, sizes."""
        size, version = _capped(self.size), 45 if self.size >= MAX32 else 20
        return struct.pack("<5H3L", version, 0x800, 0, 0, 0x21, self.crc, size, size)

    def pieces(self, align: int) -> Iterator[bytes | memoryview]:
        data = list(self.make())
        for part in data:
            self.crc = zlib.crc32(part, self.crc)
        yield self.header(align)
        yield from data


class _Layout:
    """Where everything in a zip lies, known before anything is loaded."""

    def __init__(self, members: Sequence[ZipMember], align: int) -> None:
        self.members, self.align, at = members, align, 0
        for member in members:
            member.offset = at
            at += len(member.header(align)) + member.size
        self.start = at
        self.size = at + len(self.tail())

    def phases(self) -> list[list[Piece]]:
        """Return what to write, in turns: the last member may tell of the others."""
        pieces = [Piece(m.offset, partial(m.pieces, self.align)) for m in self.members]
        return [pieces[:-1], pieces[-1:], [Piece(self.start, lambda: [self.tail()])]]

    def tail(self) -> bytes:
        """Return the central directory and what ends it."""
        table = b"".join(member.entry() for member in self.members)
        count, size, end = len(self.members), len(table), self.start + len(table)
        large = b""
        if count >= MAX16 or end >= MAX32:
            numbers = (44, 45, 45, 0, 0, count, count, size, self.start)
            large = b"PK\x06\x06" + struct.pack("<Q2H2L4Q", *numbers)
            large += b"PK\x06\x07" + struct.pack("<LQL", 0, end, 1)
        few, sizes = count if count < MAX16 else 0xFFFF, (_capped(size), _capped(self.start))
        end_mark = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, few, few, *sizes, 0)
        return table + large + end_mark


def write_zip(
    target: Path | BinaryIO, members: Sequence[ZipMember], align: int = 1, jobs: int = 1
) -> None:
    """Write a zip of stored members, each made when its turn comes, the last after all others."""
    layout = _Layout(members, align)
    if isinstance(target, Path):
        write_pieces(target, layout.size, layout.phases(), jobs)
        return
    for piece in (piece for phase in layout.phases() for piece in phase):
        for part in piece.make():
            target.write(part)
