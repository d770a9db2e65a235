"""The safetensors header: every rule of the format checked on reading, written byte-stable.

Format: https://github.com/huggingface/safetensors#format. Eight bytes of little-endian length, that
many bytes of JSON, then the data; `data_offsets` count from the first data byte and must cover the
data exactly, without holes or overlaps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from adaptertools.errors import SourceError
from adaptertools.store.dtypes import DTYPES, nbytes
from adaptertools.store.slot import Slot

MAX_HEADER = 100_000_000
MAX_ELEMENTS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: `raw` is its bytes with the length prefix; `slots` are in file order."""

    file: Path
    raw: bytes
    metadata: dict[str, str]
    slots: dict[str, Slot]
    file_size: int

    @property
    def data_start(self) -> int:
        return len(self.raw)


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; raises `SourceError` (AT100 to AT109)."""
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            length = _check_prefix(path, prefix, size)
            body = stream.read(length)
    except OSError as error:
        raise SourceError("AT100", f"cannot be read: {error.strerror}", file=path) from None
    if len(body) != length:
        raise SourceError("AT102", "the file ended inside its header", file=path)
    table = _parse(path, body)
    metadata = _metadata(path, table.pop("__metadata__", None))
    slots = [_slot(path, name, entry, 8 + length) for name, entry in table.items()]
    slots.sort(key=lambda slot: (slot.offset, slot.end))
    _check_cover(path, slots, 8 + length, size)
    return Header(path, prefix + body, metadata, {slot.name: slot for slot in slots}, size)


def _check_prefix(path: Path, prefix: bytes, size: int) -> int:
    if found := look_alike(prefix):
        raise SourceError("AT101", found[0], file=path, hint=found[1])
    if len(prefix) < 8:
        raise SourceError("AT102", f"too short for safetensors: {size} bytes", file=path)
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        raise SourceError(
            "AT102", f"not safetensors: header length {length} is over {MAX_HEADER}", file=path
        )
    if 8 + length > size:
        raise SourceError(
            "AT102",
            f"truncated: the header needs {8 + length} bytes, the file has {size}",
            file=path,
            hint="download it again",
        )
    return length


def look_alike(prefix: bytes) -> tuple[str, str] | None:
    """Name the usual things that are found in place of weights."""
    text = prefix.lstrip().lower()
    if prefix.startswith(b"version "):
        return "a git-lfs pointer, not the weights", "run 'git lfs pull', or download it again"
    if text.startswith((b"<!doc", b"<html")):
        return "an HTML page, not weights", "the download failed; fetch the file again"
    if prefix.startswith(b"PK\x03\x04"):
        return "a torch pickle (zip), not safetensors", "rename it to end in .bin"
    if prefix.startswith(b"GGUF"):
        return "a GGUF file, not safetensors", "rename it to end in .gguf"
    return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice")
    return table


def _parse(path: Path, body: bytes) -> dict[str, Any]:
    if not body.startswith(b"{"):
        raise SourceError("AT103", "not safetensors: the header does not start with '{'", file=path)
    try:
        table = json.loads(body.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise SourceError("AT103", f"the header is not valid JSON: {why}", file=path) from None
    if not isinstance(table, dict):
        raise SourceError("AT103", "the header is not a JSON object", file=path)
    return table


def _metadata(path: Path, value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise SourceError("AT104", "must map strings to strings", file=path, key="__metadata__")
    return value


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ELEMENTS


def _slot(path: Path, name: str, entry: Any, data_start: int) -> Slot:
    def bad(why: str, code: str = "AT105") -> SourceError:
        return SourceError(code, why, file=path, key=name, hint="the file is damaged or hostile")

    if not name.isascii() and name != name.encode("utf-8", "replace").decode("utf-8"):
        raise bad("the name is not valid UTF-8")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise bad("the entry must hold exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise bad(f"unknown dtype {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise bad("shape must be a list of sizes (integers from 0)")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise bad("data_offsets must be two integers from 0", "AT106")
    begin, end = offsets
    elements = prod(shape)
    if elements > MAX_ELEMENTS or (DTYPES[dtype].bits * elements) % 8:
        raise bad(f"shape {shape} is not a possible size for {dtype}")
    if end - begin != nbytes(dtype, elements):
        raise bad(
            f"data_offsets hold {end - begin} bytes, {dtype} {shape} takes "
            f"{nbytes(dtype, elements)}",
            "AT106",
        )
    return Slot(name, dtype, tuple(shape), path, data_start + begin, end - begin)


def _check_cover(path: Path, slots: list[Slot], start: int, size: int) -> None:
    at = start
    for slot in slots:
        if slot.offset != at:
            what = (
                "overlaps the tensor before it" if slot.offset < at else "leaves a hole before it"
            )
            raise SourceError("AT107", f"its data {what}", file=path, key=slot.name)
        at = slot.end
    if at != size:
        what = "truncated" if at > size else "longer than its header says"
        raise SourceError(
            "AT108",
            f"{what}: the header describes {at} bytes, the file has {size}",
            file=path,
            hint="download it again" if at > size else "",
        )


def render_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """Return the header bytes for (name, dtype, shape) in data order, and each tensor's offset.

    Offsets are absolute in the file. Byte-stable: metadata is sorted, the data starts at a multiple
    of eight.
    """
    table: dict[str, Any] = {}
    if metadata:
        table["__metadata__"] = dict(sorted(metadata.items()))
    at = 0
    starts: dict[str, int] = {}
    for name, dtype, shape in tensors:
        end = at + nbytes(dtype, prod(shape))
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        starts[name] = at
        at = end
    body = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    body += b" " * (-len(body) % 8)
    raw = len(body).to_bytes(8, "little") + body
    return raw, {name: len(raw) + start for name, start in starts.items()}
