"""One scale rule for a whole file: each target's effective scale kept by alpha, else folded in.

The scale of a target is one number. Where the format has an alpha for each module, alphas say it;
else the commonest terms are written and the remainder is multiplied into `up`, rounded once.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adaptertools.adapter.model import LowRank, Update
from adaptertools.conversion.report import Change
from adaptertools.conversion.values import scaled
from adaptertools.formats.factors import padded
from adaptertools.formats.rates import RULES, SOLVED
from adaptertools.formats.spec import FormatSpec


@dataclass(frozen=True, slots=True)
class Terms:
    """What the file's config says of scale and rank: the commonest values, and the rule.

    `tolerance` is how far a scale may be from the one they mean: the rounding of a stored alpha.
    """

    rule: str = "one"
    rank: int = 0
    alpha: float = 0.0
    factor: float = 1.0
    tolerance: float = 1e-15


def fit_ranks(
    updates: list[Update], spec: FormatSpec, least: int = 0
) -> tuple[list[Update], list[Change]]:
    """Pad every update to the largest rank, and to `least`, where the format has one for all."""
    low_rank = [u for u in updates if isinstance(u, LowRank)]
    if spec.limits.get("rank_per_module") or not low_rank:
        return updates, []
    rank = max(least, *(u.rank for u in low_rank))
    if all(u.rank == rank for u in low_rank):
        return updates, []
    short = tuple(u.target.name for u in low_rank if u.rank < rank)
    change = Change("padded", f"ranks padded with zeros to {rank}", short)
    return [pad_rank(u, rank) if isinstance(u, LowRank) else u for u in updates], [change]


def pad_rank(update: LowRank, rank: int) -> LowRank:
    """Return the same update at a larger rank: zero rows of down, zero columns of up."""
    down_axis = len(update.down.shape) - 2 if update.experts or update.parts else 0
    up_axis = len(update.up.shape) - 1 if update.experts is None else 2
    return replace(
        update,
        down=padded(update.down, down_axis, rank),
        up=padded(update.up, up_axis, rank),
        rank=rank,
        alpha=update.alpha if update.rank == rank else None,
    )


def fit_scales(updates: list[Update], spec: FormatSpec) -> tuple[list[Update], Terms, list[Change]]:
    """Return the updates with the scales that the format will read, and the terms to write."""
    low_rank = [u for u in updates if isinstance(u, LowRank)]
    if not low_rank:
        return updates, Terms(), []
    terms = _terms(low_rank, spec)
    if spec.limits.get("alpha_per_module"):
        done = [_with_alpha(u, terms.rule) if isinstance(u, LowRank) else u for u in updates]
        alphas = Counter(u.alpha for u in done if isinstance(u, LowRank) and u.rank == terms.rank)
        return done, replace(terms, alpha=alphas.most_common(1)[0][0] or 0.0), []
    kept = [_with_terms(u, terms) if isinstance(u, LowRank) else u for u in updates]
    folds = [u.target.name for u in low_rank if not _agrees(_read(u, terms), terms, u.scale)]
    change = [Change("folded", "scales multiplied into up", tuple(folds))] if folds else []
    return kept, terms, change


def _read(update: LowRank, terms: Terms) -> float:
    return RULES[terms.rule](terms.alpha, update.rank, terms.factor)


def _agrees(scale: float, terms: Terms, wanted: float) -> bool:
    return math.isclose(scale, wanted, rel_tol=terms.tolerance)


def _with_terms(update: LowRank, terms: Terms) -> LowRank:
    """Return the update with the scale that `terms` mean, the rest of it multiplied into up."""
    scale = _read(update, terms)
    if _agrees(scale, terms, update.scale):
        return replace(update, scale=scale, alpha=terms.alpha)
    return replace(
        update, up=scaled(update.up, update.scale / scale), scale=scale, alpha=terms.alpha
    )


def _with_alpha(update: LowRank, rule: str) -> LowRank:
    alpha = _alpha(update, rule)
    scale = RULES[rule](alpha, update.rank, 1.0)
    if scale == update.scale:
        return replace(update, alpha=alpha)
    rest = 1.0 if math.isclose(scale, update.scale, rel_tol=1e-15) else update.scale / scale
    return replace(update, up=scaled(update.up, rest), scale=scale, alpha=alpha)


def _alpha(update: LowRank, rule: str) -> float:
    """Return the alpha that gives the scale: the adapter's own, a round one, or any."""
    exact: float = SOLVED[rule](update.scale, update.rank)
    near = (exact, math.nextafter(exact, math.inf), math.nextafter(exact, -math.inf))
    own = () if update.alpha is None else (update.alpha,)
    for alpha in (*own, float(round(exact)), *near):
        if RULES[rule](alpha, update.rank, 1.0) == update.scale:
            return float(alpha)
    return float(exact)


def _terms(updates: Sequence[LowRank], spec: FormatSpec) -> Terms:
    """Return the commonest terms; updates of scale 0 do not count, their `up` becomes zero."""
    scale, rule = spec.scale, _rule(updates, spec)
    rank = Counter(u.rank for u in updates).most_common(1)[0][0]
    counted = [u for u in updates if u.scale] or [replace(updates[0], scale=1.0, alpha=None)]
    if rule == "factor":
        return Terms(rule, rank, 0.0, Counter(u.scale for u in counted).most_common(1)[0][0])
    if rule not in SOLVED:
        return Terms(rule, rank)
    if scale["alpha"].get("fixed"):
        return Terms(rule, rank, float(scale["alpha"]["default"]))
    alpha = Counter(_alpha(u, rule) for u in counted).most_common(1)[0][0]
    if scale["alpha"].get("dtype") != "F32":
        return Terms(rule, rank, alpha)
    single = struct.unpack("<f", struct.pack("<f", alpha))[0] if abs(alpha) < 3e38 else 0.0
    return Terms(rule, rank, single or float(rank), tolerance=6e-8)


def _rule(updates: Sequence[LowRank], spec: FormatSpec) -> str:
    """Return the usual rule, or another that a flag switches on and that alone keeps the alphas."""
    usual = str(spec.scale["rule"])
    for rule in (usual, *(c["rule"] for c in spec.scale.get("case", ()) if c.get("equals"))):
        if rule in SOLVED and all(
            u.alpha is not None and RULES[rule](u.alpha, u.rank, 1.0) == u.scale for u in updates
        ):
            return str(rule)
    return usual
