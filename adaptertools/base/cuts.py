"""Adapter tensors cut and reordered along their axes, and still read piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adaptertools.adapter.model import Factor, Rows
from adaptertools.formats.factors import Bits, reshaped, take
from adaptertools.patterns.rows import Index

if TYPE_CHECKING:
    import torch


def turned(factor: Factor) -> Factor:
    """Return a matrix with its two axes swapped."""
    rows, columns = factor.shape
    return reshaped(factor, (columns, rows), lambda bits: bits.T)


def cut(factor: Factor, index: Sequence[Index]) -> Factor:
    """Return the positions `index` of each axis of a full value, read by ranges as it was.

    A vocabulary is never held whole: a range of the result is read from the rows that it needs.
    """
    if all(_is_whole(one, n) for one, n in zip(index, factor.shape, strict=False)):
        return factor
    taken = factor
    for axis, one in enumerate(index):
        taken = take(taken, axis, one)

    def flat(start: int, stop: int) -> torch.Tensor:
        return _flat(factor, taken.shape, index, start, stop)

    return replace(taken, read_flat=flat)


def _is_whole(index: Index, extent: int) -> bool:
    return isinstance(index, slice) and index == slice(0, extent)


def _flat(
    factor: Factor, shape: tuple[int, ...], index: Sequence[Index], start: int, stop: int
) -> torch.Tensor:
    """Return elements [start, stop) of the cut tensor, from the rows between which they lie."""
    import numpy as np
    import torch

    width = max(1, int(np.prod(shape[1:])))
    own = max(1, int(np.prod(factor.shape[1:])))
    first, last = start // width, -(-stop // width)
    rows = _positions(index[0], factor.shape[0])[first:last]
    if not rows.size:
        return factor.read_flat(0, 0)
    low, high = int(rows.min()), int(rows.max())
    block = factor.read_flat(low * own, (high + 1) * own).reshape(-1, own)
    block = block[torch.from_numpy(rows - low)]
    if len(index) > 1:
        block = block[:, torch.from_numpy(_positions(index[1], factor.shape[1]))]
    return block.reshape(-1)[start - first * width : stop - first * width]


def _positions(index: Index, extent: int) -> Any:
    import numpy as np

    return np.arange(extent)[index]


def cut_rows(update: Rows, rows: Index, columns: Index) -> Rows | None:
    """Return the trained rows that lie among the positions `rows`, under their numbers there."""
    import numpy as np

    positions = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
    where = {int(canonical): stored for stored, canonical in enumerate(positions)}
    here = [n for n, row in enumerate(update.index) if row in where]
    if not here:
        return None
    values = take(update.values, 1, columns)
    if len(here) < len(update.index):
        chosen = np.array(here)

        def pick(bits: Bits) -> Bits:
            return bits[chosen]

        values = reshaped(values, (len(here), *values.shape[1:]), pick)
    return replace(update, index=tuple(where[update.index[n]] for n in here), values=values)
