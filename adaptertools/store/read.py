"""Reading: a container's slots by file name, and a slot's values whole or by rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptertools.errors import SourceError
from adaptertools.store.dtypes import nbytes, torch_dtype
from adaptertools.store.header import look_alike, read_header
from adaptertools.store.slot import Slot

if TYPE_CHECKING:
    import torch

TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_CHUNK = 1 << 22


def read_slots(path: Path) -> dict[str, Slot]:
    """Return the tensors of a weight file, by the container its name says."""
    if path.suffix in TORCH_SUFFIXES:
        from adaptertools.store.torchfile import read_torch

        _refuse_look_alike(path)
        return read_torch(path)
    return read_header(path).slots


def _refuse_look_alike(path: Path) -> None:
    with path.open("rb") as stream:
        found = look_alike(stream.read(8))
    if found and "torch pickle" not in found[0]:
        raise SourceError("AT101", found[0], file=path, hint=found[1])


def read_bytes(slot: Slot, start: int = 0, size: int | None = None) -> bytearray:
    """Return `size` bytes of a slot from `start`; raises `SourceError` when the file is short."""
    want = slot.size - start if size is None else size
    buffer = bytearray(want)
    descriptor = os.open(slot.file, os.O_RDONLY)
    try:
        read_into(descriptor, memoryview(buffer), slot.offset + start, slot)
    finally:
        os.close(descriptor)
    return buffer


def same_bytes(one: Slot, other: Slot) -> bool:
    """Say whether two slots hold the same dtype, shape and bytes; reads 4 MiB at a time."""
    if (one.dtype, one.shape, one.size) != (other.dtype, other.shape, other.size):
        return False
    if not (one.plain and other.plain):
        return bool((read_tensor(one) == read_tensor(other)).all())
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


def read_tensor(slot: Slot) -> torch.Tensor:
    """Return the whole tensor of a slot, in its stored dtype and shape."""
    import torch

    if slot.held is not None:
        held: Any = slot.held
        return torch.as_tensor(held)
    dtype = torch_dtype(slot.dtype)
    if not slot.elements:
        return torch.empty(slot.shape, dtype=dtype)
    flat = torch.frombuffer(read_bytes(slot), dtype=dtype)
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


def sha256(path: Path) -> str:
    """Return the hex sha256 of a whole file."""
    import hashlib

    digest = hashlib.sha256()
    for chunk in file_chunks(path):
        digest.update(chunk)
    return digest.hexdigest()
