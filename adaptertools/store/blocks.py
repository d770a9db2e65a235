"""Block quantisation of GGUF rows: Q8_0 in numpy, other types read by the `gguf` package.

A Q8_0 block holds 32 values in 34 bytes: a float16 scale d and 32 int8 q, each value is d·q
(ggml-quants.c, `quantize_row_q8_0_ref`). Codes: see `store/gguf.py`.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from adaptertools.errors import SourceError
from adaptertools.store.dtypes import GGML_NUMBERS, GGML_TYPES, nbytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_STEP = 1 << 15
_WORDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def quantise_q8_0(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return float32 [..., n] as Q8_0 blocks, uint8 [..., n/32·34]: the bits that ggml makes.

    Raises `SourceError`: AT146 when n is no multiple of 32, AT149 for NaN, infinity or a value that
    no float16 scale reaches.
    """
    import numpy as np

    if not values.ndim or values.shape[-1] % 32:
        raise SourceError("AT146", f"rows of {list(values.shape)} are no whole blocks of Q8_0")
    blocks = np.ascontiguousarray(values, np.float32).reshape(-1, 32)
    out = np.empty((len(blocks), 34), np.uint8)
    for start in range(0, len(blocks), _STEP):
        _quantise(blocks[start : start + _STEP], out[start : start + _STEP])
    return out.reshape(*values.shape[:-1], values.shape[-1] // 32 * 34)


def _quantise(blocks: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    import numpy as np

    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore"):
        stored = scale.astype("<f2")
        inverse = 1 / scale
    if not np.isfinite(stored).all():
        raise SourceError("AT149", "holds NaN, infinity or a value too large for Q8_0")
    inverse[~np.isfinite(inverse)] = 0
    scaled = blocks * inverse
    whole = np.trunc(scaled)
    whole += np.copysign(np.abs(scaled - whole) >= 0.5, scaled)
    out[:, :2] = stored.view(np.uint8)
    out[:, 2:] = whole.astype(np.int8).view(np.uint8)


def dequantise(
    raw: bytes | bytearray | memoryview | NDArray[Any], dtype: str, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Return the float32 values, of row-major `shape`, of a GGUF tensor's bytes (of any shape).

    F32 bytes are not copied. Raises `SourceError` (AT149): the bytes do not fit the shape, the type
    holds no such values, or it needs the `gguf` package, which is missing.
    """
    import numpy as np

    array = raw if isinstance(raw, np.ndarray) else np.frombuffer(raw, np.uint8)
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    found = GGML_TYPES.get(GGML_NUMBERS.get(dtype, -1))
    if found is None or not (found.floating or found.block):
        raise SourceError("AT149", f"{dtype} cannot be read as float32")
    broken = found.block and (not shape or shape[-1] % found.block[0])
    if broken or data.size != nbytes(dtype, prod(shape)):
        raise SourceError("AT149", f"{data.size} bytes are no {dtype} of shape {list(shape)}")
    if not data.size:
        return np.zeros(shape, np.float32)
    if dtype in _WORDS:
        return data.view(_WORDS[dtype]).astype(np.float32, copy=False).reshape(shape)
    if dtype == "BF16":
        return (data.view("<u2").astype("<u4") << 16).view(np.float32).reshape(shape)
    if dtype == "Q8_0":
        return _from_q8_0(data.reshape(-1, 34)).reshape(shape)
    return _by_package(data.reshape(-1, nbytes(dtype, shape[-1])), dtype).reshape(shape)


def _from_q8_0(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    import numpy as np

    values = blocks[:, 2:].view(np.int8).astype(np.float32)
    values *= blocks[:, :2].copy().view("<f2").astype(np.float32)
    return values


def _by_package(rows: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Dequantise rows of bytes with gguf-py, which is optional."""
    try:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError:
        why = f"the package gguf, which is needed to read {dtype}, is not installed"
        raise SourceError("AT149", why, hint="pip install 'adaptertools[gguf]'") from None
    try:
        values: NDArray[np.float32] = dequantize(rows, GGMLQuantizationType(GGML_NUMBERS[dtype]))
    except (NotImplementedError, ValueError):
        why = f"{dtype} cannot be read as float32 by the package gguf"
        raise SourceError("AT149", why, hint="pip install -U gguf") from None
    return values
