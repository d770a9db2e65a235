"""Reading: a container's slots by file name, and a slot's values whole or by rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptertools.errors import SourceError
from adaptertools.store.dtypes import dtype_of, nbytes, torch_dtype
from adaptertools.store.header import look_alike, read_header
from adaptertools.store.slot import Slot

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".lora")
_CHUNK = 1 << 22


def read_slots(path: Path) -> dict[str, Slot]:
    """Return the tensors of a weight file, by the container its name says; raises `SourceError`.

    `.npy` holds one tensor, called as the file; `.nemo` is a tar with one torch file in it.
    """
    if path.suffix == ".gguf":
        from adaptertools.store.gguf import read_gguf

        return read_gguf(path).slots
    if path.suffix not in (*TORCH_SUFFIXES, ".npz", ".npy", ".nemo"):
        return read_header(path).slots
    _refuse_look_alike(path)
    if path.suffix in TORCH_SUFFIXES:
        from adaptertools.store.torchfile import read_torch

        return read_torch(path)
    if path.suffix == ".nemo":
        return _read_nemo(path)
    from adaptertools.store.npz import read_npy, read_npz

    return {path.stem: read_npy(path)} if path.suffix == ".npy" else read_npz(path)


def _read_nemo(path: Path) -> dict[str, Slot]:
    from adaptertools.store.tar import read_tar
    from adaptertools.store.torchfile import read_torch

    members = read_tar(path).members
    weights = [m for m in members.values() if Path(m.name).suffix in TORCH_SUFFIXES]
    if len(weights) != 1:
        told = ", ".join(m.name for m in weights[:3]) or "none"
        raise SourceError("AT118", f"must hold one weight file, not {told}", file=path)
    return read_torch(path, (weights[0].offset, weights[0].size))


def _refuse_look_alike(path: Path) -> None:
    try:
        with path.open("rb") as stream:
            found = look_alike(stream.read(8))
    except OSError as error:
        raise SourceError("AT100", f"cannot be read: {error.strerror}", file=path) from None
    if found and "torch pickle" not in found[0]:
        raise SourceError("AT101", found[0], file=path, hint=found[1])


def read_bytes(slot: Slot, start: int = 0, size: int | None = None) -> bytearray:
    """Return `size` bytes of a slot from `start`; raises `SourceError` when the file is short."""
    want = slot.size - start if size is None else size
    if slot.held is not None:
        return bytearray(_exact(slot)[start : start + want].data)
    buffer = bytearray(want)
    with _opened(slot) as descriptor:
        read_into(descriptor, memoryview(buffer), slot.offset + start, slot)
    return buffer


@contextmanager
def _opened(slot: Slot) -> Iterator[int]:
    try:
        descriptor = os.open(slot.file, os.O_RDONLY)
    except OSError as error:
        raise SourceError("AT100", f"cannot be read: {error.strerror}", file=slot.file) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def same_bytes(one: Slot, other: Slot) -> bool:
    """Say whether two slots hold the same dtype, shape and bytes; reads 4 MiB at a time."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if not (one.plain and other.plain):
        return bool((read_bits(one) == read_bits(other)).all())
    for start in range(0, one.size, _CHUNK):
        size = min(_CHUNK, one.size - start)
        if read_bytes(one, start, size) != read_bytes(other, start, size):
            return False
    return True


def read_into(descriptor: int, view: memoryview, offset: int, slot: Slot) -> None:
    """Fill `view` from `offset` of an open file; a short read is an error, never zeros."""
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            raise SourceError("AT108", "the file ended early", file=slot.file, key=slot.name)
        done += count


def _exact(slot: Slot) -> NDArray[np.uint8]:
    """Return the bytes of a slot as they are stored; those held elsewhere are not copied."""
    import numpy as np

    if slot.held is not None:
        held: Any = slot.held
        return np.frombuffer(held(), np.uint8)
    raw = np.empty(slot.size, np.uint8)
    with _opened(slot) as descriptor:
        read_into(descriptor, raw.data, slot.offset, slot)
    return raw


def read_bits(slot: Slot) -> NDArray[np.unsignedinteger[Any]]:
    """Return a tensor's raw bits: unsigned integers as wide as its dtype, in its stored shape.

    Strided tensors come as strided views. A dtype that is not 8, 16, 32 or 64 bits wide comes as
    `uint8`, its last axis counted in bytes. Raises `SourceError` (AT100, AT108).
    """
    import numpy as np

    dtype, shape = dtype_of(slot.dtype), slot.shape
    if dtype.bits not in (8, 16, 32, 64):
        shape = (*shape[:-1], nbytes(slot.dtype, shape[-1] if shape else 1))
        return _exact(slot).reshape(shape)
    word = np.dtype(f"<u{dtype.bits // 8}")
    if not slot.elements:
        return np.empty(shape, word)
    words = _exact(slot).view(word)
    if slot.strides is None:
        return words.reshape(shape)
    strides = [step * word.itemsize for step in slot.strides]
    return np.lib.stride_tricks.as_strided(words, shape, strides)


def read_tensor(slot: Slot) -> torch.Tensor:
    """Return the whole tensor of a slot, in its stored dtype and shape."""
    import torch

    dtype = torch_dtype(slot.dtype)
    if not slot.elements:
        return torch.empty(slot.shape, dtype=dtype)
    flat = torch.from_numpy(_exact(slot)).view(dtype)
    if slot.strides is not None:
        return flat.as_strided(slot.shape, slot.strides).contiguous()
    return flat.reshape(slot.shape)


def read_flat(slot: Slot, start: int, stop: int) -> torch.Tensor:
    """Return elements [start, stop) of a slot, flattened; only those bytes are read."""
    import torch

    if not slot.plain or stop <= start:
        return read_tensor(slot).flatten()[start:stop]
    begin, size = nbytes(slot.dtype, start), nbytes(slot.dtype, stop - start)
    return torch.frombuffer(read_bytes(slot, begin, size), dtype=torch_dtype(slot.dtype))


def file_chunks(path: Path) -> Iterator[memoryview]:
    """Yield the bytes of a file in blocks of 4 MiB."""
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            yield view[:count]


def range_crc(path: Path, start: int, size: int) -> int:
    """Return the CRC-32 of a range of a file."""
    import zlib

    crc = 0
    with path.open("rb") as stream:
        stream.seek(start)
        while size and (part := stream.read(min(_CHUNK, size))):
            crc, size = zlib.crc32(part, crc), size - len(part)
    return crc


def sha256(path: Path) -> str:
    """Return the hex sha256 of a whole file."""
    import hashlib

    digest = hashlib.sha256()
    for chunk in file_chunks(path):
        digest.update(chunk)
    return digest.hexdigest()
