"""Torch files (`.bin`, `.pt`, `.pth`): their tensors as slots, read lazily, never unpickled."""

from __future__ import annotations

import zipfile
from math import prod
from pathlib import Path
from typing import Any

from adaptertools.errors import SourceError
from adaptertools.store.dtypes import BY_TORCH, nbytes
from adaptertools.store.pickled import MAX_PICKLE, Strided, UnsafePickleError, interpret
from adaptertools.store.slot import Slot

_NESTS = ("state_dict", "model_state_dict")


def read_torch(path: Path) -> dict[str, Slot]:
    """Return the tensors of a torch file by name; nested state dicts are opened one level.

    Raises `SourceError`: AT110 unreadable or damaged, AT111 not plain tensor data.
    """
    if path.stat().st_size == 0:
        raise SourceError("AT110", "the file is empty", file=path, hint="download it again")
    if not zipfile.is_zipfile(path):
        return _read_legacy(path)
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
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
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise SourceError("AT110", f"a damaged torch file: {error}", file=path) from None


def _unsafe(path: Path, what: str) -> SourceError:
    return SourceError(
        "AT111",
        f"the pickle holds {what}, which is not tensor data; it was not run",
        file=path,
        hint="ask the author for a .safetensors file",
    )


def _tensors(path: Path, value: Any) -> dict[str, Strided]:
    if isinstance(value, dict):
        for nest in _NESTS:
            if isinstance(value.get(nest), dict):
                value = value[nest]
                break
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
    return value


def _slot(
    path: Path, name: str, tensor: Strided, member: zipfile.ZipInfo | None, stream: Any
) -> Slot:
    dtype, shape = tensor.storage.dtype, tensor.shape
    reach = 1 + sum((n - 1) * s for n, s in zip(shape, tensor.strides, strict=True))
    reach = 0 if 0 in shape else reach
    begin, size = nbytes(dtype, tensor.start), nbytes(dtype, reach)
    if member is None or member.compress_type != zipfile.ZIP_STORED:
        raise SourceError("AT110", "its storage is missing or compressed", file=path, key=name)
    if begin + size > member.file_size:
        raise SourceError("AT110", "it reaches outside its storage", file=path, key=name)
    stream.seek(member.header_offset)
    local = stream.read(30)
    data = member.header_offset + 30 + int.from_bytes(local[26:28], "little")
    data += int.from_bytes(local[28:30], "little")
    plain = _row_major(shape)
    strides = None if tensor.strides == plain or prod(shape) <= 1 else tensor.strides
    return Slot(name, dtype, shape, path, data + begin, size, strides)


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _read_legacy(path: Path) -> dict[str, Slot]:
    """Read a torch file older than 1.6 whole, by torch itself with `weights_only`."""
    import torch

    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = (str(error).strip().splitlines() or ["damaged"])[0]
        raise SourceError(
            "AT110", f"not a torch file that holds only tensors: {first[:160]}", file=path
        ) from None
    if isinstance(value, dict):
        value = next((value[n] for n in _NESTS if isinstance(value.get(n), dict)), value)
    if not isinstance(value, dict) or not all(isinstance(t, torch.Tensor) for t in value.values()):
        raise SourceError("AT110", "it does not hold a table of tensors", file=path)
    slots = {}
    for name, tensor in value.items():
        dtype = BY_TORCH[str(tensor.dtype).removeprefix("torch.")].name
        whole = tensor.detach().contiguous()
        size = nbytes(dtype, whole.numel())
        slots[name] = Slot(name, dtype, tuple(tensor.shape), path, 0, size, held=whole)
    return slots
