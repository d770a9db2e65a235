"""Which parts of a fused tensor an adapter has: by its config, else by what the sizes allow."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from adaptertools.adapter.model import LowRank
from adaptertools.errors import FormatError
from adaptertools.formats.lookup import lookup


def configured_parts(rule: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the parts that a config switches on, by name; "" for a nameless one that is off.

    The rule of a spec: `flags` (part → boolean field), `list` (a field with one boolean a part), or
    `names` (a field that lists some of the names in `of`).
    """
    if "flags" in rule:
        flags = rule["flags"].items()
        return tuple(part for part, field in flags if lookup(config, field) is True)
    if "list" in rule:
        value = lookup(config, rule["list"])
        if isinstance(value, list) and all(isinstance(flag, bool) for flag in value):
            return tuple(str(n) if flag else "" for n, flag in enumerate(value))
    if "names" in rule:
        value = lookup(config, rule["names"])
        if isinstance(value, list):
            return tuple(name if name in value else "" for name in rule["of"])
    return ()


def enabled_parts(update: LowRank, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Return the parts of a fused tensor that an update has, in their order.

    Raises `FormatError`: AT220 where the rows fit no choice of parts, AT244 where they fit several
    and the config does not tell which.
    """
    rows = update.up.shape[0]
    fitting = [
        names
        for names in combinations(sizes, update.parts or 1)
        if sum(sizes[name] for name in names) == rows
    ]
    told = tuple(name for name in sizes if name in update.enabled)
    if told in fitting:
        return told
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        choices = " or ".join("+".join(names) for names in fitting)
        raise FormatError(
            "AT244",
            f"has {update.parts} parts, which could be {choices}",
            key=update.up.key,
            hint="put the trainer's own config beside the weights, or tell it by --set",
        )
    parts = ", ".join(f"{part} {size}" for part, size in sizes.items())
    raise FormatError(
        "AT220",
        f"shape {list(update.up.shape)} does not hold {update.parts} of the parts ({parts})",
        key=update.up.key,
        hint="is this the base the adapter was trained on?",
    )
