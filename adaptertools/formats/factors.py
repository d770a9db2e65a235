"""Factors, and the changes of layout that can be made to one without touching its values.

Each returns a new `Factor` that is still read only when asked. Values are moved as raw bits, so the
result is exact in every dtype and torch is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from adaptertools.adapter.model import Factor
from adaptertools.errors import FormatError
from adaptertools.patterns.dims import Dims
from adaptertools.patterns.rows import Index
from adaptertools.store.dtypes import dtype_of, nbytes
from adaptertools.store.read import read_bits, read_bytes, read_flat
from adaptertools.store.slot import Slot
from adaptertools.store.tensor import as_tensor
from adaptertools.store.write import row_major

Bits = Any  # a numpy array of unsigned integers, as wide as the dtype


def stored_factor(
    slot: Slot, dims: Dims, axes: Sequence[str], known: Mapping[str, int] | None = None
) -> Factor:
    """Return a slot as a factor in canonical `axes`; raises `FormatError` (AT220, AT226)."""
    dtype = dtype_of(slot.dtype)
    if not (dtype.floating or dtype.block):
        raise FormatError("AT226", f"holds {slot.dtype}, not floating point numbers", key=slot.name)
    sizes = dims.solve(slot.shape, known)
    kernel = slot.shape[len(dims.axes) :] if dims.tail not in ("", "1") else ()
    shape = tuple(sizes[axis] for axis in axes) + tuple(kernel)
    return _factor(
        slot, shape, lambda: dims.to_canonical(_values(slot), axes, sizes).reshape(shape)
    )


def whole_factor(slot: Slot) -> Factor:
    """Return a factor whose canonical form is the stored tensor itself."""
    return _factor(slot, slot.shape, lambda: read_bits(slot))


def _values(slot: Slot) -> Bits:
    """Return the bits of a slot in its own shape; block-quantised ones are F32 from here on."""
    if dtype_of(slot.dtype).block is None:
        return read_bits(slot)
    from adaptertools.store.blocks import dequantise

    return dequantise(read_bytes(slot), slot.dtype, slot.shape).view("u4")


def _factor(slot: Slot, shape: tuple[int, ...], bits: Callable[[], Bits]) -> Factor:
    dtype = "F32" if dtype_of(slot.dtype).block else slot.dtype
    return Factor(
        slot.name,
        shape,
        dtype,
        slot.size,
        str(slot.file),
        lambda: as_tensor(bits(), dtype),
        lambda start, stop: read_flat(slot, start, stop),
        slot,
        bits,
    )


def reshaped(factor: Factor, shape: tuple[int, ...], change: Callable[[Bits], Bits]) -> Factor:
    """Return `factor` with its bits changed to another layout of `shape`."""

    def bits() -> Bits:
        return change(factor.bits())

    return replace(
        factor,
        shape=shape,
        size=nbytes(factor.dtype, prod(shape)),
        bits=bits,
        read=lambda: as_tensor(bits(), factor.dtype),
        read_flat=lambda start, stop: as_tensor(bits().reshape(-1)[start:stop], factor.dtype),
    )


def take(factor: Factor, axis: int, index: Index | int | None) -> Factor:
    """Return the positions `index` along `axis`; of an integer the axis goes, None changes nothing.

    Raises `FormatError` (AT220) where the axis is too short for them.
    """
    extent = factor.shape[axis]
    if index is None or (isinstance(index, slice) and index == slice(0, extent)):
        return factor
    last = index if isinstance(index, int) else _last(index)
    if last >= extent:
        raise FormatError(
            "AT220",
            f"shape {list(factor.shape)} has {extent} where the model has at least {last + 1}",
            key=factor.key,
            hint="is this the base the adapter was trained on?",
        )
    count = () if isinstance(index, int) else (_count(index),)
    shape = (*factor.shape[:axis], *count, *factor.shape[axis + 1 :])
    where = (slice(None),) * axis + (index,)
    return reshaped(factor, shape, lambda bits: bits[where])


def _last(index: Index) -> int:
    return index.stop - 1 if isinstance(index, slice) else int(index.max(initial=-1))


def _count(index: Index) -> int:
    return index.stop - index.start if isinstance(index, slice) else int(index.size)


def placed(factors: Sequence[tuple[Factor, Index]], axis: int, extent: int) -> Factor:
    """Return one factor of `extent` along `axis`, zero but for each factor at its positions."""
    first = factors[0][0]
    shape = (*first.shape[:axis], extent, *first.shape[axis + 1 :])

    def bits() -> Bits:
        import numpy as np

        values = [(factor.bits(), index) for factor, index in factors]
        whole = np.zeros(shape, values[0][0].dtype)
        for value, index in values:
            whole[(slice(None),) * axis + (index,)] = value
        return whole

    return reshaped(first, shape, lambda _: bits())


ONES = {"F64": 0x3FF << 52, "F32": 0x7F << 23, "F16": 0xF << 10, "BF16": 0x7F << 7}


def constant(factor: Factor, value: int) -> Factor:
    """Return a factor of the same shape that holds only zeros, or only ones."""

    def filled(_: Bits) -> Bits:
        import numpy as np

        word = f"u{dtype_of(factor.dtype).bits // 8}"
        return np.full(factor.shape, ONES[factor.dtype] if value else 0, word)

    return reshaped(factor, factor.shape, filled)


def among_ones(vector: Factor, spans: Sequence[slice], extent: int) -> Factor:
    """Return `extent` ones, with the values of `vector` one after another in `spans`."""

    def change(bits: Bits) -> Bits:
        import numpy as np

        whole, start = np.full(extent, ONES[vector.dtype], bits.dtype), 0
        for span in spans:
            stop = start + span.stop - span.start
            whole[span] = bits[start:stop]
            start = stop
        return whole

    return reshaped(vector, (extent,), change)


def padded(factor: Factor, axis: int, extent: int) -> Factor:
    """Return `factor` with zeros after it along `axis`, up to `extent`."""
    size = factor.shape[axis]
    return factor if size == extent else placed([(factor, slice(0, size))], axis, extent)


def concatenated(factors: Sequence[Factor], axis: int) -> Factor:
    """Return the factors one after another along `axis`."""
    if len(factors) == 1:
        return factors[0]
    spans, start = [], 0
    for factor in factors:
        stop = start + factor.shape[axis]
        spans.append((factor, slice(start, stop)))
        start = stop
    return placed(spans, axis, start)


def stacked(factors: Sequence[Factor]) -> Factor:
    """Return factors of one shape as one factor with a new first axis."""
    first = factors[0]

    def bits() -> Bits:
        import numpy as np

        return np.stack([factor.bits() for factor in factors])

    return reshaped(first, (len(factors), *first.shape), lambda _: bits())


def block_diagonal(factors: Sequence[Factor]) -> Factor:
    """Return matrices along the diagonal of a larger one that is zero elsewhere."""
    rows, columns = (sum(f.shape[axis] for f in factors) for axis in (0, 1))

    def bits() -> Bits:
        import numpy as np

        values = [factor.bits() for factor in factors]
        whole, row, column = np.zeros((rows, columns), values[0].dtype), 0, 0
        for value in values:
            whole[row : row + value.shape[0], column : column + value.shape[1]] = value
            row, column = row + value.shape[0], column + value.shape[1]
        return whole

    return reshaped(factors[0], (rows, columns), lambda _: bits())


def is_zero(factor: Factor) -> bool:
    """Say whether every value is zero, of either sign."""
    import numpy as np

    bits = factor.bits()
    sign = np.array(1 << (8 * bits.itemsize - 1), bits.dtype)
    return not bool((bits & ~sign).any())


def same(one: Factor, other: Factor) -> bool:
    """Say whether two factors hold the same values, bit for bit."""
    import numpy as np

    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if one.bits is other.bits:
        return True
    left, right = row_major(one.bits()), row_major(other.bits())
    return bool(np.array_equal(left, right))
