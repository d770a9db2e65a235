"""What a composition adds up: one adapter's low-rank change of one module. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    # up [m, r] and down [r, n]: a change up @ down
    Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """One adapter's change ΔW = up @ down of one module, and the user's weight on it.

    `up` [m, r] holds the adapter's scale already; `scale` says how much of it that is, which only
    PEFT's methods on factors ask. An adapter that lacks the module has rank zero.
    """

    up: Tensor
    down: Tensor
    weight: float = 1.0
    scale: float = 1.0

    @property
    def factors(self) -> Factors:
        """Return (up, down), without the weight."""
        return self.up, self.down
