"""The inverse of each update that has one; what has none is refused by name, with the reason.

| update | its inverse | code |
|---|---|---|
| low rank, differences | the same, of weight -w | |
| (IA)³ vectors | 1 / (1 + w(l - 1)), at weight 1 | AT422 where that divides by zero |
| DoRA, full values, token rows | none: the base's own values are needed | AT420 |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adaptertools.adapter.model import Adapter, LowRank, Replace, Rows, Scaling, Update
from adaptertools.conversion.values import inverted
from adaptertools.errors import Finding, FindingsError, Where

UNDONE = "undone"
HINT = "the base is needed for that: start from it"


def undone(adapters: Sequence[tuple[Adapter, float]]) -> list[tuple[Adapter, float]]:
    """Return what takes `adapters` out again, the last one first; raises `FindingsError`."""
    findings = [
        f for adapter, _ in adapters for u in adapter.updates if (f := _refused(adapter, u))
    ]
    if findings:
        raise FindingsError(findings)
    return [one for adapter, weight in reversed(adapters) for one in _inverse(adapter, weight)]


def _inverse(adapter: Adapter, weight: float) -> list[tuple[Adapter, float]]:
    """Return one adapter of what is subtracted, or of what is divided by, or both."""
    vectors = tuple(_divided(u, weight) for u in adapter.updates if isinstance(u, Scaling))
    rest = tuple(u for u in adapter.updates if not isinstance(u, Scaling))
    method = f"{adapter.method}, {UNDONE}"
    found = [(replace(adapter, updates=rest, method=method), -weight)] if rest else []
    if vectors:
        found.append((replace(adapter, updates=vectors, method=method), 1.0))
    return found


def _divided(update: Scaling, weight: float) -> Scaling:
    return replace(update, vector=inverted(update.vector, update.scale, weight), scale=1.0)


def _refused(adapter: Adapter, update: Update) -> Finding | None:
    """Return why an update cannot be undone, None where it can."""
    if isinstance(update, LowRank) and update.magnitude is not None:
        why = "DoRA divided the weight by a norm that the merged weight no longer tells"
    elif isinstance(update, Replace):
        why = "its own values were replaced in full"
    elif isinstance(update, Rows):
        why = "some of its rows were replaced in full"
    else:
        return None
    return Finding("AT420", "error", why, Where(adapter.path, update.target.name), hint=HINT)
