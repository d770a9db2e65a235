"""One table of dtypes: safetensors name, bits, torch name, and the short words the CLI takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptertools.errors import AdapterError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class DType:
    """`name` as in a safetensors header, `bits` per element, `torch` attribute, CLI `word`."""

    name: str
    bits: int
    torch: str
    word: str = ""
    floating: bool = False
    packed: bool = False


_ALL = (
    DType("F64", 64, "float64", "f64", floating=True),
    DType("F32", 32, "float32", "f32", floating=True),
    DType("F16", 16, "float16", "f16", floating=True),
    DType("BF16", 16, "bfloat16", "bf16", floating=True),
    DType("F8_E4M3", 8, "float8_e4m3fn", packed=True),
    DType("F8_E5M2", 8, "float8_e5m2", packed=True),
    DType("F8_E4M3FNUZ", 8, "float8_e4m3fnuz", packed=True),
    DType("F8_E5M2FNUZ", 8, "float8_e5m2fnuz", packed=True),
    DType("F8_E8M0", 8, "float8_e8m0fnu", packed=True),
    DType("F6_E2M3", 6, "", packed=True),
    DType("F6_E3M2", 6, "", packed=True),
    DType("F4", 4, "float4_e2m1fn_x2", packed=True),
    DType("C64", 64, "complex64"),
    DType("I64", 64, "int64"),
    DType("U64", 64, "uint64"),
    DType("I32", 32, "int32"),
    DType("U32", 32, "uint32"),
    DType("I16", 16, "int16"),
    DType("U16", 16, "uint16"),
    DType("I8", 8, "int8"),
    DType("U8", 8, "uint8"),
    DType("BOOL", 8, "bool"),
)
DTYPES = {dtype.name: dtype for dtype in _ALL}
BY_TORCH = {dtype.torch: dtype for dtype in _ALL if dtype.torch}
WORDS = {dtype.word: dtype.name for dtype in _ALL if dtype.word}


def dtype_name(word: str) -> str:
    """Return the safetensors name of a CLI word (`bf16`) or of a torch name (`bfloat16`)."""
    for table in (WORDS, {d.torch: d.name for d in _ALL}, {d.name.lower(): d.name for d in _ALL}):
        if word.lower() in table:
            return table[word.lower()]
    raise AdapterError("AT500", f"unknown dtype {word!r}", hint=f"use one of {', '.join(WORDS)}")


def nbytes(dtype: str, elements: int) -> int:
    """Return the bytes that `elements` values of `dtype` take, rounded up for packed types."""
    return (DTYPES[dtype].bits * elements + 7) // 8


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of a safetensors dtype name."""
    import torch

    found: torch.dtype = getattr(torch, DTYPES[name].torch)
    return found
