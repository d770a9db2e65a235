"""A dense change as few singular triplets: a randomised range finder whose residual is checked.

Halko, Martinsson and Tropp, https://arxiv.org/abs/0909.4061: Q spans (D Dᵀ)⁴ D Ω, orthonormalised
at every half step; then an SVD of QᵀD. What Q misses, ‖D − Q QᵀD‖, is computed, not estimated, and
its width is doubled until the rule is met.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from adaptertools.algebra.blocks import blocks
from adaptertools.algebra.recompress import (
    Rule,
    Spectrum,
    choose_rank,
    dense_spectrum,
    signed,
    small_svd,
    truncated,
)

if TYPE_CHECKING:
    from torch import Tensor

    from adaptertools.algebra.randomness import Key

STEPS = 4
FIRST_GUESS = 64


def dense_to_low_rank(delta: Tensor, rule: Rule, key: Key, *, full: bool = False) -> Spectrum:
    """Return the triplets of a dense change that a rule keeps, and the exact energy discarded.

    `full` takes a full SVD, as do the rule `sum`, which needs every singular value, and a search
    that reaches half of them.
    """
    least = min(delta.shape)
    guess = min(int(rule.value) if rule.name == "rank" else FIRST_GUESS, rule.most or least)
    width = guess + max(16, guess // 4)
    while not full and rule.name != "sum" and 2 * width < least:
        found = _sketched(delta, width, key)
        if _is_met(found, rule, guess):
            return truncated(found, rule)
        guess, width = 2 * guess, 2 * width
    return truncated(dense_spectrum(delta), rule)


def _sketched(delta: Tensor, width: int, key: Key) -> Spectrum:
    sketch = torch.from_numpy(key.normals(delta.shape[1], width)).to(delta.dtype)
    basis = torch.linalg.qr(delta @ sketch).Q
    for _ in range(STEPS):
        other = torch.linalg.qr(delta.T @ basis).Q
        basis = torch.linalg.qr(delta @ other).Q
    basis = torch.linalg.qr(basis.double()).Q
    core = (basis.to(delta.dtype).T @ delta).double()
    energy = missed = 0.0
    for row, stop in blocks(0, *delta.shape):
        block = delta[row:stop].double()
        energy += float(block.square().sum())
        missed += float((block - basis[row:stop] @ core).square().sum())
    u, sigma, v = small_svd(core)
    floor = max(delta.shape) * torch.finfo(torch.float64).eps * energy**0.5
    kept = int((sigma > floor).sum())
    u, v = signed(basis @ u[:, :kept], v[:, :kept])
    return Spectrum(u, sigma[:kept], v, energy, missed, energy**0.5)


def _is_met(found: Spectrum, rule: Rule, guess: int) -> bool:
    """Say whether more triplets could change what the rule keeps.

    Only the first `guess` of them are accurate; those beyond serve them.
    """
    if rule.name == "rank" or found.rank <= guess or rule.most == guess:
        return True
    return choose_rank(found.sigma, rule, found.discarded) <= guess
