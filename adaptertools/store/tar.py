"""Tar archives (NeMo's `.nemo`): where each member's bytes lie; nothing is ever extracted.

Format: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Interchange Format", with GNU's long
names and base-256 sizes. Blocks of 512 bytes: a header, the data, padding; two zero blocks end it.

| code | fault |
|---|---|
| AT112 | damaged or truncated, or not a tar archive |
| AT115 | a member's name leaves the archive, or it is no plain file |
| AT116 | compressed |
| AT118 | a member is missing or larger than the caller takes |
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from adaptertools.errors import SourceError
from adaptertools.store.read import read_bytes
from adaptertools.store.slot import Slot
from adaptertools.store.write import finished

BLOCK = 512
RECORD = 20 * BLOCK
MAX_MEMBERS = 100_000
MAX_NAME = 1 << 16
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device",
          b"6": "a pipe", b"S": "a sparse file"}  # fmt: skip
_FILES, _FOLDER, _PAX, _GLOBAL, _LONG = (b"0", b"\0"), b"5", b"x", b"g", b"L"


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive: `size` bytes at `offset` of the archive; `name` without `./`."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class TarFile:
    """The plain files of an archive by name, in its order."""

    path: Path
    members: dict[str, Member]


def is_unsafe(name: str) -> bool:
    """Say whether a name would leave the folder that it is put into."""
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or not parts[0] or "\0" in name


def read_tar(path: Path) -> TarFile:
    """Read the table of a tar archive; raises `SourceError` (AT100 and the table above)."""
    try:
        with path.open("rb") as stream:
            _refuse_packed(path, stream.read(6))
            return TarFile(path, _Reader(path, stream).members())
    except OSError as error:
        raise SourceError("AT100", f"cannot be read: {error.strerror}", file=path) from None


def read_member(path: Path, name: str, limit: int) -> bytes:
    """Return the bytes of one member; raises `SourceError` (AT118 missing, or over `limit`)."""
    member = read_tar(path).members.get(name)
    if member is None:
        raise SourceError("AT118", "the archive does not hold it", file=path, key=name)
    if member.size > limit:
        why = f"{member.size} bytes, over the {limit} that it may have"
        raise SourceError("AT118", why, file=path, key=name)
    slot = Slot(name, "U8", (member.size,), path, member.offset, member.size)
    return bytes(read_bytes(slot))


def _refuse_packed(path: Path, start: bytes) -> None:
    packed = next((word for magic, word in _PACKED.items() if start.startswith(magic)), None)
    if packed:
        hint = f"decompress it first, as with '{packed} -dc FILE > FILE.tar'"
        raise SourceError("AT116", f"compressed by {packed}", file=path, hint=hint)


class _Reader:
    """Walks the headers of an archive; `told` is what long-name headers say of the next one."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path, self.stream, self.at = path, stream, 0
        self.size = os.fstat(stream.fileno()).st_size
        self.told: dict[str, str] = {}

    def fail(self, why: str, code: str = "AT112", key: str | None = None) -> NoReturn:
        hint = "download it again" if code == "AT112" else ""
        raise SourceError(code, why, file=self.path, key=key, hint=hint)

    def members(self) -> dict[str, Member]:
        found: dict[str, Member] = {}
        while (header := self.header()) is not None:
            kind, size = header[156:157], self.number(header[124:136])
            if kind in (_PAX, _GLOBAL, _LONG):
                self.remember(kind, self.take(size))
                continue
            name = self.name(header)
            size = int(self.told.pop("size", size))
            offset, self.told = self.at, {}
            if kind == _FOLDER:
                continue
            if kind not in _FILES or not name:
                self.fail(f"is {_KINDS.get(kind, f'of type {kind!r}')}, not a file", "AT115", name)
            self.skip(size, name)
            if name in found or len(found) == MAX_MEMBERS:
                self.fail("stands twice" if name in found else "one member too many", key=name)
            found[name] = Member(name, offset, size)
        return found

    def header(self) -> bytes | None:
        """Return the next header; None at the end of the archive."""
        block = self.block()
        if not any(block):
            if any(self.block()):
                self.fail("a lone zero block among the members")
            return None
        total = sum(block) - sum(block[148:156]) + 8 * 32
        if self.number(block[148:156]) != total:
            where = self.at - BLOCK
            self.fail(f"no header at byte {where}" if where else "not a tar archive")
        return block

    def block(self) -> bytes:
        self.stream.seek(self.at)
        block = self.stream.read(BLOCK)
        if len(block) < BLOCK:
            self.fail("truncated: it ends before its end mark")
        self.at += BLOCK
        return block

    def number(self, field: bytes) -> int:
        """Return a number: octal digits, or GNU's base 256 with the first bit set."""
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        text = field.strip(b" \0")
        if not re.fullmatch(rb"[0-7]*", text):
            self.fail("not a tar archive" if self.at <= BLOCK else f"a number is {field!r}")
        return int(text or b"0", 8)

    def skip(self, size: int, name: str | None = None) -> None:
        if self.at + size > self.size:
            self.fail(f"truncated: {size} bytes at {self.at} of {self.size}", key=name)
        self.at += -(-size // BLOCK) * BLOCK

    def take(self, size: int) -> bytes:
        """Return the data of a header that tells of the next one."""
        if size > MAX_NAME:
            self.fail(f"{size} bytes of names, over {MAX_NAME}")
        start = self.at
        self.skip(size)
        self.stream.seek(start)
        return self.stream.read(size)

    def remember(self, kind: bytes, data: bytes) -> None:
        if kind == _LONG:
            self.told["path"] = self.text(data.rstrip(b"\0"))
            return
        while data:
            match = re.match(rb"(\d{1,6}) ([^=]+)=", data)
            length = int(match[1]) if match else 0
            if match is None or not match.end() < length <= len(data):
                self.fail("a damaged pax header")
            key, value = self.text(match[2]), data[match.end() : length - 1]
            data = data[length:]
            if key.startswith("GNU.sparse"):
                self.fail("is a sparse file, not a file", "AT115")
            if key == "size" and not re.fullmatch(rb"\d{1,19}", value):
                self.fail("a damaged pax header")
            if key in ("path", "size") and kind == _PAX:
                self.told[key] = self.text(value)

    def name(self, header: bytes) -> str:
        prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
        plain = header[:100].split(b"\0")[0]
        name = self.told.pop("path", None) or self.text(b"/".join(filter(None, (prefix, plain))))
        if is_unsafe(name):
            self.fail("a member's name leaves the archive", "AT115", name)
        return "/".join(part for part in name.split("/") if part not in ("", "."))

    def text(self, data: bytes) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            self.fail("a name is not valid UTF-8")


def write_tar(
    path: Path, members: Sequence[tuple[str, bytes | Callable[[BinaryIO], object], int]]
) -> None:
    """Write a tar archive of (name, data, size), the same bytes each time.

    Data is bytes, or a function that writes `size` bytes to the stream it is given. Raises
    `SourceError` (AT151 an unusable name, AT152 a wrong size), `OutputError` (AT505).
    """
    seen: set[str] = set()
    with finished(path) as stream:
        for name, data, size in members:
            stream.write(_header(path, name, size, seen))
            start = stream.tell()
            if isinstance(data, bytes):
                stream.write(data)
            else:
                data(stream)
            if stream.tell() - start != size:
                why = f"{stream.tell() - start} bytes were written in place of {size}"
                raise SourceError("AT152", why, file=path, key=name)
            stream.write(bytes(-size % BLOCK))
        stream.write(bytes(2 * BLOCK))
        stream.write(bytes(-stream.tell() % RECORD))


def _header(path: Path, name: str, size: int, seen: set[str]) -> bytes:
    import tarfile

    if is_unsafe(name) or name in seen:
        raise SourceError("AT151", "not a name that a tar can hold", file=path, key=name)
    seen.add(name)
    info = tarfile.TarInfo(name)
    info.size = size
    small = size < 8**11
    try:
        return info.tobuf(tarfile.USTAR_FORMAT if small else tarfile.GNU_FORMAT, "utf-8", "strict")
    except (ValueError, UnicodeError):
        raise SourceError("AT151", "too long a name for a tar", file=path, key=name) from None
