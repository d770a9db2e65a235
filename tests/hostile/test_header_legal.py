"""What the safetensors format allows, however odd, merges right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import (
    Tensors,
    encode,
    raw_safetensors,
    read_header,
    read_safetensors,
    write_safetensors,
)

from .arena import Arena
from .test_header import SIDES, side_file


def extras() -> Tensors:
    """Return tensors that no adapter touches, of dtypes no merge computes in."""
    return {
        "stats.bytes": ("U8", (5,), b"\x00\x01\xfe\xff\x80"),
        "stats.steps": encode(np.array([1, -1, 2**62]), "I64"),
        "stats.mask": ("BOOL", (3,), b"\x01\x00\x01"),
        "stats.words": encode(np.array([[1, -2], [3, 4]]), "I16"),
        "stats.double": encode(np.array([1e300, -0.0, np.nan]), "F64"),
        "stats.nan": ("F32", (2,), b"\x01\x00\xa0\x7f\x00\x00\xc0\xff"),
        "stats.complex": ("C64", (1,), bytes(range(8))),
    }


def rewrite(path: Path, **options: Any) -> None:
    """Write a good file again in another legal way."""
    options.setdefault("metadata", {"format": "pt"})
    write_safetensors(path, read_safetensors(path), **options)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    "options",
    [
        {"metadata": None},
        {"metadata": {}},
        {"metadata": {"format": "pt", "b": "", "a": "line\nline", "ü": "模型 \x1b[2J"}},
        {"pad": 1},
        {"pad": 3},
        {"pad": 100_000},
    ],
    ids=["no metadata", "empty metadata", "odd metadata", "unaligned 1", "unaligned 3", "padded"],
)
def test_odd_header(arena: Arena, side: str, options: dict[str, Any]) -> None:
    """Metadata, padding and alignment may be anything the format allows."""
    rewrite(side_file(arena, side), **options)
    arena.passes()
    if side == "base":
        merged = read_header(arena.out / "model.safetensors")[0]
        assert merged.get("__metadata__", {}) == (options.get("metadata", {"format": "pt"}) or {})


@pytest.mark.parametrize("side", SIDES)
def test_data_in_another_order(arena: Arena, side: str) -> None:
    """Header order and data order are independent."""
    path = side_file(arena, side)
    names = list(read_safetensors(path))
    rewrite(path, order=names[1::2] + names[::2][::-1])
    arena.passes()


@pytest.mark.parametrize("side", SIDES)
def test_indented_and_escaped_header(arena: Arena, side: str) -> None:
    """JSON may be indented, and letters written as escapes."""
    path = side_file(arena, side)
    header, start = read_header(path)
    data = path.read_bytes()[start:]
    text = json.dumps(header, indent=4).replace("model.layers", "model\\u002elayers")
    raw_safetensors(path, text.encode(), data)
    arena.passes()


def test_untouched_dtypes_are_copied(arena: Arena) -> None:
    """Integers, masks, NaN payloads and doubles pass bit for bit."""
    arena.edit_model(lambda tensors: tensors.update(extras()))
    merged = arena.passes()
    assert {name: merged[name] for name in extras()} == extras()


def test_zero_size_and_scalar_tensors(arena: Arena) -> None:
    """Tensors without elements and without dimensions are legal anywhere in a base."""
    odd: Tensors = {
        "a.empty": ("F32", (0,), b""),
        "b.empty": ("BF16", (4, 0, 2), b""),
        "c.scalar": ("F32", (), b"\x00\x00\x80\x3f"),
    }

    def edit(tensors: Tensors) -> None:
        old = dict(tensors)
        tensors.clear()
        tensors.update({"a.empty": odd["a.empty"], **old, **odd})

    arena.edit_model(edit)
    merged = arena.passes()
    assert {name: merged[name] for name in odd} == odd


def test_mixed_dtypes(arena: Arena) -> None:
    """Every tensor keeps its own dtype, and factors of two dtypes work together."""
    dtypes = ("F32", "F16", "BF16")

    def mix_base(tensors: Tensors) -> None:
        rng = np.random.default_rng(5)
        for number, (name, (_, shape, _)) in enumerate(list(tensors.items())):
            tensors[name] = encode(rng.standard_normal(shape) * 0.02, dtypes[number % 3])

    def mix_adapter(tensors: Tensors) -> None:
        rng = np.random.default_rng(6)
        for number, (name, (_, shape, _)) in enumerate(list(tensors.items())):
            tensors[name] = encode(rng.standard_normal(shape) * 0.05, dtypes[number % 3])

    arena.edit_model(mix_base)
    arena.edit_weights(mix_adapter)
    arena.passes()


def test_name_in_any_script(arena: Arena) -> None:
    """Names of untouched tensors may hold any Unicode."""
    odd: Tensors = {"模型.重み é": ("U8", (2,), b"ab"), "": ("U8", (1,), b"c")}
    arena.edit_model(lambda tensors: tensors.update(odd))
    merged = arena.passes()
    assert {name: merged[name] for name in odd} == odd


def test_many_tensors(arena: Arena) -> None:
    """Twenty thousand extra tensors cost no more than their bytes."""
    many: Tensors = {f"extra.{n}": ("U8", (1,), bytes([n % 256])) for n in range(20_000)}
    arena.edit_model(lambda tensors: tensors.update(many))
    arena.passes()
