"""‖ΔW‖ from the factors' Gram matrices: never the dense ΔW."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch


def low_rank_norm(
    pieces: Iterable[tuple[int, float, torch.Tensor, torch.Tensor]],
) -> float:
    """Return ‖Σ sᵢ LᵢRᵢ‖ (Frobenius) for (first row, s, left [rows, r], right [r, columns]).

    Pieces with the same first row add up; others lie on different rows. ‖LR‖² = tr(LᵀL · RRᵀ), in
    fp64.
    """
    stacks: dict[int, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for first, scale, left, right in pieces:
        lefts, rights = stacks.setdefault(first, ([], []))
        lefts.append(left.double() * scale)
        rights.append(right.double())
    total = 0.0
    for lefts, rights in stacks.values():
        left, right = torch.cat(lefts, 1), torch.cat(rights, 0)
        total += float(((left.T @ left) * (right @ right.T)).sum())
    return math.sqrt(max(total, 0.0))
