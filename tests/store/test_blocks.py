"""Blocks of GGUF rows: Q8_0 to the bit as gguf-py makes it, and every type read to float32."""

from __future__ import annotations

import sys
import tracemalloc

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from adaptertools.errors import SourceError
from adaptertools.store.blocks import dequantise, quantise_q8_0
from adaptertools.store.dtypes import GGML_TYPES, nbytes

Q8_0 = GGMLQuantizationType.Q8_0
# what gguf-py itself cannot dequantise
UNREADABLE = {"Q8_1", "Q8_K", "Q1_0"}
BLOCKS = sorted(d.name for d in GGML_TYPES.values() if d.block and d.name not in UNREADABLE)
# below this the inverse of a scale overflows, and what gguf-py's int8 then holds is the compiler's
SMALL = 1e-36
NUMBERS = st.floats(-8e6, 8e6, width=32).map(lambda x: x if abs(x) > SMALL else 0.0)


def random(*shape: int) -> np.ndarray:
    """Return float32 of many magnitudes."""
    source = np.random.default_rng(3)
    scale = 10.0 ** source.integers(-8, 4, (*shape[:-1], 1))
    return (source.standard_normal(shape) * scale).astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.integers(0, 3), st.integers(0, 3)).flatmap(
        lambda s: arrays.arrays(np.float32, (s[0], s[1] * 32), elements=NUMBERS)
    )
)
def test_q8_0_is_ggml_s_to_the_bit(values: np.ndarray) -> None:
    """The bytes are those of gguf-py, which are those of ggml's reference."""
    mine = quantise_q8_0(values)
    assert mine.dtype == np.uint8
    assert mine.shape == (values.shape[0], values.shape[1] // 32 * 34)
    if values.size:
        np.testing.assert_array_equal(mine, gguf.quantize(values, Q8_0))


def test_q8_0_ties_and_edges() -> None:
    """Halves go away from zero, the largest value is ±127, a block of zeros is zeros."""
    values = np.zeros((3, 32), np.float32)
    values[0, :8] = [127, 0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, -0.0]
    values[1, 3] = -1e-6
    mine = quantise_q8_0(values)
    assert mine[0, :2].tobytes() == np.float16(1).tobytes()
    assert mine[0, 2:10].view(np.int8).tolist() == [127, 1, -1, 2, 3, -3, 0, 0]
    assert mine[1, 2:].view(np.int8).tolist() == [0, 0, 0, -127] + [0] * 28
    assert not mine[2].any()
    np.testing.assert_array_equal(mine, gguf.quantize(values, Q8_0))


def test_q8_0_of_large_and_strided_arrays() -> None:
    """More than one step of blocks, three axes, any strides."""
    values = random(33, 1024, 64)
    assert values.size // 32 > 2 * (1 << 15)
    np.testing.assert_array_equal(quantise_q8_0(values), gguf.quantize(values, Q8_0))
    turned = values[0].T
    expected = gguf.quantize(np.ascontiguousarray(turned), Q8_0)
    np.testing.assert_array_equal(quantise_q8_0(turned), expected)


def test_q8_0_of_next_to_nothing_is_zero() -> None:
    """Where the inverse of the scale overflows, the block is zeros, without a warning."""
    values = np.full((1, 32), 1e-40, np.float32)
    assert not quantise_q8_0(values).any()


def test_q8_0_takes_little_memory() -> None:
    """Besides its result it takes a few megabytes, however large the tensor."""
    values = np.ones((4096, 4096), np.float32)
    tracemalloc.start()
    try:
        size = quantise_q8_0(values).nbytes
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size < peak < size + (24 << 20)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e7, -3e38])
def test_q8_0_refuses_what_it_cannot_hold(value: float) -> None:
    """No NaN, no infinity, nothing that a float16 scale does not reach; just below is kept."""
    values = np.zeros((2, 64), np.float32)
    values[1, 40] = 8.3e6
    assert np.isfinite(dequantise(quantise_q8_0(values), "Q8_0", (2, 64))).all()
    values[1, 40] = value
    with pytest.raises(SourceError) as caught:
        quantise_q8_0(values)
    assert caught.value.code == "AT149"


@pytest.mark.parametrize("shape", [(), (31,), (32, 33), (2, 3, 16)])
def test_q8_0_needs_whole_blocks(shape: tuple[int, ...]) -> None:
    """A row is a multiple of 32."""
    with pytest.raises(SourceError) as caught:
        quantise_q8_0(np.zeros(shape, np.float32))
    assert caught.value.code == "AT146"


@pytest.mark.parametrize("shape", [(512,), (3, 256), (2, 3, 512)])
@pytest.mark.parametrize("dtype", BLOCKS)
def test_every_block_type_is_read(dtype: str, shape: tuple[int, ...]) -> None:
    """Random bytes give the values of gguf-py, in the shape that was asked for."""
    raw = np.random.default_rng(1).bytes(nbytes(dtype, int(np.prod(shape))))
    rows = np.frombuffer(raw, np.uint8).reshape(-1, nbytes(dtype, shape[-1]))
    with np.errstate(all="ignore"):
        mine = dequantise(raw, dtype, shape)
        expected = gguf.dequantize(rows, GGMLQuantizationType[dtype])
    assert mine.dtype == np.float32
    assert mine.shape == shape
    assert np.count_nonzero(np.nan_to_num(mine)) > mine.size // 8
    np.testing.assert_array_equal(mine.ravel(), expected.ravel())


def test_known_blocks() -> None:
    """A block of Q8_0 and one of Q4_1 by hand: d·q, and d·q + m with the high halves last."""
    d, m = np.float16(0.5).tobytes(), np.float16(-1).tobytes()
    eight = d + bytes([0, 1, 255, 127, 128] + [0] * 27)
    assert dequantise(eight, "Q8_0", (32,))[:5].tolist() == [0, 0.5, -0.5, 63.5, -64]
    four = dequantise(d + m + bytes([0x21] + [0xF0] * 15), "Q4_1", (1, 32))
    assert four[0, [0, 1, 16, 17]].tolist() == [-0.5, -1, 0, 6.5]


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_plain_floats_are_read(dtype: str) -> None:
    """The plain types need no package, and give the values they hold."""
    values = np.array([[1.5, -2], [0, 0.125], [-(2.0**-20), 65280]], np.float32)
    words = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
    bits = values.view(np.uint32) >> 16
    raw = values.astype(words[dtype]) if dtype in words else bits.astype(np.uint16)
    mine = dequantise(raw.tobytes(), dtype, (3, 2))
    assert mine.dtype == np.float32
    np.testing.assert_array_equal(mine, values)
    np.testing.assert_array_equal(dequantise(raw, dtype, (3, 2)), values)


def test_bytes_of_any_class() -> None:
    """Bytes, bytearrays, views and arrays of any shape and strides are the same."""
    data = quantise_q8_0(random(4, 64))
    expected = dequantise(data, "Q8_0", (4, 64))
    raw = data.tobytes()
    doubled = np.repeat(data, 2, axis=1)[:, ::2]
    for same in (raw, bytearray(raw), memoryview(raw), data.reshape(-1), doubled):
        np.testing.assert_array_equal(dequantise(same, "Q8_0", (4, 64)), expected)


@pytest.mark.parametrize(
    ("size", "dtype", "shape"),
    [
        (33, "Q8_0", (32,)),
        (35, "Q8_0", (32,)),
        (0, "Q8_0", (32,)),
        (34, "Q8_0", (2, 16)),
        (34, "Q8_0", ()),
        (4, "F32", (2,)),
        (6, "BF16", (2,)),
        (4, "I32", (1,)),
        (1, "I8", (1,)),
        (1, "F8_E4M3", (1,)),
        (1, "nonsense", (1,)),
        (40, "Q8_1", (32,)),
        (292, "Q8_K", (256,)),
        (18, "Q1_0", (128,)),
    ],
)
def test_what_cannot_be_read(size: int, dtype: str, shape: tuple[int, ...]) -> None:
    """Wrong sizes, broken rows and types without values are refused."""
    with pytest.raises(SourceError) as caught:
        dequantise(bytes(size), dtype, shape)
    assert caught.value.code == "AT149"


@pytest.mark.parametrize("dtype", ["Q8_0", "Q4_K", "F32", "BF16"])
@pytest.mark.parametrize("shape", [(0,), (0, 256), (3, 0)])
def test_nothing_is_nothing(dtype: str, shape: tuple[int, ...]) -> None:
    """Empty tensors keep their shape."""
    assert dequantise(b"", dtype, shape).shape == shape


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gguf, Q8_0 is read still, and another type says what to install."""
    monkeypatch.setitem(sys.modules, "gguf.constants", None)
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    assert not dequantise(bytes(34), "Q8_0", (32,)).any()
    with pytest.raises(SourceError) as caught:
        dequantise(bytes(18), "Q4_0", (32,))
    assert caught.value.code == "AT149"
    assert "adaptertools[gguf]" in caught.value.hint
