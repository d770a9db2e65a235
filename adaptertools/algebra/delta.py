"""How far two low-rank changes are apart, without forming either."""

from __future__ import annotations

import torch


def delta_norm(up: torch.Tensor, down: torch.Tensor) -> float:
    """Return ‖up @ down‖ in the Frobenius norm: up = Q R and downᵀ = P S make it ‖R Sᵀ‖."""
    r = torch.linalg.qr(up, mode="r").R
    s = torch.linalg.qr(down.T, mode="r").R
    return float(torch.linalg.norm(r @ s.T))


def delta_distance(
    one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]
) -> float:
    """Return ‖up₁ down₁ − up₂ down₂‖ / ‖up₁ down₁‖ for F64 (up, down); 1 where shapes differ."""
    if one[0].shape[0] != other[0].shape[0] or one[1].shape[1] != other[1].shape[1]:
        return 1.0
    gap = delta_norm(torch.cat([one[0], -other[0]], 1), torch.cat([one[1], other[1]], 0))
    return relative(gap, delta_norm(*one))


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return ‖one − other‖ / ‖one‖; 1 where the shapes differ."""
    if one.shape != other.shape:
        return 1.0
    return relative(float((one - other).norm()), float(one.norm()))


def relative(gap: float, size: float) -> float:
    """Return gap / size; where the size is zero, 0 for no gap and else 1."""
    return gap / size if size else float(gap != 0.0)
