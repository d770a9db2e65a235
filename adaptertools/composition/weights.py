"""Weights: one for each adapter, and others for layers and modules by patterns."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

from adaptertools.errors import AdapterError

_LAYERS = re.compile(r"(?:(.*)\.)?(layers|h|block|layer)\.(\d+)-(\d+)(?:\.(.*))?")


@dataclass(frozen=True, slots=True)
class ModuleWeight:
    """A factor for the modules that `pattern` matches: a glob, or `layers.0-7` for a range."""

    pattern: str
    factor: float

    def matches(self, module: str) -> bool:
        """Say whether it is for this module; a pattern without a star may match any whole part."""
        found = _LAYERS.fullmatch(self.pattern)
        if found is None:
            return fnmatch.fnmatchcase(module, self.pattern) or f".{self.pattern}." in f".{module}."
        head, word, first, last, rest = found.groups()
        inside = re.fullmatch(rf"(?:(.*)\.)?{word}\.(\d+)\.(.+)", module)
        if inside is None or not int(first) <= int(inside[2]) <= int(last):
            return False
        if head is not None and not f".{inside[1] or ''}".endswith(f".{head}"):
            return False
        return rest is None or fnmatch.fnmatchcase(inside[3], rest)


def parse_weights(text: str) -> tuple[ModuleWeight, ...]:
    """Return the factors of `layers.0-7=0.2,*.mlp.*=1.3`; raises `AdapterError` (AT500).

    >>> parse_weights("layers.0-1=0.5")[0].matches("model.layers.1.mlp.up_proj")
    True
    """
    found = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        pattern, mark, number = part.rpartition("=")
        try:
            factor = float(number)
        except ValueError:
            mark = ""
        if not mark or not pattern or factor != factor or abs(factor) == float("inf"):
            hint = "write it like layers.0-7=0.2,*.mlp.*=1.3"
            raise AdapterError("AT500", f"{part!r} is not PATTERN=NUMBER", hint=hint)
        found.append(ModuleWeight(pattern, factor))
    return tuple(found)


def factor_of(module: str, weights: Sequence[ModuleWeight]) -> float:
    """Return the product of the factors that are for a module."""
    total = 1.0
    for weight in weights:
        if weight.matches(module):
            total *= weight.factor
    return total


def check_used(weights: Sequence[ModuleWeight], modules: Sequence[str]) -> None:
    """Raise `AdapterError` (AT500) for a pattern that matches no module: a slip, not a wish."""
    for weight in weights:
        if not any(weight.matches(module) for module in modules):
            hint = f"the modules are called e.g. {modules[0]}" if modules else ""
            raise AdapterError("AT500", f"the pattern {weight.pattern!r} matches none", hint=hint)
