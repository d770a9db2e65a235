"""Zip archives changed in place: where each member lies, and where its checksum is written.

A member's CRC-32 stands in the central directory, and in the local header or after the data (flag
bit 3; PKWARE's APPNOTE.TXT 4.3). Checksums of pieces are combined without reading the data again.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from adaptertools.errors import SourceError
from adaptertools.store.torchfile import ZIP_FAULTS, stored_at

_ENTRY, _DESCRIPTOR = 46, b"PK\x07\x08"
_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31


@dataclass(frozen=True, slots=True)
class Member:
    """A stored member: its data is at [start, stop), `sums` are where its CRC-32 is written."""

    name: str
    start: int
    stop: int
    sums: tuple[int, ...]


def read_members(path: Path) -> tuple[Member, ...]:
    """Return the stored members of a zip in the order of their data; AT110 where it is damaged."""
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            stream.seek(archive.start_dir)
            directory = stream.read()
            found, at = [], 0
            for info in archive.infolist():
                sums = [archive.start_dir + at + 16]
                lengths = struct.unpack_from("<3H", directory, at + 28)
                at += _ENTRY + sum(lengths)
                if info.compress_type != zipfile.ZIP_STORED:
                    continue
                start = stored_at(stream, info)
                stop = start + info.file_size
                stream.seek(info.header_offset + 14)
                crc = info.CRC.to_bytes(4, "little")
                if not info.flag_bits & 8 or stream.read(4) == crc:
                    sums.append(info.header_offset + 14)
                if info.flag_bits & 8:
                    stream.seek(stop)
                    sums.append(stop + 4 * (stream.read(4) == _DESCRIPTOR))
                found.append(Member(info.filename, start, stop, tuple(sums)))
    except ZIP_FAULTS as error:
        raise SourceError("AT110", f"a damaged torch file: {error}", file=path) from None
    return tuple(sorted(found, key=lambda member: member.start))


def combine(first: int, second: int, size: int) -> int:
    """Return the CRC-32 of two pieces one after the other, the second of `size` bytes.

    >>> import zlib
    >>> combine(zlib.crc32(b"one"), zlib.crc32(b"two"), 3) == zlib.crc32(b"onetwo")
    True
    """
    factor, power, bits = _ONE, _ONE >> 8, size  # x⁰, x⁸
    while bits:
        if bits & 1:
            factor = _times(factor, power)
        power = _times(power, power)
        bits >>= 1
    return _times(factor, first) ^ second


def _times(one: int, other: int) -> int:
    """Multiply two polynomials, their bits reflected, modulo that of CRC-32."""
    product = 0
    for bit in range(31, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = (other >> 1) ^ (_POLYNOMIAL if other & 1 else 0)
    return product


def write_sums(path: Path, sums: Iterable[tuple[int, int]]) -> None:
    """Write CRC-32 numbers at their places, given as (place, number)."""
    with path.open("r+b") as stream:
        for place, number in sums:
            stream.seek(place)
            stream.write(number.to_bytes(4, "little"))
