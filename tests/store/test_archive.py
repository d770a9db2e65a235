"""Zips changed in place: checksums of pieces combined, and written where every reader looks."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptertools.errors import SourceError
from adaptertools.store.archive import combine, read_members, write_sums
from adaptertools.store.read import range_crc


@given(st.lists(st.binary(max_size=200), max_size=6))
def test_combined_checksums(pieces: list[bytes]) -> None:
    """Piece by piece it is the checksum of all of them, empty ones too."""
    crc = 0
    for piece in pieces:
        crc = combine(crc, zlib.crc32(piece), len(piece))
    assert crc == zlib.crc32(b"".join(pieces))


def test_a_large_piece() -> None:
    """Sizes beyond 32 bits: zeros that were counted by squaring, against zeros that were read."""
    size = (1 << 26) + 3
    assert combine(7, zlib.crc32(bytes(size)), size) == zlib.crc32(bytes(size), 7)
    once = combine(7, zlib.crc32(bytes(1 << 26)), 1 << 26)
    assert combine(once, zlib.crc32(bytes(3)), 3) == zlib.crc32(bytes(size), 7)


def by_torch(path: Path) -> None:
    torch.save({"a": torch.arange(40.0), "b": torch.zeros(3)}, path)


def by_zipfile(path: Path) -> None:
    other = path.with_name("other.pth")
    by_torch(other)
    with zipfile.ZipFile(other) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
        new.writestr("other/deflated", b"x" * 99, zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize("write", [by_torch, by_zipfile])
def test_members(tmp_path: Path, write: object) -> None:
    """Every stored member is found, and a changed one passes the test with its new checksum."""
    path = tmp_path / "made.pth"
    write(path)  # type: ignore[operator]
    members = {member.name.partition("/")[2]: member for member in read_members(path)}
    assert "other/deflated" not in {member.name for member in members.values()}
    member = members["data/0"]
    assert member.stop - member.start == 160
    data = bytearray(path.read_bytes())
    data[member.start] ^= 0xFF
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() == member.name
    crc = range_crc(path, member.start, 160)
    assert crc == zlib.crc32(data[member.start : member.stop])
    write_sums(path, [(place, crc) for place in member.sums])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    again = {m.name: m for m in read_members(path)}[member.name]
    assert again == member
    torch.load(path, weights_only=True)


@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_damaged(tmp_path: Path, damage: str) -> None:
    """What is no zip is told."""
    path = tmp_path / "made.pth"
    by_torch(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage == "cut" else bytes(500))
    with pytest.raises(SourceError) as caught:
        read_members(path)
    assert caught.value.code == "AT110"
