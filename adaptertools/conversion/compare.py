"""Do two adapters mean the same change? Proved per target, without a dense matrix.

Equal factors and scales are equal changes. Else ‖s₁B₁A₁ − s₂B₂A₂‖ is taken from the triangles of
two thin QR decompositions, [s₁B₁, −s₂B₂] = Q R and [A₁; A₂]ᵀ = P S: the norm is that of R Sᵀ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptertools.adapter.model import Factor, LowRank, Replace, Rows, Scaling, Update
from adaptertools.conversion.values import scaled
from adaptertools.errors import FormatError
from adaptertools.formats.factors import is_zero, same
from adaptertools.formats.model import UNKNOWN
from adaptertools.formats.opening import open_adapter

if TYPE_CHECKING:
    from adaptertools.conversion.prepare import ConversionPlan

# the largest relative difference that one rounding to the stored dtype can make, and alpha as F32
ROUNDING = {"F64": 1e-12, "F32": 2e-7, "F16": 1e-3, "BF16": 8e-3, "Q8_0": 2e-2}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether one target is the same in both; `error` is relative to the change's own size."""

    target: str
    exact: bool
    error: float


def compare(
    ours: Sequence[Update],
    theirs: Sequence[Update],
    jobs: int = 1,
    same_name: Callable[[str], str] = str,
) -> list[Comparison]:
    """Compare updates by target (as `same_name` calls it), in `jobs` threads.

    One that only one side has counts as its whole size (error 1), unless it changes nothing.
    """
    left, right = _by_target(ours, same_name), _by_target(theirs, same_name)
    keys = list(dict.fromkeys((*left, *right)))
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda k: _pair(k[0], left.get(k), right.get(k)), keys))


def check_equal(
    plan: ConversionPlan,
    path: Path,
    dtype: str,
    jobs: int,
    specs: Sequence[Path] = (),
) -> list[Comparison]:
    """Read back what was written and compare; raises `FormatError` (AT258) where it differs."""
    model = plan.model
    known = None if model is UNKNOWN else model
    back = open_adapter(path, specs=specs, model=known, given=plan.told)
    if back.errors:
        raise FormatError("AT258", f"what was written cannot be read back: {back.errors[0]}")
    found = compare(plan.updates, back.updates, jobs, model.same_name)
    dtypes = {dtype, *(tensor.dtype for tensor in plan.tensors)}
    limit = max(ROUNDING.get(name, 0.0) for name in dtypes)
    wrong = [one for one in found if not one.error <= limit]
    if wrong:
        raise FormatError(
            "AT258",
            f"what was written differs from the source by {wrong[0].error:.2g}",
            key=wrong[0].target,
            hint="nothing was kept; please report this",
        )
    return found


def _pair(name: str, one: Update | None, other: Update | None) -> Comparison:
    if one is not None and other is not None:
        return _compare(name, one, other)
    here = one or other
    assert here is not None
    return Comparison(name, False, 0.0 if _is_nothing(here) else 1.0)


def _by_target(
    updates: Sequence[Update], same_name: Callable[[str], str]
) -> dict[tuple[str, str], Update]:
    names = ((same_name(u.target.module), u) for u in updates)
    return {(f"{module}.{u.target.param}", u.kind): u for module, u in names}


def _compare(name: str, one: Update, other: Update) -> Comparison:
    if isinstance(one, LowRank) and isinstance(other, LowRank):
        return _low_rank(name, one, other)
    left, right = _value(one), _value(other)
    if same(left, right):
        return Comparison(name, True, 0.0)
    return Comparison(name, False, _apart(left, right))


def _value(update: Update) -> Factor:
    if isinstance(update, Scaling):
        return scaled(update.vector, update.scale)
    if isinstance(update, Replace):
        return update.value
    assert isinstance(update, Rows)
    return update.values


def _low_rank(name: str, one: LowRank, other: LowRank) -> Comparison:
    pairs = [(one.magnitude, other.magnitude), (one.bias, other.bias)]
    beside = max(_beside(left, right) for left, right in pairs)
    equal = one.gate is None and other.gate is None and one.scale == other.scale
    if equal and same(one.down, other.down) and same(one.up, other.up):
        return Comparison(name, beside == 0.0, beside)
    if one.experts is not None or len(one.down.shape) > 2:
        error = max(_apart(one.down, other.down), _apart(one.up, other.up))
        return Comparison(name, False, max(error, beside))
    from adaptertools.algebra.delta import delta_distance

    error = delta_distance(_product(one), _product(other))
    return Comparison(name, False, max(error, beside))


def _beside(one: Factor | None, other: Factor | None) -> float:
    if one is None or other is None:
        return 0.0 if one is other else 1.0
    return 0.0 if same(one, other) else _apart(one, other)


def _product(update: LowRank) -> tuple[Any, Any]:
    """Return up, with scale and gate in it, and down, both F64."""
    up, down = update.up.read().double() * update.scale, update.down.read().double()
    if update.gate is not None:
        up = up * update.gate.read().double().flatten()
    return up, down


def _apart(one: Factor, other: Factor) -> float:
    from adaptertools.algebra.delta import distance

    return distance(one.read().double(), other.read().double())


def _is_nothing(update: Update) -> bool:
    """Say whether an update changes nothing: a zero `up`, or a vector of ones."""
    if isinstance(update, LowRank):
        return update.magnitude is None and is_zero(update.up)
    return isinstance(update, Scaling) and bool((update.vector.read() == 1).all())
