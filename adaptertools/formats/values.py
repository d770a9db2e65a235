"""An adapter's values: NaN and Inf are errors, an update that is all zeros is a warning."""

from __future__ import annotations

from adaptertools.adapter.model import Adapter, LowRank, factors
from adaptertools.errors import Finding, Where
from adaptertools.store.scan import scan


def value_findings(adapter: Adapter) -> list[Finding]:
    """Read every tensor of an adapter once; returns AT216 (not finite) and AT217 (no effect)."""
    found = []
    for update in adapter.updates:
        for factor in factors(update):
            seen = scan(factor.source)
            where = Where(factor.file, factor.key)
            if not seen.finite:
                hint = "training diverged, or the file is damaged"
                found.append(Finding("AT216", "error", "holds NaN or Inf", where, hint=hint))
            elif seen.zero and isinstance(update, LowRank) and factor is update.up:
                title = "is all zeros, so this update changes nothing"
                found.append(Finding("AT217", "warning", title, where, hint="was it trained?"))
    return found
