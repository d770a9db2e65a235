"""An adapter against a family spec alone: names and sizes, where only a config.json is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptertools.adapter.families import detect_family
from adaptertools.adapter.model import Adapter, LowRank
from adaptertools.errors import Finding, Where


def family_findings(adapter: Adapter, config: Mapping[str, Any], file: str) -> list[Finding]:
    """Return AT401 for modules the family lacks, AT403 for sizes its config does not give."""
    family = detect_family(config)
    if family is None:
        kind = config.get("model_type")
        title = f"no family spec describes model_type {kind!r}, so nothing could be checked"
        return [Finding("AT309", "warning", title, Where(file, "model_type"))]
    sizes = family.sizes(config)
    found = []
    for update in adapter.updates:
        name = update.target.name
        expected = family.expected(name, sizes)
        if expected is None:
            hint = "is this the base the adapter was trained on?"
            title = f"{family.title} has no such module"
            found.append(Finding("AT401", "error", title, Where(file, name), hint=hint))
        elif isinstance(update, LowRank) and update.experts is None:
            have = (update.up.shape[0], update.down.shape[1])
            want = (expected.out or have[0], expected.in_ or have[1])
            if have != want:
                where, title = Where(file, name), "its size is not the one the config gives"
                told = [f"[out {out}, in {in_}]" for out, in_ in (want, have)]
                found.append(Finding("AT403", "error", title, where, told[0], told[1]))
    return found
