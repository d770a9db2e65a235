"""Writing GGUF files (version 3): pairs, the tensor table, then one tensor's data at a time.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. For the same pairs and tensors in
the same order the bytes are those of gguf-py. Codes: see `store/gguf.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptertools.errors import SourceError
from adaptertools.store.dtypes import GGML_NUMBERS, GGML_TYPES, dtype_of, nbytes
from adaptertools.store.gguf import (
    ALIGNMENT,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMS,
    MAX_NAME,
    check_alignment,
    check_shape,
)
from adaptertools.store.gguf_head import ARRAY, KINDS, MAX_KEY, U32, U64, Scalar
from adaptertools.store.stored import Stored
from adaptertools.store.write import Piece, row_major, write_pieces

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERSION = 3
_NUMBERS = {kind: (number, code) for number, (kind, code) in KINDS.items()}
_CLASSES = {"string": (str,), "bool": (bool,), "float32": (float, int), "float64": (float, int)}


def encode_kv(key: str, value: Scalar | Sequence[Scalar], kind: str) -> tuple[str, bytes]:
    """Return a pair for the writer; `kind` is `uint32`, `string`, …, with `[]` for an array of it.

    Raises `SourceError` (AT143) when the value is not of the kind; an int is no bool.
    """
    item, array = kind.removesuffix("[]"), kind.endswith("[]")
    number, code = _NUMBERS[item]
    name = _name(key, 1, MAX_KEY, "AT143")
    try:
        items: list[Any] = list(value) if array else [value]  # type: ignore[arg-type]
        if not all(type(one) in _CLASSES.get(item, (int,)) for one in items):
            raise TypeError
        head = U32.pack(ARRAY) + U32.pack(number) + U64.pack(len(items))
        payload = struct.pack(f"<{len(items)}{code}", *items) if code else _texts(items)
        return key, name + (head if array else U32.pack(number)) + payload
    except (TypeError, ValueError, OverflowError, struct.error):
        raise SourceError("AT143", f"{repr(value)[:60]} is not {kind}", key=key) from None


def _name(name: str, least: int, most: int, code: str) -> bytes:
    encoded = name.encode("utf-8", "replace")
    if not least <= len(encoded) <= most or encoded.decode() != name:
        why = f"a name that is not UTF-8 of {least} to {most} bytes"
        raise SourceError(code, why, key=name[:MAX_NAME])
    return _texts([name])


def _texts(texts: Sequence[str]) -> bytes:
    parts = [text.encode() for text in texts]
    return b"".join(U64.pack(len(part)) + part for part in parts)


def render_header(
    pairs: Sequence[tuple[str, bytes]],
    tensors: Sequence[tuple[str, str, tuple[int, ...]]],
    alignment: int = DEFAULT_ALIGNMENT,
) -> tuple[bytes, dict[str, int], int]:
    """Return the head for encoded pairs and (name, dtype, row-major shape), offsets, and file size.

    Offsets are absolute. An alignment other than 32 gets a pair at the end unless `pairs` has it.
    Raises `SourceError` (AT143 to AT146) for what a GGUF file cannot hold.
    """
    pairs = [*pairs, *_alignment_pair(pairs, alignment)]
    if len(dict(pairs)) != len(pairs):
        raise SourceError("AT143", "a key stands twice among the pairs")
    table, starts, at = [], {}, 0
    for name, dtype, shape in tensors:
        if name in starts:
            raise SourceError("AT145", "the tensor stands twice", key=name)
        table.append(_entry(name, dtype, shape) + U64.pack(at))
        starts[name] = at
        at += _padded(nbytes(dtype, prod(shape)), alignment)
    parts = [MAGIC, U32.pack(VERSION), U64.pack(len(tensors)), U64.pack(len(pairs))]
    head = b"".join([*parts, *(raw for _, raw in pairs), *table])
    head = head.ljust(_padded(len(head), alignment), b"\0")
    return head, {name: len(head) + start for name, start in starts.items()}, len(head) + at


def _padded(size: int, alignment: int) -> int:
    return size + -size % alignment


def _alignment_pair(
    pairs: Sequence[tuple[str, bytes]], alignment: int
) -> Sequence[tuple[str, bytes]]:
    check_alignment(alignment)
    own = encode_kv(ALIGNMENT, alignment, "uint32")
    given = dict(pairs).get(ALIGNMENT)
    if given is None:
        return [own] if alignment != DEFAULT_ALIGNMENT else []
    if given != own[1]:
        raise SourceError("AT144", f"the pair is not the alignment {alignment}", key=ALIGNMENT)
    return []


def _entry(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    if dtype not in GGML_NUMBERS:
        hint = f"use one of {', '.join(GGML_NUMBERS)}"
        raise SourceError("AT146", f"{dtype} is no type of GGUF", key=name, hint=hint)
    encoded = _name(name, 0, MAX_NAME, "AT145")
    if len(shape) > MAX_DIMS:
        raise SourceError("AT145", f"{len(shape)} dimensions, over {MAX_DIMS}", key=name)
    number = GGML_NUMBERS[dtype]
    check_shape(name, GGML_TYPES[number], shape)
    dims = b"".join(map(U64.pack, reversed(shape)))
    return encoded + U32.pack(len(shape)) + dims + U32.pack(number)


def write_gguf(
    path: Path,
    pairs: Sequence[tuple[str, bytes]],
    tensors: Sequence[Stored],
    alignment: int = DEFAULT_ALIGNMENT,
    jobs: int = 1,
) -> None:
    """Write a whole file by `jobs` threads, one tensor in memory for each; `path` is overwritten.

    The space is taken first, and an unfinished file is removed. Raises what `render_header` does,
    AT149 for wrong values, `OutputError` (AT505).
    """
    rows = [(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors]
    head, starts, total = render_header(pairs, rows, alignment)
    pieces = [Piece(0, lambda: [head])]
    pieces += [Piece(starts[tensor.name], partial(_data, tensor)) for tensor in tensors]
    write_pieces(path, total, [pieces], jobs)


def _data(tensor: Stored) -> list[memoryview]:
    import numpy as np

    values = _loaded(tensor)
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    flat: Any = row_major(little, reuse=True).reshape(-1).view(np.uint8)
    return [memoryview(flat)]


def _loaded(tensor: Stored) -> NDArray[np.unsignedinteger[Any]]:
    """Load a tensor's raw bits and check that they are of the dtype and shape of its entry."""
    values = tensor.load()
    dtype, shape = dtype_of(tensor.dtype), tensor.shape
    width = dtype.bits // 8
    if dtype.block is not None:
        width, shape = 1, (*shape[:-1], nbytes(tensor.dtype, shape[-1]))
    if (values.dtype.kind, values.dtype.itemsize, values.shape) != ("u", width, shape):
        why = f"{values.dtype} {list(values.shape)} in place of the bits of {tensor.dtype}"
        raise SourceError("AT149", f"{why} {list(tensor.shape)}", key=tensor.name)
    return values
