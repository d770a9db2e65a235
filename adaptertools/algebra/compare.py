"""Low-rank changes measured and compared from their factors: never the dense ΔW, all in fp64.

Thin QR of the factors side by side, [B₁, B₂] = Q [R₁, R₂] and [A₁; A₂]ᵀ = P [S₁, S₂], makes
Δᵢ = Q Xᵢ Pᵀ with small cores Xᵢ = Rᵢ Sᵢᵀ. Q and P are orthonormal, so norms, inner product,
distance, singular values and angles of the Δᵢ are those of the Xᵢ. Gram matrices give the same with
squared rounding; here ‖Δ₁ − Δ₂‖ is as accurate as the factors, also where the two nearly cancel.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

EPS = float(torch.finfo(torch.float64).eps)
DENSE = 1 << 18  # elements of ΔW up to which signs are compared in all rows
LEAST_ROWS = 16
SAMPLE = "adaptertools-rows-1"


@dataclass(frozen=True, slots=True)
class Delta:
    """ΔW = left @ right of each expert, F64: left [experts, out, R], right [experts, R, in]."""

    left: torch.Tensor
    right: torch.Tensor


def delta(
    up: torch.Tensor,
    down: torch.Tensor,
    scale: float,
    gate: torch.Tensor | None = None,
    *,
    stacked: bool = False,
) -> Delta:
    """Return the change of up [*experts, out, R] and down [*experts, R, in, *kernel].

    `stacked` says that there are experts; the kernel is flattened; `gate` [R] multiplies the ranks.
    """
    left = up.double() * scale
    if gate is not None:
        left = left * gate.double().flatten()
    right = down.double().flatten(2 if stacked else 1)
    return Delta(left, right) if stacked else Delta(left[None], right[None])


def one_thread() -> None:
    """Compute in the calling thread alone: the work is spread over targets."""
    torch.set_num_threads(1)


@dataclass(frozen=True, slots=True)
class Core:
    """X of a change, in orthonormal coordinates, and what rounding makes of its small values."""

    matrix: torch.Tensor
    noise: torch.Tensor

    @property
    def norm(self) -> float:
        return float(torch.linalg.vector_norm(self.matrix))


def cores(deltas: Sequence[Delta]) -> list[Core]:
    """Return the cores of changes of one shape, in coordinates that they share."""
    lefts = torch.linalg.qr(torch.cat([d.left for d in deltas], 2), mode="r").R
    rights = torch.linalg.qr(torch.cat([d.right.mT for d in deltas], 2), mode="r").R
    ranks = [d.left.shape[2] for d in deltas]
    longest = max(deltas[0].left.shape[1], deltas[0].right.shape[2])
    found = []
    for r, s in zip(lefts.split(ranks, 2), rights.split(ranks, 2), strict=True):
        size = torch.linalg.matrix_norm(r) * torch.linalg.matrix_norm(s)
        found.append(Core(r @ s.mT, size * (EPS * longest)))
    return found


def norm(change: Delta) -> float:
    """Return ‖ΔW‖ (Frobenius); infinite where it holds NaN or infinity."""
    found = cores([change])[0].norm if _finite(change) else math.inf
    return found if math.isfinite(found) else math.inf


def _finite(change: Delta) -> bool:
    return bool(change.left.isfinite().all()) and bool(change.right.isfinite().all())


# --- two changes ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two subspaces: the cosines of their principal angles, and `share` = Σcos² / the smaller rank.

    Random subspaces of these ranks share `chance`. Experts are averaged.
    """

    share: float
    chance: float
    cosines: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Likeness:
    """Two changes: their norms, inner product and distance, and how their two sides overlap."""

    norms: tuple[float, float]
    inner: float
    distance: float
    output: Overlap | None
    input: Overlap | None

    @property
    def cosine(self) -> float | None:
        """The cosine between them; None where one is zero."""
        size = self.norms[0] * self.norms[1]
        return max(-1.0, min(1.0, self.inner / size)) if size else None

    @property
    def relative(self) -> float:
        return relative(self.distance, self.norms)


def relative(gap: float, norms: tuple[float, float]) -> float:
    """Return a distance in units of the larger norm: 0 for two zeros, infinite where not finite."""
    size = max(norms)
    if not (math.isfinite(gap) and math.isfinite(size)):
        return math.inf
    return gap / size if size else float(gap != 0.0)


def liken(one: Delta, other: Delta) -> Likeness:
    """Compare two changes of one shape."""
    if not (_finite(one) and _finite(other)):
        return Likeness((norm(one), norm(other)), math.nan, math.inf, None, None)
    x, y = cores([one, other])
    inner = float((x.matrix * y.matrix).sum())
    gap = float(torch.linalg.vector_norm(x.matrix - y.matrix))
    out, into = _overlaps(x, y, one.left.shape[1], one.right.shape[2])
    return Likeness((x.norm, y.norm), inner, gap, out, into)


def _overlaps(x: Core, y: Core, out: int, into: int) -> tuple[Overlap | None, Overlap | None]:
    """Return how the column spaces, and the row spaces, of two cores overlap."""
    bases = [(*torch.linalg.svd(c.matrix, full_matrices=False), c.noise) for c in (x, y)]
    (u, s, vh, noise), (p, t, qh, noise_y) = bases
    found: tuple[list[Overlap], list[Overlap]] = ([], [])
    for e in range(len(u)):
        i, j = int((s[e] > noise[e]).sum()), int((t[e] > noise_y[e]).sum())
        if i and j:
            found[0].append(_overlap(u[e, :, :i], p[e, :, :j], out))
            found[1].append(_overlap(vh[e, :i].T, qh[e, :j].T, into))
    return _mean(found[0]), _mean(found[1])


def _overlap(one: torch.Tensor, other: torch.Tensor, extent: int) -> Overlap:
    cosines = torch.linalg.svdvals(one.T @ other).clamp(max=1.0)
    ranks = (one.shape[1], other.shape[1])
    share = float(cosines.square().sum()) / min(ranks)
    return Overlap(share, min(1.0, max(ranks) / extent), tuple(cosines.tolist()))


def _mean(found: Sequence[Overlap]) -> Overlap | None:
    if len(found) < 2:
        return found[0] if found else None
    count = len(found)
    return Overlap(sum(o.share for o in found) / count, sum(o.chance for o in found) / count, ())


# --- signs ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Conflict:
    """Elements on which two changes have opposite signs, and their part of Σ|ab| (`weighted`).

    `share` is of all `rows`, or estimated ± `margin` (95 %) from `sampled` ones.
    """

    share: float
    weighted: float
    rows: int
    sampled: int
    margin: float


def sign_conflict(one: Delta, other: Delta, name: str) -> Conflict | None:
    """Return how far the signs of two changes of one shape conflict; None where one is zero.

    Of a large tensor some rows are looked at, the same ones for the same name and size always.
    """
    experts, rows, columns = one.left.shape[0], one.left.shape[1], one.right.shape[2]
    wanted = max(LEAST_ROWS, DENSE // max(1, columns * experts))
    chosen = sample_rows(name, rows, wanted)
    shares, signed, total = [], 0.0, 0.0
    step = max(1, 2 * DENSE // max(1, columns))
    for expert in range(experts):
        for start in range(0, len(chosen), step):
            index = chosen[start : start + step]
            x, y = (d.left[expert, index] @ d.right[expert] for d in (one, other))
            product = x.mul_(y)
            shares.append((product < 0).sum(1).double() / columns)
            signed += float(product.sum())
            total += float(product.abs_().sum())
    if not total or not math.isfinite(total):
        return None
    share = torch.cat(shares)
    return Conflict(
        float(share.mean()),
        max(0.0, (1 - signed / total) / 2),
        rows,
        len(chosen),
        _margin(share, rows * experts),
    )


def _margin(share: torch.Tensor, rows: int) -> float:
    """Return the half-width of the 95 % interval of a mean over sampled rows."""
    count = len(share)
    left_out = 1 - count / rows
    return 1.96 * float(share.std()) * math.sqrt(left_out / count) if left_out > 0 else 0.0


def sample_rows(name: str, rows: int, wanted: int) -> list[int]:
    """Return `wanted` of the rows, one from each of as many equal runs, by a counter-based draw.

    They depend on the arguments alone: Philox, keyed by the SHA-256 of name and size.
    """
    if wanted >= rows:
        return list(range(rows))
    digest = hashlib.sha256("\0".join((SAMPLE, name, str(rows))).encode()).digest()
    drawn = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(wanted)
    edges = [number * rows // wanted for number in range(wanted + 1)]
    return [
        first + int(draw) % (last - first)
        for first, last, draw in zip(edges, edges[1:], drawn, strict=False)
    ]


# --- one change ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The singular values of a ΔW above rounding, largest first, and what they say of its rank."""

    values: tuple[float, ...]

    @property
    def norm(self) -> float:
        return math.sqrt(math.fsum(v * v for v in self.values))

    @property
    def top(self) -> float:
        return self.values[0] if self.values else 0.0

    @property
    def stable_rank(self) -> float:
        """‖ΔW‖² / σ₁²."""
        return (self.norm / self.top) ** 2 if self.top else 0.0

    @property
    def entropy_rank(self) -> float:
        """exp(−Σ p ln p), p the share of each direction in the energy."""
        energy = self.norm**2
        shares = [v * v / energy for v in self.values] if energy else []
        return math.exp(-sum(p * math.log(p) for p in shares if p)) if shares else 0.0

    def energy_rank(self, share: float) -> int:
        """Return the smallest rank that keeps this share of Σσ²; 0 where ΔW is zero."""
        parts = list(accumulate((v / self.top) ** 2 for v in self.values))
        return next((k for k, e in enumerate(parts, 1) if e >= share * parts[-1] * (1 - 1e-12)), 0)


def spectra(change: Delta) -> list[Spectrum] | None:
    """Return the spectrum of each expert's change; None where a value is not finite."""
    if not _finite(change):
        return None
    (core,) = cores([change])
    values = torch.linalg.svdvals(core.matrix)
    return [
        Spectrum(tuple(row[row > noise].tolist()))
        for row, noise in zip(values, core.noise, strict=True)
    ]
