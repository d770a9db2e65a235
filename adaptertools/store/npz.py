"""NumPy files: `.npy` arrays and `.npz` archives of them, as slots; written the same each time.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. A `.npz` is a zip of
`.npy` members. MLX stores bfloat16 as `V2` (mlx/io/load.cpp), and so do we.

| code | fault |
|---|---|
| AT112 | damaged, truncated, or its header does not fit its bytes |
| AT113 | Python objects (a pickle inside), which are never loaded |
| AT114 | an element type or byte order that is not read |
| AT115 | a member's name leaves the archive |
| AT117 | a compressed member that inflates beyond reason |
"""

from __future__ import annotations

import ast
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any, BinaryIO

from adaptertools.errors import SourceError
from adaptertools.store.dtypes import nbytes
from adaptertools.store.header import MAX_ELEMENTS
from adaptertools.store.pickled import MAX_DIMS
from adaptertools.store.slot import Slot
from adaptertools.store.stored import Stored
from adaptertools.store.tar import is_unsafe
from adaptertools.store.torchfile import ZIP_FAULTS, row_major, stored_at
from adaptertools.store.torchsave import ZipMember, write_zip
from adaptertools.store.write import Piece, check, raw_bytes, write_pieces

MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000
# Honest floats deflate to half; past this size a member must not shrink by more than `MAX_RATIO`.
MAX_INFLATED, MAX_RATIO, DEFLATE_LIMIT = 1 << 28, 64, 1100
DESCR = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<V2", "C64": "<c8",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
_BY_KIND = {descr[1:]: dtype for dtype, descr in DESCR.items()}
_FAULTS = (*ZIP_FAULTS, zlib.error)
_STEP = 1 << 20


@dataclass(frozen=True, slots=True)
class _Array:
    """What a .npy header says; `length` is that of the header, the data follows it."""

    dtype: str
    shape: tuple[int, ...]
    fortran: bool
    length: int

    @property
    def size(self) -> int:
        return nbytes(self.dtype, prod(self.shape))

    @property
    def strides(self) -> tuple[int, ...] | None:
        """Strides in elements of an array in Fortran order; None where the order is no matter."""
        if not self.fortran or sum(extent > 1 for extent in self.shape) < 2 or 0 in self.shape:
            return None
        return row_major(self.shape[::-1])[::-1]


@dataclass(frozen=True, slots=True)
class _Deflated:
    """The bytes of a compressed member, inflated when they are asked for."""

    path: Path
    member: str
    skip: int
    size: int

    def __call__(self) -> bytearray:
        buffer = bytearray(self.size)
        view, done = memoryview(buffer), 0
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                stream.read(self.skip)
                while part := stream.read(min(_STEP, self.size - done)):
                    view[done : done + len(part)] = part
                    done += len(part)
                if done != self.size:
                    raise zipfile.BadZipFile(f"{done} bytes in place of {self.size}")
        except _FAULTS as error:
            raise SourceError(
                "AT112", f"damaged: {error}", file=self.path, key=self.member
            ) from None
        return buffer


def read_npz(path: Path) -> dict[str, Slot]:
    """Return the arrays of a `.npz` by name, compressed ones inflated when they are read.

    Raises `SourceError` (the table of this module).
    """
    try:
        with path.open("rb") as stream:
            return _read_npz(path, stream)
    except OSError as error:
        raise SourceError("AT100", f"cannot be read: {error.strerror}", file=path) from None


def _read_npz(path: Path, stream: BinaryIO) -> dict[str, Slot]:
    slots: dict[str, Slot] = {}
    try:
        with zipfile.ZipFile(stream) as archive:
            for info in archive.infolist():
                slot = _member(path, stream, archive, info)
                if slot.name in slots:
                    raise SourceError("AT112", "stands twice", file=path, key=slot.name)
                slots[slot.name] = slot
    except _FAULTS as error:
        raise SourceError("AT112", f"a damaged .npz: {error}", file=path) from None
    return slots


def _member(path: Path, stream: BinaryIO, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Slot:
    name = info.filename.removesuffix(".npy")
    if is_unsafe(name or "_"):
        raise SourceError("AT115", "a member's name leaves the archive", file=path, key=name)
    if name == info.filename:
        raise SourceError("AT112", "a member that is no .npy array", file=path, key=name)
    if info.compress_type == zipfile.ZIP_STORED:
        start = stored_at(stream, info)
        stream.seek(start)
        array = _header(path, name, stream, info.file_size)
        at = start + array.length
        return Slot(name, array.dtype, array.shape, path, at, array.size, array.strides)
    if info.compress_type != zipfile.ZIP_DEFLATED:
        why = f"compressed by zip's method {info.compress_type}"
        raise SourceError("AT112", why, file=path, key=name, hint="save it with numpy.savez")
    ratio = info.file_size / max(1, info.compress_size)
    if ratio > DEFLATE_LIMIT or (info.file_size > MAX_INFLATED and ratio > MAX_RATIO):
        why = f"{info.compress_size} bytes that inflate to {info.file_size}"
        raise SourceError("AT117", why, file=path, key=name, hint="save it with numpy.savez")
    with archive.open(info) as member:
        array = _header(path, name, member, info.file_size)
    held = _Deflated(path, info.filename, array.length, array.size)
    return Slot(name, array.dtype, array.shape, path, 0, array.size, array.strides, held)


def read_npy(path: Path) -> Slot:
    """Return the array of a `.npy`, named after the file; raises `SourceError`."""
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            array = _header(path, path.stem, stream, size)
    except OSError as error:
        raise SourceError("AT100", f"cannot be read: {error.strerror}", file=path) from None
    return Slot(path.stem, array.dtype, array.shape, path, array.length, array.size, array.strides)


def _header(path: Path, name: str, stream: IO[bytes], size: int) -> _Array:
    """Read the header of an array that takes `size` bytes with it."""

    def bad(why: str, code: str = "AT112", hint: str = "") -> SourceError:
        return SourceError(code, why, file=path, key=name, hint=hint)

    start = stream.read(8)
    if start[:6] != MAGIC or len(start) < 8 or start[6] not in (1, 2, 3):
        raise bad("not a .npy array")
    width = 2 if start[6] == 1 else 4
    count = int.from_bytes(stream.read(width), "little")
    if count > MAX_HEADER or 8 + width + count > size:
        raise bad(f"its header of {count} bytes is too long")
    table = _parsed(stream.read(count), "utf-8" if start[6] == 3 else "latin-1")
    if not isinstance(table, dict) or set(table) != {"descr", "fortran_order", "shape"}:
        raise bad("its header must hold exactly descr, fortran_order and shape")
    shape, fortran = table["shape"], table["fortran_order"]
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise bad("its shape must be a tuple of sizes (integers from 0)")
    if len(shape) > MAX_DIMS or prod(max(1, n) for n in shape) > MAX_ELEMENTS:
        raise bad(f"its shape {str(shape)[:80]} is absurd")
    if not isinstance(fortran, bool):
        raise bad("its fortran_order must be True or False")
    array = _Array(_dtype(table["descr"], bad), shape, fortran, 8 + width + count)
    if array.length + array.size != size:
        what = "truncated" if array.length + array.size > size else "longer than its header says"
        raise bad(f"{what}: {array.dtype} {list(shape)} takes {array.size} bytes of {size}")
    return array


def _parsed(text: bytes, encoding: str) -> Any:
    """Return the Python literal of a header, None if it is none; its length is bounded already."""
    try:
        return ast.literal_eval(text.decode(encoding).strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _dtype(descr: Any, bad: Callable[..., SourceError]) -> str:
    told = str(descr)[:40]
    if not isinstance(descr, str):
        raise bad(f"its elements are records ({told})", "AT114")
    order, kind = (descr[0], descr[1:]) if descr[:1] in "<>|=" else ("|", descr)
    if kind.startswith("O"):
        raise bad(
            "holds Python objects, a pickle that may run code; it was not run",
            "AT113",
            "ask the author for arrays of numbers",
        )
    if kind not in _BY_KIND:
        raise bad(f"its elements are {told!r}, which is not read", "AT114")
    if order == ">" and not kind.endswith("1"):
        raise bad(f"its elements are big-endian ({told})", "AT114", "save it as little-endian")
    return _BY_KIND[kind]


def render_npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return the header of a .npy array in the words of NumPy, 64 bytes or a multiple of it."""
    text = f"{{'descr': '{DESCR[dtype]}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(MAGIC) + 4 + len(text) + 1) % 64) + "\n"
    return MAGIC + b"\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin-1")


def _array_parts(tensor: Stored) -> list[bytes | memoryview]:
    return [render_npy_header(tensor.dtype, tensor.shape), raw_bytes(tensor)]


def write_npz(path: Path, tensors: Sequence[Stored], jobs: int = 1) -> None:
    """Write a `.npz` that `numpy.load` and MLX read, each tensor loaded when its turn comes.

    Raises `SourceError` (AT150 to AT152) and `OutputError` (AT505), see `write`.
    """
    check(tensors, DESCR, "NumPy")
    members = []
    for tensor in tensors:
        if is_unsafe(tensor.name or "_"):
            raise SourceError("AT151", "not a name for a .npz", file=path, key=tensor.name)
        size = len(render_npy_header(tensor.dtype, tensor.shape)) + tensor.size
        members.append(ZipMember(f"{tensor.name}.npy", size, partial(_array_parts, tensor)))
    write_zip(path, members, jobs=jobs)


def write_npy(path: Path, tensor: Stored) -> None:
    """Write one tensor as a `.npy`; raises as `write_npz`."""
    check([tensor], DESCR, "NumPy")
    size = len(render_npy_header(tensor.dtype, tensor.shape)) + tensor.size
    write_pieces(path, size, [[Piece(0, partial(_array_parts, tensor))]])
