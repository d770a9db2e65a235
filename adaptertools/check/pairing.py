"""One target of two adapters: how far apart what the two do to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptertools.adapter.model import (
    Dense,
    Factor,
    LowRank,
    Replace,
    Rows,
    Scaling,
    Update,
    factors,
)
from adaptertools.check.difference import Difference, Status
from adaptertools.conversion.compare import ROUNDING
from adaptertools.conversion.values import scaled
from adaptertools.formats.factors import same, take

if TYPE_CHECKING:
    from adaptertools.algebra.compare import Delta

Shape = tuple[int, ...]


def pair(name: str, one: Update | None, other: Update | None, tol: float | None) -> Difference:
    """Compare what two adapters do to `name`; one of them may leave it alone.

    Without `tol` the rounding of the wider dtype counts as the same.
    """
    from adaptertools.algebra.compare import one_thread

    one_thread()
    if one is None or other is None:
        return _alone(name, one, other, tol)
    limit = rounding(_coarsest(one), _coarsest(other)) if tol is None else tol
    frame = _Frame(name, _kind(one, other), limit, (_coarsest(one), _coarsest(other)))
    if isinstance(one, LowRank) and isinstance(other, LowRank):
        return _low_rank(frame, one, other)
    if isinstance(one, Rows) and isinstance(other, Rows) and one.index != other.index:
        if set(one.index) != set(other.index):
            return _other_rows(frame, one, other)
        return _values(frame, one.values, _reordered(other, one.index))
    return _values(frame, _value(one), _value(other))


def rounding(one: str, other: str) -> float:
    """Return what one rounding to the wider of two dtypes can make, as relative difference."""
    return min(ROUNDING.get(dtype, 0.0) for dtype in (one, other))


def _coarsest(update: Update) -> str:
    dtypes = [str(factor.source.dtype) for factor in factors(update)]
    return max(dtypes, key=lambda dtype: ROUNDING.get(dtype, 0.0))


def _kind(*updates: Update | None) -> str:
    """Return the kind of an update, "dora" where a side has magnitudes."""
    found = [update for update in updates if update is not None]
    if any(isinstance(u, LowRank) and u.magnitude is not None for u in found):
        return "dora"
    first = found[0]
    return f"scaling:{first.axis}" if isinstance(first, Scaling) else first.kind


@dataclass(frozen=True, slots=True)
class _Frame:
    """What every answer about one target begins with."""

    name: str
    kind: str
    tol: float
    dtypes: tuple[str | None, str | None]

    def status(self, *, exact: bool, error: float) -> Status:
        if exact:
            return "identical"
        return "same" if self.tol > 0 and error <= self.tol else "differs"


# --- only one has it -----------------------------------------------------------------------------


def _alone(name: str, one: Update | None, other: Update | None, tol: float | None) -> Difference:
    here = one if one is not None else other
    assert here is not None
    idle = tol != 0 and _is_nothing(here)
    status: Status = "void" if idle else "only-a" if other is None else "only-b"
    size = None
    if isinstance(here, LowRank):
        from adaptertools.algebra.compare import norm

        size = norm(change_of(here))
    return Difference(
        name,
        _kind(here),
        status,
        0.0 if idle else 1.0,
        tol or 0.0,
        (size, None) if other is None else (None, size),
        distance=size,
        dtypes=(None, _coarsest(here)) if one is None else (_coarsest(here), None),
        shapes=(None, _shape(here)) if one is None else (_shape(here), None),
        detail="changes nothing" if idle else "",
    )


def _is_nothing(update: Update) -> bool:
    from adaptertools.algebra.tally import is_constant

    if isinstance(update, LowRank):
        if update.magnitude is not None:
            return False
        idle = update.bias is None or is_constant(update.bias.read(), 0.0)
        return idle and any(is_constant(f.read(), 0.0) for f in (update.up, update.down))
    if isinstance(update, Scaling):
        return is_constant(_value(update).read(), 1.0)
    return isinstance(update, Dense) and is_constant(update.diff.read(), 0.0)


# --- low-rank changes ----------------------------------------------------------------------------


def change_of(update: LowRank) -> Delta:
    """Return a low-rank update's ΔW as factors in fp64, scale and gate in them."""
    from adaptertools.algebra.compare import delta

    gate = None if update.gate is None else update.gate.read()
    up, down = update.up.read(), update.down.read()
    return delta(up, down, update.scale, gate, stacked=update.experts is not None)


def _shape(update: Update) -> Shape:
    """Return the shape that an update acts on."""
    if not isinstance(update, LowRank):
        return next(factors(update)).shape
    lead = () if update.experts is None else (update.experts,)
    at = len(lead)
    return (*lead, update.up.shape[at], *update.down.shape[at + 1 :])


def _low_rank(frame: _Frame, one: LowRank, other: LowRank) -> Difference:
    shapes = (_shape(one), _shape(other))
    if shapes[0] != shapes[1]:
        return _reshaped(frame, *shapes)
    change = one.scale == other.scale and _all_same(one, other, "up", "down", "gate")
    exact = change and _all_same(one, other, "magnitude", "bias")
    from adaptertools.algebra.compare import liken, sign_conflict

    left = change_of(one)
    right = left if change else change_of(other)
    found = liken(left, right)
    parts = {"delta": 0.0 if change else found.relative, **_parts_beside(one, other)}
    error = max(parts.values())
    return Difference(
        frame.name,
        frame.kind,
        frame.status(exact=exact, error=error),
        error,
        frame.tol,
        (found.norms[0], found.norms[0]) if change else found.norms,
        1.0 if change and found.norms[0] else found.cosine,
        found.output,
        found.input,
        None if change else sign_conflict(left, right, frame.name),
        parts,
        0.0 if change else found.distance,
        found.inner,
        dtypes=frame.dtypes,
        shapes=shapes,
        detail=_told(one, other),
    )


def _told(one: LowRank, other: LowRank) -> str:
    """Return what differs in how the change is written."""
    found = [] if one.rank == other.rank else [f"rank {one.rank} and {other.rank}"]
    if (one.magnitude is None) != (other.magnitude is None):
        found.append(f"only {'B' if one.magnitude is None else 'A'} has DoRA magnitudes")
    return ", ".join(found)


def _all_same(one: LowRank, other: LowRank, *names: str) -> bool:
    """Say whether both have the same bits, or nothing, for each of these factors."""
    pairs = ((getattr(one, name), getattr(other, name)) for name in names)
    return all(x is y if x is None or y is None else same(x, y) for x, y in pairs)


def _parts_beside(one: LowRank, other: LowRank) -> dict[str, float]:
    """Return how far apart the magnitudes and the biases are, where a side has them."""
    pairs = {"magnitude": (one.magnitude, other.magnitude), "bias": (one.bias, other.bias)}
    return {name: _beside(*pair) for name, pair in pairs.items() if pair != (None, None)}


def _beside(one: Factor | None, other: Factor | None) -> float:
    if one is None or other is None:
        return 0.0 if one is other else 1.0
    if one.shape != other.shape:
        return 1.0
    from adaptertools.algebra.tally import Tally

    seen = Tally()
    seen.add(one.read(), other.read())
    return 0.0 if same(one, other) else seen.relative


# --- values --------------------------------------------------------------------------------------


def _value(update: Update) -> Factor:
    if isinstance(update, Scaling):
        return scaled(update.vector, update.scale)
    if isinstance(update, Rows):
        return update.values
    assert isinstance(update, Replace | Dense)
    return update.value if isinstance(update, Replace) else update.diff


def _values(frame: _Frame, one: Factor, other: Factor) -> Difference:
    """Compare values element by element."""
    if one.shape != other.shape:
        return _reshaped(frame, one.shape, other.shape)
    from adaptertools.algebra.tally import Tally

    exact, seen = same(one, other), Tally()
    seen.add(one.read(), other.read())
    error = 0.0 if exact else seen.relative
    return Difference(
        frame.name,
        frame.kind,
        frame.status(exact=exact, error=error),
        error,
        frame.tol,
        seen.norms,
        seen.cosine if frame.kind == "dense" else None,
        equal=seen.elements if exact else seen.equal,
        elements=seen.elements,
        largest=0.0 if exact else seen.largest,
        dtypes=frame.dtypes,
        shapes=(one.shape, other.shape),
    )


def _reshaped(frame: _Frame, one: Shape, other: Shape) -> Difference:
    return Difference(
        frame.name,
        frame.kind,
        "reshaped",
        tol=frame.tol,
        dtypes=frame.dtypes,
        shapes=(one, other),
        detail=f"{shape_text(one)} and {shape_text(other)}",
    )


def shape_text(shape: Shape) -> str:
    """Return a shape as people write it.

    >>> shape_text((16, 64))
    '16×64'
    """
    return "×".join(map(str, shape)) or "a number"


def _reordered(rows: Rows, index: Shape) -> Factor:
    import numpy as np

    place = {row: number for number, row in enumerate(rows.index)}
    return take(rows.values, 0, np.array([place[row] for row in index]))


def _other_rows(frame: _Frame, one: Rows, other: Rows) -> Difference:
    sides = [("A", set(one.index) - set(other.index)), ("B", set(other.index) - set(one.index))]
    told = [f"{len(rows)} rows only in {side}: {_some(rows)}" for side, rows in sides if rows]
    return Difference(
        frame.name,
        frame.kind,
        "reshaped",
        tol=frame.tol,
        dtypes=frame.dtypes,
        shapes=(one.values.shape, other.values.shape),
        detail="; ".join(told),
    )


def _some(rows: set[int]) -> str:
    return ", ".join(map(str, sorted(rows)[:3])) + (", …" if len(rows) > 3 else "")
