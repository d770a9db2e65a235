"""Random numbers by their place alone: the same for any threads, blocks, order and machine.

u(seed, adapter, tensor, i) = Philox4x64(key, counter i // 4)[i % 4] >> 11 · 2⁻⁵³, where key is the
first 16 bytes, little-endian, of SHA-256(scheme, seed, adapter, tensor; joined by NUL).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy import float32, floating
    from numpy.random import Philox
    from numpy.typing import NDArray

DARE = "adaptertools-dare-1"
SKETCH = "adaptertools-sketch-1"


@dataclass(frozen=True, slots=True)
class Key:
    """What random bits depend on: the seed, the tensor's name, and each adapter's own id.

    An id is of an adapter's content, not of its place in a list. `start` is the flat index of the
    first element that a method is given, where it is given only some rows of a tensor.
    """

    seed: int
    tensor: str
    adapters: tuple[str, ...]
    start: int = 0

    def uniforms(self, adapter: int, count: int, part: str = "") -> NDArray[floating[Any]]:
        """Return `count` numbers in [0, 1) for an adapter's elements from `start` on.

        `part` sets apart what the same adapter draws for the same tensor a second time.
        """
        first, skipped = divmod(self.start, 4)
        name = f"{self.tensor}\0{part}" if part else self.tensor
        bits = _philox(DARE, self.seed, self.adapters[adapter], name)
        raw = bits.advance(first).random_raw(skipped + count)
        return (raw[skipped:] >> 11) * 2.0**-53

    def normals(self, rows: int, columns: int) -> NDArray[float32]:
        """Return a Gaussian matrix for the tensor: the sketch of a randomised factorisation."""
        from numpy import float32
        from numpy.random import Generator

        bits = _philox(SKETCH, self.seed, "\0".join(sorted(self.adapters)), self.tensor)
        return Generator(bits).standard_normal((rows, columns), dtype=float32)


def _philox(scheme: str, seed: int, adapter: str, tensor: str) -> Philox:
    from numpy.random import Philox

    text = "\0".join((scheme, str(seed), adapter, tensor))
    return Philox(key=int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little"))
