"""Torch files (`.bin`, `.pt`, `.pth`): their tensors as slots, read lazily, never unpickled."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from adaptertools.errors import SourceError
from adaptertools.store.dtypes import BY_TORCH, nbytes
from adaptertools.store.header import MAX_ELEMENTS
from adaptertools.store.pickled import MAX_PICKLE, Strided, UnsafePickleError, interpret
from adaptertools.store.slot import Slot

# what `zipfile` raises for damaged or hostile archives
ZIP_FAULTS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    OSError,
    OverflowError,
    ValueError,
    struct.error,
)
MAX_EXPANDED = 1 << 28
_NESTS = ("state_dict", "model_state_dict", "model")


class Window(io.RawIOBase):
    """The bytes [offset, offset + size) of a file, as a file of its own that is only read."""

    def __init__(self, stream: BinaryIO, offset: int, size: int) -> None:
        self.stream, self.offset, self.size, self.at = stream, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + (0, self.at, self.size)[whence]
        if at < 0:
            raise ValueError(f"a negative position {at}")
        self.at = at
        return at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self.size - self.at)]
        count = os.preadv(self.stream.fileno(), [view], self.offset + self.at) if view else 0
        self.at += count
        return count


def read_torch(path: Path, window: tuple[int, int] | None = None) -> dict[str, Slot]:
    """Return the tensors of a torch file by name; nested state dicts are opened one level.

    `window` is the (offset, size) of a torch file that lies within `path`; slots point into `path`.
    Raises `SourceError`: AT100 unreadable, AT110 damaged, AT111 not plain tensor data.
    """
    try:
        with path.open("rb") as file:
            offset, size = window or (0, os.fstat(file.fileno()).st_size)
            if size == 0:
                raise SourceError("AT110", "the file is empty", file=path, hint="download it again")
            stream: BinaryIO = file
            if window:
                stream = io.BufferedReader(Window(file, offset, size))
            if not _is_zip(stream):
                return _read_legacy(path, stream)
            slots = _read_zip(path, stream, size)
    except OSError as error:
        raise SourceError("AT100", f"cannot be read: {error.strerror}", file=path) from None
    return {n: replace(s, offset=s.offset + offset) for n, s in slots.items()} if offset else slots


def _is_zip(stream: BinaryIO) -> bool:
    """Say whether a file ends as a zip does; one that ends as a damaged zip is one, too."""
    try:
        return zipfile.is_zipfile(stream)
    except zipfile.BadZipFile:
        return True


def _read_zip(path: Path, stream: BinaryIO, size: int) -> dict[str, Slot]:
    try:
        with zipfile.ZipFile(stream) as archive:
            members = {info.filename: info for info in archive.infolist()}
            pickle_name = next((n for n in members if n.endswith("/data.pkl")), "")
            if not pickle_name or members[pickle_name].file_size > MAX_PICKLE:
                raise SourceError("AT110", "a zip, but not one that torch.save wrote", file=path)
            value = interpret(archive.read(pickle_name))
            prefix = pickle_name.removesuffix("data.pkl") + "data/"
            return {
                name: _slot(path, name, tensor, members.get(prefix + tensor.storage.key), stream)
                for name, tensor in _tensors(path, value).items()
            }
    except UnsafePickleError as error:
        raise _unsafe(path, str(error)) from None
    except ZIP_FAULTS as error:
        raise SourceError("AT110", f"a damaged torch file: {error}", file=path) from None


def stored_at(stream: BinaryIO, member: zipfile.ZipInfo) -> int:
    """Return where the bytes of a stored zip member start; raises `BadZipFile`.

    The local header is the only one that tells; the range is checked against the end of `stream`.
    """
    stream.seek(member.header_offset)
    local = stream.read(30)
    if len(local) < 30 or not local.startswith(b"PK\x03\x04"):
        raise zipfile.BadZipFile(f"no member starts where {member.filename[:80]!r} should")
    name, extra = struct.unpack("<2H", local[26:30])
    start: int = member.header_offset + 30 + name + extra
    if member.file_size != member.compress_size or member.flag_bits & 1:
        raise zipfile.BadZipFile(f"{member.filename[:80]!r} is encrypted, or its size is wrong")
    if start + member.file_size > stream.seek(0, os.SEEK_END):
        raise zipfile.BadZipFile(f"truncated: {member.filename[:80]!r} ends beyond the file")
    return start


def _unsafe(path: Path, what: str) -> SourceError:
    return SourceError(
        "AT111",
        f"the pickle holds {what}, which is not tensor data; it was not run",
        file=path,
        hint="ask the author for a .safetensors file",
    )


def _tensors(path: Path, value: Any) -> dict[str, Strided]:
    value = _state_dict(value)
    if not isinstance(value, dict):
        raise SourceError("AT110", "it does not hold a table of tensors", file=path)
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Strided):
            raise SourceError(
                "AT110",
                f"holds a {type(tensor).__name__}, not a tensor",
                file=path,
                key=str(name),
                hint="save only the state dict",
            )
        if name != name.encode("utf-8", "replace").decode("utf-8"):
            raise SourceError("AT110", "the name is not valid UTF-8", file=path, key=name)
    return value


def _state_dict(value: Any) -> Any:
    """Open one level: Lightning and NeMo nest in `state_dict`, LitGPT in `model`."""
    if not isinstance(value, dict):
        return value
    return next((value[nest] for nest in _NESTS if isinstance(value.get(nest), dict)), value)


def _slot(
    path: Path, name: str, tensor: Strided, member: zipfile.ZipInfo | None, stream: BinaryIO
) -> Slot:
    dtype, shape = tensor.storage.dtype, tensor.shape
    reach = 1 + sum((n - 1) * s for n, s in zip(shape, tensor.strides, strict=True))
    reach = 0 if 0 in shape else reach
    begin, size = nbytes(dtype, tensor.start), nbytes(dtype, reach)
    if member is None or member.compress_type != zipfile.ZIP_STORED:
        raise SourceError("AT110", "its storage is missing or compressed", file=path, key=name)
    if begin + size > member.file_size:
        raise SourceError("AT110", "it reaches outside its storage", file=path, key=name)
    if max(*shape, 0, 0) > MAX_ELEMENTS or nbytes(dtype, prod(shape)) > size + MAX_EXPANDED:
        raise SourceError("AT110", f"{list(shape)} of {size} bytes is absurd", file=path, key=name)
    plain = row_major(shape)
    strides = None if tensor.strides == plain or prod(shape) <= 1 else tensor.strides
    return Slot(name, dtype, shape, path, stored_at(stream, member) + begin, size, strides)


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a contiguous tensor of this shape."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _read_legacy(path: Path, stream: BinaryIO) -> dict[str, Slot]:
    """Read a torch file older than 1.6 whole, by torch itself with `weights_only`."""
    import torch

    try:
        stream.seek(0)
        value = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:
        first = (str(error).strip().splitlines() or ["damaged"])[0]
        raise SourceError(
            "AT110", f"not a torch file that holds only tensors: {first[:160]}", file=path
        ) from None
    value = _state_dict(value)
    if not isinstance(value, dict) or not all(isinstance(t, torch.Tensor) for t in value.values()):
        raise SourceError("AT110", "it does not hold a table of tensors", file=path)
    slots = {}
    for name, tensor in value.items():
        dtype = BY_TORCH.get(str(tensor.dtype).removeprefix("torch."))
        if not isinstance(name, str) or dtype is None or tensor.layout != torch.strided:
            why = f"a {tensor.dtype} tensor ({tensor.layout}) that cannot be read"
            raise SourceError("AT110", why, file=path, key=str(name))
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        shape = tuple(tensor.shape)
        slots[name] = Slot(name, dtype.name, shape, path, 0, raw.size, held=_holding(raw))
    return slots


def _holding(raw: Any) -> Callable[[], Any]:
    return lambda: raw
