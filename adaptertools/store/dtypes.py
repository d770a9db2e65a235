"""One table of dtypes: safetensors name, bits, torch name, and the short words the CLI takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptertools.errors import AdapterError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class DType:
    """`name` as in a safetensors header, `bits` per element, `torch` attribute, CLI `word`.

    A ggml type that stores rows in blocks has `block` = (elements, bytes) instead of bits.
    """

    name: str
    bits: int
    torch: str
    word: str = ""
    floating: bool = False
    packed: bool = False
    block: tuple[int, int] | None = None


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

# ggml type number → (name, elements of a block, bytes of a block); from ggml.h and ggml-common.h
_BLOCKS = {
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
_PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
GGML_TYPES = {number: DTYPES[name] for number, name in _PLAIN.items()} | {
    number: DType(name, 0, "", packed=True, block=(elements, size))
    for number, (name, elements, size) in _BLOCKS.items()
}
GGML_NUMBERS = {dtype.name: number for number, dtype in GGML_TYPES.items()}


def dtype_name(word: str) -> str:
    """Return the safetensors name of a CLI word (`bf16`) or of a torch name (`bfloat16`)."""
    for table in (WORDS, {d.torch: d.name for d in _ALL}, {d.name.lower(): d.name for d in _ALL}):
        if word.lower() in table:
            return table[word.lower()]
    raise AdapterError("AT500", f"unknown dtype {word!r}", hint=f"use one of {', '.join(WORDS)}")


def dtype_of(name: str) -> DType:
    """Return the dtype of this name, of safetensors or of ggml; KeyError when there is none."""
    return DTYPES[name] if name in DTYPES else GGML_TYPES[GGML_NUMBERS[name]]


def storage_word(word: str) -> str:
    """Return what a --dtype of a conversion names: "auto", `Q8_0`, or a safetensors dtype."""
    if word == "auto":
        return word
    return "Q8_0" if word.lower() == "q8_0" else dtype_name(word)


def nbytes(dtype: str, elements: int) -> int:
    """Return the bytes that `elements` values of `dtype` take, rounded up for packed types."""
    found = dtype_of(dtype)
    if found.block is None:
        return (found.bits * elements + 7) // 8
    return -(-elements // found.block[0]) * found.block[1]


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of a safetensors dtype name."""
    import torch

    found: torch.dtype = getattr(torch, DTYPES[name].torch)
    return found
