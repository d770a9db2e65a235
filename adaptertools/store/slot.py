"""A slot: where one tensor's bytes lie in a file, and what they are."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from adaptertools.store.dtypes import nbytes


@dataclass(frozen=True, slots=True)
class Slot:
    """One stored tensor: `size` bytes at `offset` of `file`; `strides` only when not contiguous.

    A tensor whose bytes lie elsewhere (a legacy pickle, a compressed member) has `held`, a function
    that returns them, and no range.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    size: int
    strides: tuple[int, ...] | None = None
    held: object | None = None

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def end(self) -> int:
        return self.offset + self.size

    @property
    def plain(self) -> bool:
        """Whether the bytes are the row-major tensor, so that a range is a block of rows."""
        return self.held is None and self.strides is None

    @property
    def bytes_needed(self) -> int:
        """Bytes that the tensor takes when written contiguously."""
        return nbytes(self.dtype, self.elements)
