"""A tensor that is about to be written: its place in a header, and its values when asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptertools.store.dtypes import nbytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file to be written; `dtype` is a safetensors name, `shape` is row-major.

    `load()` is called once, when the tensor's turn comes, and returns the raw bits of the values:
    unsigned integers as wide as the dtype (`uint16` for BF16), of shape `shape`, of any strides.
    For block-quantised types it is `uint8`, the last axis counted in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], NDArray[np.unsignedinteger[Any]]]

    @property
    def size(self) -> int:
        """Bytes that the tensor takes in the file."""
        size = 1
        for extent in self.shape:
            size *= extent
        return nbytes(self.dtype, size)
