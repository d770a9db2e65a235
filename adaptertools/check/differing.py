"""`diff`: two adapters of any formats, or two checkpoints, target by target.

| code | condition |
|---|---|
| AT630 | one is an adapter, the other a checkpoint |
| AT631 | the two have names of different schemes, and nothing says how they map |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptertools.adapter.model import Adapter, Scaling, Update, factors
from adaptertools.base.engine import Interrupts, run_threads
from adaptertools.check.difference import Difference, DiffReport, total_of
from adaptertools.check.drifting import diff_checkpoints
from adaptertools.check.inspecting import AdapterInfo, BaseInfo, inspect
from adaptertools.check.pairing import pair
from adaptertools.errors import AdapterError, FindingsError, FormatError
from adaptertools.formats.model import UNKNOWN, read_model
from adaptertools.store.threads import available_cores

Ref = str | Path
Key = tuple[str, str, int]


def diff(
    a: Ref,
    b: Ref,
    *,
    base: Ref | None = None,
    tol: float | None = None,
    given: Mapping[str, Any] | None = None,
    specs: Sequence[Ref] = (),
    jobs: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DiffReport:
    """Compare two adapters, in any two formats, or two checkpoints.

    `base` tells names and row orders where a format has its own; `given` are config fields that a
    file does not tell. Relative differences up to `tol` count as the same, 0 asks for the same
    bits. By default that is the rounding of what is stored: for adapters of the wider of both
    dtypes, for checkpoints of fp32. Raises `AdapterError` (AT630, AT631) and what reading raises.
    """
    if tol is not None and not 0 <= tol < math.inf:
        raise AdapterError("AT500", f"the tolerance must be 0 or more, and finite, not {tol}")
    one, other = (_open(ref, base, given or {}, specs) for ref in (a, b))
    jobs = jobs or available_cores()
    if isinstance(one, BaseInfo) and isinstance(other, BaseInfo):
        items = diff_checkpoints(one.base, other.base, tol, jobs, progress)
        layouts = (one.base.layout.scheme, other.base.layout.scheme)
        return DiffReport("checkpoints", str(a), str(b), layouts, tol, items)
    if isinstance(one, BaseInfo) or isinstance(other, BaseInfo):
        adapter, checkpoint = (b, a) if isinstance(one, BaseInfo) else (a, b)
        raise AdapterError(
            "AT630",
            f"is a checkpoint, and {adapter} an adapter",
            file=checkpoint,
            hint="give two adapters or two checkpoints; verify tells whether a merge is in one",
        )
    same_name = (UNKNOWN if base is None else read_model(Path(base))).same_name
    items = diff_adapters(one.adapter, other.adapter, tol, jobs, same_name, progress)
    formats = (one.adapter.format, other.adapter.format)
    return DiffReport("adapters", str(a), str(b), formats, tol, items, total_of(items))


def _open(
    ref: Ref, base: Ref | None, given: Mapping[str, Any], specs: Sequence[Ref]
) -> AdapterInfo | BaseInfo:
    """Open one side; of `given` only what it does not tell itself, as the other may need it."""
    try:
        found = inspect(ref, base=base, specs=specs)
    except FormatError:
        if not given:
            raise
        return inspect(ref, base=base, specs=specs, given=given)
    if isinstance(found, BaseInfo):
        return found
    lacking = {k: v for k, v in given.items() if k not in found.adapter.config}
    return inspect(ref, base=base, specs=specs, given=lacking) if lacking else found


def diff_adapters(
    one: Adapter,
    other: Adapter,
    tol: float | None = None,
    jobs: int = 1,
    same_name: Callable[[str], str] = str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Difference, ...]:
    """Compare two opened adapters, in `jobs` threads; `same_name` says what a module is called."""
    _check(one, other)
    left, right = _by_target(one.updates, same_name), _by_target(other.updates, same_name)
    keys = list(dict.fromkeys((*left, *right)))
    sizes = {k: sum(_size(side.get(k)) for side in (left, right)) for k in keys}
    found: dict[Key, Difference] = {}
    total, done = sum(sizes.values()), 0

    def finish(key: Key, item: Difference) -> None:
        nonlocal done
        found[key] = item
        done += sizes[key]
        progress(done, total)

    with Interrupts() as interrupts:
        run_threads(
            keys,
            lambda key: pair(key[0], left.get(key), right.get(key), tol),
            finish,
            jobs,
            interrupts.check,
        )
    return tuple(found[key] for key in keys)


def _check(one: Adapter, other: Adapter) -> None:
    for adapter in (one, other):
        if adapter.errors:
            raise FindingsError(adapter.errors)
    if one.scheme != other.scheme:
        own = one if one.scheme != "hf" else other
        rest = other if own is one else one
        raise FormatError(
            "AT631",
            f"has the names of {own.format}, {rest.path} those of {rest.format}",
            file=own.path,
            hint="give --base: the base's folder, its config.json, or its GGUF file",
        )


def _by_target(updates: Sequence[Update], same_name: Callable[[str], str]) -> dict[Key, Update]:
    """Return updates by target, kind, and number among those of the same target and kind."""
    found: dict[Key, Update] = {}
    for update in updates:
        module = same_name(update.target.module)
        name = f"{module}.{update.target.param}" if module else update.target.param
        kind = f"scaling:{update.axis}" if isinstance(update, Scaling) else update.kind
        number = 0
        while (name, kind, number) in found:
            number += 1
        found[name, kind, number] = update
    return found


def _size(update: Update | None) -> int:
    return 0 if update is None else sum(factor.size for factor in factors(update))
