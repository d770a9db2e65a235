"""Writing: tensors to their places in a file, by threads, one tensor of memory for each.

| code | fault |
|---|---|
| AT150 | the container has no such dtype |
| AT151 | a name that the container cannot hold, or that stands twice |
| AT152 | a tensor's values are not what was said of them |
| AT505 | the file cannot be written (an `OutputError`) |
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from adaptertools.errors import OutputError, SourceError
from adaptertools.store.create import NO_ROOM, create
from adaptertools.store.dtypes import DTYPES, dtype_of, nbytes
from adaptertools.store.header import render_header
from adaptertools.store.stored import Stored

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEP = 4 << 20
# Columns moved at once in a transpose: more rows than a cache set has ways would evict each other.
_COLUMNS = 8
_KEEP = 16 << 20
_KEPT = threading.local()


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes at `offset` of a file; `make` is called when their turn comes."""

    offset: int
    make: Callable[[], Iterable[bytes | memoryview]]


def check(tensors: Sequence[Stored], dtypes: Collection[str], container: str) -> None:
    """Raise `SourceError` unless a container can hold these names (AT151) and dtypes (AT150)."""
    seen: set[str] = set()
    for tensor in tensors:
        name = tensor.name
        if tensor.dtype not in dtypes:
            raise SourceError("AT150", f"{container} has no {tensor.dtype}", key=name)
        if name in seen or name != name.encode("utf-8", "replace").decode("utf-8"):
            what = "stands twice" if name in seen else "the name is not valid UTF-8"
            raise SourceError("AT151", what, key=name)
        seen.add(name)


def raw_bytes(tensor: Stored) -> memoryview:
    """Load a tensor and return its row-major bytes, without a copy where it lies so already.

    They hold until the same thread asks for the next tensor's. Raises `SourceError` (AT152) where
    the values do not have the dtype or shape that was said.
    """
    import numpy as np

    bits, dtype, shape = tensor.load(), dtype_of(tensor.dtype), tensor.shape
    width = dtype.bits // 8
    if dtype.bits not in (8, 16, 32, 64):
        width, shape = 1, (*shape[:-1], nbytes(tensor.dtype, shape[-1] if shape else 1))
    if (bits.dtype.kind, bits.itemsize, bits.shape) != ("u", width, shape):
        why = f"{bits.dtype} {list(bits.shape)} in place of {tensor.dtype} {list(tensor.shape)}"
        raise SourceError("AT152", why, key=tensor.name)
    little = bits.astype(bits.dtype.newbyteorder("<"), copy=False)
    return row_major(little, reuse=True).reshape(-1).view(np.uint8).data


def row_major(bits: NDArray[Any], *, reuse: bool = False) -> NDArray[Any]:
    """Return `bits` contiguous; a transposed one is copied a few columns at a time.

    With `reuse` the copy may go to memory that its thread keeps, as fresh pages cost more than the
    copy; it is good until the thread's next one.
    """
    import numpy as np

    tall = bits.ndim > 1 and bits.shape[-2] >= bits.shape[-1]
    if not tall or bits.flags.c_contiguous or bits.strides[-2] != bits.itemsize:
        return np.ascontiguousarray(bits)
    whole: NDArray[Any]
    if reuse and bits.nbytes <= _KEEP:
        if not hasattr(_KEPT, "room"):
            _KEPT.room = np.empty(_KEEP, np.uint8)
        whole = _KEPT.room[: bits.nbytes].view(bits.dtype).reshape(bits.shape)
    else:
        whole = np.empty(bits.shape, bits.dtype)
    for start in range(0, bits.shape[-1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        whole[..., columns] = bits[..., columns]
    return whole


@contextmanager
def finished(path: Path) -> Iterator[BinaryIO]:
    """Open a file to be written, and take it away again when the work in it does not end well.

    Raises `OutputError` (AT505) for what the system refuses.
    """
    try:
        stream = path.open("wb")
    except OSError as error:
        raise _refused(path, error) from None
    try:
        with stream:
            yield stream
    except BaseException as error:
        if path.is_file():
            path.unlink()
        if isinstance(error, OSError):
            raise _refused(path, error) from None
        raise


def _refused(path: Path, error: OSError) -> OutputError:
    hint = "free some space" if error.errno in NO_ROOM else ""
    why = f"cannot be written: {error.strerror or error}"
    return OutputError("AT505", why, file=path, hint=hint)


def write_pieces(path: Path, size: int, phases: Iterable[Sequence[Piece]], jobs: int = 1) -> None:
    """Write a file of `size` bytes; the pieces of a phase by `jobs` threads, in any order.

    Writers take turns by a lock of ours: the kernel's own makes them spin.
    """
    turn = threading.Lock()
    with finished(path) as stream:
        create(path, b"", size)
        for pieces in phases:
            _run([partial(_write_piece, stream.fileno(), turn, piece) for piece in pieces], jobs)


def _write_piece(descriptor: int, turn: threading.Lock, piece: Piece) -> None:
    at = piece.offset
    for data in piece.make():
        view = memoryview(data)
        while len(view):
            with turn:
                done = os.pwrite(descriptor, view[:STEP], at)
            view, at = view[done:], at + done


def _run(tasks: Sequence[Callable[[], None]], jobs: int) -> None:
    if jobs <= 1 or len(tasks) <= 1:
        for task in tasks:
            task()
        return
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = [pool.submit(task) for task in tasks]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def write_safetensors(
    path: Path, tensors: Sequence[Stored], metadata: Mapping[str, str], jobs: int = 1
) -> None:
    """Write a safetensors file, its data in the order of `tensors`, by `jobs` threads.

    Raises `SourceError` (AT150 to AT152), `OutputError` (AT505), and what `load` raises.
    """
    check(tensors, DTYPES, "safetensors")
    for tensor in tensors:
        if tensor.name == "__metadata__":
            raise SourceError("AT151", "no name for a tensor", file=path, key=tensor.name)
        if DTYPES[tensor.dtype].bits * prod(tensor.shape) % 8:
            raise SourceError("AT150", "it ends within a byte", file=path, key=tensor.name)
    raw, offsets = render_header([(t.name, t.dtype, t.shape) for t in tensors], metadata)
    pieces = [Piece(0, lambda: [raw])]
    pieces += [Piece(offsets[t.name], data_of(t)) for t in tensors]
    write_pieces(path, len(raw) + sum(t.size for t in tensors), [pieces], jobs)


def data_of(tensor: Stored) -> Callable[[], list[memoryview]]:
    """Return what loads a tensor when a piece's turn comes."""
    return lambda: [raw_bytes(tensor)]


def write_torch(
    path: Path, tensors: Sequence[Stored], metadata: Mapping[str, str], jobs: int = 1
) -> None:
    """Write a torch file; it has no place for metadata. Raises as `write_safetensors`."""
    from adaptertools.store import torchsave

    torchsave.write_torch(path, tensors, jobs=jobs)


def write_npz(
    path: Path, tensors: Sequence[Stored], metadata: Mapping[str, str], jobs: int = 1
) -> None:
    """Write a `.npz`; it has no place for metadata. Raises as `write_safetensors`."""
    from adaptertools.store import npz

    npz.write_npz(path, tensors, jobs)


class Writer(Protocol):
    """What writes tensors and metadata to a file."""

    def __call__(
        self, path: Path, tensors: Sequence[Stored], metadata: Mapping[str, str], jobs: int = 1
    ) -> None: ...


WRITERS: dict[str, Writer] = {
    "safetensors": write_safetensors,
    "torch": write_torch,
    "npz": write_npz,
}


def write_weights(
    path: Path,
    tensors: Sequence[Stored],
    metadata: Mapping[str, str],
    *,
    container: str,
    jobs: int = 1,
) -> None:
    """Write tensors in a container of `WRITERS`; raises as `write_safetensors`."""
    WRITERS[container](path, tensors, metadata, jobs)
