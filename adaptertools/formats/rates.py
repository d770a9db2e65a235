"""Scale rules: from rank, alpha and their per-module patterns to one effective factor a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptertools.errors import FormatError
from adaptertools.formats.spec import FormatSpec
from adaptertools.patterns.bounded import match_table
from adaptertools.patterns.template import compile_template

RULES: dict[str, Callable[[float, int], float]] = {
    "alpha/rank": lambda alpha, rank: alpha / rank,
    # rank-stabilised LoRA: https://arxiv.org/abs/2312.03732
    "alpha/sqrt(rank)": lambda alpha, rank: alpha / math.sqrt(rank),
    # AdaLoRA in PEFT: an alpha that is not positive stands for the rank
    "alpha/(rank+1e-5)": lambda alpha, rank: (alpha if alpha > 0 else rank) / (rank + 1e-5),
}
LARGEST = 1e30
# PEFT's rule (utils/other.py, get_pattern_key): anchored at the end, at a dot boundary, first wins.
PATTERN_RULE = r"(.*\.)?({})$"


@dataclass(frozen=True, slots=True)
class Rate:
    """The scale of one target, with the terms it came from."""

    scale: float
    alpha: float
    configured_rank: int | None
    quirk: str | None = None


class Rates:
    """The scale rules of one adapter: `rate(module, rank)` for each of its modules."""

    def __init__(self, spec: FormatSpec, config: Mapping[str, Any], modules: Iterable[str]) -> None:
        self.spec = spec
        self.modules = list(dict.fromkeys(modules))
        scale = spec.scale
        rule = scale["rule"]
        self.rule = rule["then"] if config.get(rule.get("when")) is True else rule["default"]
        self.alpha = _Term(scale["alpha"], config, self.modules)
        self.rank = _Term(scale.get("rank", {}), config, self.modules)
        self.quirks = [(compile_template(q["module"]), q) for q in scale.get("quirk", ())]

    def rate(self, module: str, rank: int) -> Rate:
        """Return the effective scale for a target whose tensors have `rank`."""
        alpha = self.alpha.value(module)
        if alpha is None:
            raise FormatError("AT301", "no alpha is given", key=self.spec.scale["alpha"]["config"])
        scale = RULES[self.rule](alpha, rank)
        quirk = next((q for template, q in self.quirks if template.match(module)), None)
        configured = self.rank.value(module)
        return Rate(
            scale * (quirk["factor"] if quirk else 1.0),
            alpha,
            None if configured is None else int(configured),
            quirk["why"] if quirk else None,
        )


class _Term:
    """One term of a rule: a config field, a default, and a table of patterns over it."""

    def __init__(self, raw: Mapping[str, Any], config: Mapping[str, Any], modules: Sequence[str]):
        self.default = _number(config, raw["config"], raw.get("default")) if raw else None
        self.table: dict[str, float] = {}
        field = raw.get("patterns")
        patterns = config.get(field) if field else None
        self.unused: tuple[str, ...] = ()
        self.contested: tuple[str, ...] = ()
        if not patterns:
            return
        if not isinstance(patterns, dict):
            raise FormatError("AT301", "must be an object of pattern: number", key=field)
        rows = match_table(PATTERN_RULE, list(patterns), modules)
        contested = []
        for pattern, row in zip(patterns, rows, strict=True):
            value = _number(patterns, pattern, None, f"{field}.{pattern}")
            for module, hit in zip(modules, row, strict=True):
                if hit and value is not None and self.table.setdefault(module, value) != value:
                    contested.append(module)
        self.contested = tuple(contested)
        self.unused = tuple(p for p, row in zip(patterns, rows, strict=True) if not any(row))

    def value(self, module: str) -> float | None:
        return self.table.get(module, self.default)


def _number(
    table: Mapping[str, Any], field: str, default: float | None, shown: str = ""
) -> float | None:
    value = table.get(field, default)
    if value is None:
        return default
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not -LARGEST <= value <= LARGEST:
        told = str(value)[:40]
        raise FormatError("AT301", f"must be a finite number, not {told!r}", key=shown or field)
    return float(value)
