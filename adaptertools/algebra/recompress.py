"""A sum of low-rank changes as few singular triplets: exact first, then cut by a known error.

Q_u R_u = qr([c₁up₁ … ]), Q_d R_d = qr([down₁ᵀ … ]), then an SVD of R_u R_dᵀ, all in fp64:
O((m + n)R² + R³) for R = Σ rᵢ, and never a dense m×n. Cutting after k loses √Σ_{i>k} σᵢ² (Eckart
and Young).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from adaptertools.errors import AdapterError

if TYPE_CHECKING:
    from torch import Tensor

    from adaptertools.algebra.terms import Factors, Term

Split = Literal["balanced", "up", "down"]
RuleName = Literal["rank", "energy", "fro", "sum", "ratio", "sv_min", "max_error"]
# bounds of each rule's value, both within reach
BOUNDS: dict[RuleName, tuple[float, float]] = {
    "rank": (1, float("inf")),
    "energy": (0, 1),
    "fro": (0, 1),
    "sum": (0, 1),
    "ratio": (1, float("inf")),
    "sv_min": (0, float("inf")),
    "max_error": (0, 1),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """How many singular values to keep: the least k that qualifies, at most `most`, at least 1.

    rank: k ≤ value · energy: Σσ² ≥ value of all · fro: √energy ≥ value · sum: Σσ ≥ value of all ·
    ratio: σ > σ₁ / value · sv_min: σ > value · max_error: what is lost ≤ value · ‖ΔW‖ (Frobenius).
    """

    name: RuleName
    value: float
    most: int | None = None

    def __post_init__(self) -> None:
        low, high = BOUNDS[self.name]
        if not low <= self.value <= high:
            raise AdapterError("AT500", f"{self.name} must lie in {low:g} to {high:g}")
        if self.most is not None and self.most < 1:
            raise AdapterError("AT500", "a rank is at least 1")


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """Singular triplets u [m, k], sigma [k] (descending), v [n, k], and the energy they leave out.

    `energy` is ‖ΔW‖² of the whole, `discarded` the part of it that is not in the triplets, `parts`
    the sum of the norms of what was added up.
    """

    u: Tensor
    sigma: Tensor
    v: Tensor
    energy: float
    discarded: float = 0.0
    parts: float = 0.0

    @property
    def rank(self) -> int:
        """Return how many triplets there are; none where ΔW is zero."""
        return self.sigma.numel()

    @property
    def error(self) -> float:
        """Return ‖ΔW − u σ vᵀ‖ (Frobenius)."""
        return float(self.discarded**0.5)

    @property
    def relative_error(self) -> float:
        """Return the error over ‖ΔW‖; 0 where ΔW is zero."""
        return float((self.discarded / self.energy) ** 0.5) if self.energy else 0.0

    @property
    def cancellation(self) -> float:
        """Return Σ‖parts‖ / ‖ΔW‖, by which the parts' rounding errors grow; 1 for a zero ΔW."""
        return self.parts / float(self.energy**0.5) if self.energy else 1.0


def recompress(
    ups: Sequence[Tensor], downs: Sequence[Tensor], coefficients: Sequence[float] | None = None
) -> Spectrum:
    """Return the singular triplets of Σ cᵢ upᵢ downᵢ, computed in fp64.

    Singular values below (m + n + R) · eps · Σ‖cᵢ upᵢ downᵢ‖ are rounding noise and are left out,
    so that changes which cancel give rank zero.
    """
    given = [1.0] * len(ups) if coefficients is None else coefficients
    scaled = [up.double() * c for up, c in zip(ups, given, strict=True)]
    left = torch.linalg.qr(torch.cat(scaled, 1))
    right = torch.linalg.qr(torch.cat([down.double() for down in downs], 0).T)
    ranks = [up.shape[1] for up in ups]
    cores = zip(left.R.split(ranks, 1), right.R.split(ranks, 1), strict=True)
    parts = sum(float(torch.linalg.norm(one @ other.T)) for one, other in cores)
    u, sigma, v = small_svd(left.R @ right.R.T)
    size = left.Q.shape[0] + right.Q.shape[0] + sum(ranks)
    floor = size * torch.finfo(torch.float64).eps * parts
    kept = int((sigma > floor).sum())
    u, v = signed(left.Q @ u[:, :kept], right.Q @ v[:, :kept])
    return Spectrum(u, sigma[:kept], v, float(sigma[:kept].square().sum()), 0.0, parts)


def recompress_terms(terms: Sequence[Term]) -> Spectrum:
    """Return the singular triplets of Σ wᵢ upᵢ downᵢ."""
    return recompress([t.up for t in terms], [t.down for t in terms], [t.weight for t in terms])


def dense_spectrum(delta: Tensor) -> Spectrum:
    """Return the singular triplets of a dense change by a full SVD in fp64: slow, for audits."""
    u, sigma, v = small_svd(delta.double())
    floor = max(delta.shape) * torch.finfo(torch.float64).eps * (sigma[0] if sigma.numel() else 0)
    kept = int((sigma > floor).sum())
    u, v = signed(u[:, :kept], v[:, :kept])
    energy = float(sigma[:kept].square().sum())
    return Spectrum(u, sigma[:kept], v, energy, 0.0, energy**0.5)


def above_noise(spectrum: Spectrum, floor: float) -> Spectrum:
    """Return the triplets whose singular value is over `floor`; none where all is rounding."""
    kept = int((spectrum.sigma > floor).sum())
    u, sigma, v = spectrum.u[:, :kept], spectrum.sigma[:kept], spectrum.v[:, :kept]
    return replace(spectrum, u=u, sigma=sigma, v=v, energy=float(sigma.square().sum()))


def small_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return u, sigma, v with matrix = u diag(sigma) vᵀ.

    Where LAPACK's divide and conquer does not converge, the eigenvectors of [[0, M], [Mᵀ, 0]] are
    taken, whose eigenvalues are ±σ: the condition number is not squared.
    """
    if not bool(matrix.isfinite().all()):
        raise AdapterError("AT500", "a change holds values that are not finite")
    try:
        u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
    except RuntimeError as error:
        if "converge" not in str(error):
            raise
        return _by_eigenvectors(matrix)
    return u, sigma, vh.T


def _by_eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = matrix.shape
    both = matrix.new_zeros(rows + columns, rows + columns)
    both[:rows, rows:], both[rows:, :rows] = matrix, matrix.T
    values, vectors = torch.linalg.eigh(both)
    count = min(rows, columns)
    sigma = values[-count:].flip(0).clamp(min=0)
    chosen = vectors[:, -count:].flip(1) * 2**0.5
    # where σ = 0 the halves are not unit vectors; nothing keeps those triplets
    return chosen[:rows], sigma, chosen[rows:]


def signed(u: Tensor, v: Tensor) -> Factors:
    """Return u and v with signs such that the largest |u|, the first of equals, is positive."""
    if not u.numel():
        return u, v
    largest = u.abs().argmax(0, keepdim=True)
    sign = torch.where(u.gather(0, largest) < 0, -1.0, 1.0)
    return u * sign, v * sign


def choose_rank(sigma: Tensor, rule: Rule, missed: float = 0.0) -> int:
    """Return how many of `sigma` (descending) a rule keeps; 0 where there are none.

    `missed` is the energy of singular values that are not among `sigma`.
    """
    if not sigma.numel():
        return 0
    squares = sigma.square().cumsum(0)
    whole = float(squares[-1]) + missed
    value, name = rule.value, rule.name
    if name == "rank":
        kept = int(value)
    elif name in ("energy", "fro"):
        share = value if name == "energy" else value * value
        kept = 1 + int((squares < share * whole).sum())
    elif name == "sum":
        sums = sigma.cumsum(0)
        kept = 1 + int((sums < value * sums[-1]).sum())
    elif name == "ratio":
        kept = int((sigma > sigma[0] / value).sum())
    elif name == "sv_min":
        kept = int((sigma > value).sum())
    else:
        tails = sigma.square().flip(0).cumsum(0).flip(0) + missed
        kept = int((tails.sqrt() > value * whole**0.5).sum())
    return max(1, min(kept, sigma.numel(), rule.most or sigma.numel()))


def truncated(spectrum: Spectrum, rule: Rule | int) -> Spectrum:
    """Return the triplets that a rule, or a rank, keeps; the rest is counted as discarded."""
    if isinstance(rule, int):
        rule = Rule("rank", rule)
    sigma = spectrum.sigma
    kept = choose_rank(sigma, rule, spectrum.discarded)
    lost = spectrum.discarded + float(sigma[kept:].square().flip(0).sum())
    u, v = spectrum.u[:, :kept], spectrum.v[:, :kept]
    return replace(spectrum, u=u, sigma=sigma[:kept], v=v, discarded=lost)


def split(spectrum: Spectrum, how: Split = "balanced") -> Factors:
    """Return (up, down) with up @ down = u σ vᵀ; of rank zero where ΔW is zero.

    balanced: √σ on both, which needs the least range (ours, mergekit). up: all of σ there, `down`
    orthonormal (PEFT, kohya). down: all of σ there, `up` orthonormal.
    """
    shares = {"balanced": (0.5, 0.5), "up": (1.0, 0.0), "down": (0.0, 1.0)}[how]
    up, down = (spectrum.sigma**share for share in shares)
    return spectrum.u * up, (spectrum.v * down).T


def padded(factors: Factors, rank: int) -> Factors:
    """Return the same change with zeros up to `rank`: for a zero ΔW, or one rank for all."""
    up, down = factors
    missing = max(0, rank - up.shape[1])
    more_up, more_down = up.new_zeros(up.shape[0], missing), down.new_zeros(missing, down.shape[1])
    return torch.cat([up, more_up], 1), torch.cat([down, more_down], 0)


def share_ranks(spectra: Sequence[Spectrum], parameters: int) -> list[int]:
    """Return how many triplets each module keeps so that all together have `parameters` values.

    Triplets are taken by σ² / (m + n), most first, the earlier module on ties, while they fit.
    """
    offers = sorted(
        (-(float(value) ** 2) / (s.u.shape[0] + s.v.shape[0]), module, place)
        for module, s in enumerate(spectra)
        for place, value in enumerate(s.sigma)
    )
    kept, left = [0] * len(spectra), parameters
    for _, module, _ in offers:
        cost = spectra[module].u.shape[0] + spectra[module].v.shape[0]
        if cost > left:
            break
        kept[module] += 1
        left -= cost
    return kept
