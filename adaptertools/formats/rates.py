"""Scale rules: from rank, alpha and their per-module patterns to one effective factor a target."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptertools.errors import FormatError
from adaptertools.formats.lookup import lookup
from adaptertools.formats.spec import FormatSpec
from adaptertools.patterns.bounded import match_table
from adaptertools.patterns.template import compile_template

RULES: dict[str, Callable[[float, int, float], float]] = {
    "alpha/rank": lambda alpha, rank, _: alpha / rank,
    # rank-stabilised LoRA: https://arxiv.org/abs/2312.03732
    "alpha/sqrt(rank)": lambda alpha, rank, _: alpha / math.sqrt(rank),
    # AdaLoRA in PEFT: an alpha that is not positive stands for the rank
    "alpha/(rank+1e-5)": lambda alpha, rank, _: (alpha if alpha > 0 else rank) / (rank + 1e-5),
    # llama.cpp, llama-adapter.h (get_scale): no alpha means no scale
    "alpha/rank unless 0": lambda alpha, rank, _: alpha / rank if alpha else 1.0,
    # mlx-lm, tuner/lora.py: the number itself; early in 2024 an alpha beside it
    "factor": lambda _, rank, factor: factor,
    "factor*alpha/rank": lambda alpha, rank, factor: factor * alpha / rank,
    "one": lambda _, rank, factor: 1.0,
}
# rule → the alpha that gives a scale at a rank; of the others the terms do not decide
SOLVED: dict[str, Callable[[float, int], float]] = {
    "alpha/rank": lambda scale, rank: scale * rank,
    "alpha/sqrt(rank)": lambda scale, rank: scale * math.sqrt(rank),
    "alpha/(rank+1e-5)": lambda scale, rank: scale * (rank + 1e-5),
    "alpha/rank unless 0": lambda scale, rank: scale * rank,
}
LARGEST = 1e30
# PEFT's rule (utils/other.py, get_pattern_key): anchored at the end, at a dot boundary, first wins.
PATTERN_RULE = r"(.*\.)?({})$"


@dataclass(frozen=True, slots=True)
class Rate:
    """The scale of one target, with the terms it came from."""

    scale: float
    alpha: float | None
    configured_rank: int | None
    quirk: str | None = None


class Rates:
    """The scale rules of one adapter: `rate(module, rank)` for each of its modules."""

    def __init__(self, spec: FormatSpec, config: Mapping[str, Any], modules: Iterable[str]) -> None:
        self.spec = spec
        self.modules = list(dict.fromkeys(modules))
        scale = spec.scale
        self.rule = _rule(scale, config)
        self.alpha = _Term(scale.get("alpha", {}), config, self.modules)
        self.rank = _Term(scale.get("rank", {}), config, self.modules)
        self.factor = _Term(scale.get("factor", {}), config, self.modules)
        self.quirks = [(compile_template(q["module"]), q) for q in scale.get("quirk", ())]

    def rate(self, module: str, rank: int) -> Rate:
        """Return the effective scale for a target whose tensors have `rank`."""
        alpha, factor = self.alpha.value(module), self.factor.value(module)
        if alpha is None and self.alpha.as_rank:
            alpha = float(rank)
        if "alpha" in self.rule and alpha is None:
            field = self.alpha.fields[0]
            hint = f"give it: --set {field}=NUMBER" if not self.spec.config else ""
            raise FormatError(
                "AT225", "its scale is unknown: no alpha is told", key=field, hint=hint
            )
        scale = RULES[self.rule](alpha or 0.0, rank, 1.0 if factor is None else factor)
        quirk = next((q for template, q in self.quirks if template.match(module)), None)
        configured = self.rank.value(module)
        return Rate(
            scale * (quirk["factor"] if quirk else 1.0),
            alpha if "alpha" in self.rule else None,
            None if configured is None else int(configured),
            quirk["why"] if quirk else None,
        )


class _Term:
    """One term of a rule: a config field, a default, and a table of patterns over it."""

    def __init__(self, raw: Mapping[str, Any], config: Mapping[str, Any], modules: Sequence[str]):
        names = raw.get("config", ())
        self.fields: tuple[str, ...] = (names,) if isinstance(names, str) else tuple(names)
        told = lookup(config, *self.fields)
        self.as_rank = raw.get("default") == "rank"
        default = None if self.as_rank else raw.get("default")
        self.default = _number(told, default, next(iter(self.fields), ""))
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
            value = _number(patterns[pattern], None, f"{field}.{pattern}")
            for module, hit in zip(modules, row, strict=True):
                if hit and value is not None and self.table.setdefault(module, value) != value:
                    contested.append(module)
        self.contested = tuple(contested)
        self.unused = tuple(p for p, row in zip(patterns, rows, strict=True) if not any(row))

    def value(self, module: str) -> float | None:
        return self.table.get(module, self.default)


def _rule(scale: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the rule of the first case that the config is, else the usual one."""
    for case in scale.get("case", ()):
        value = lookup(config, case["field"])
        if "equals" in case:
            hit = value == case["equals"] and type(value) is type(case["equals"])
        elif "before" in case:
            hit = version_numbers(str(value or "0")) < version_numbers(case["before"])
        else:
            hit = value is not None
        if hit:
            return str(case["rule"])
    return str(scale["rule"])


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the first three numbers of a version text, however it is dressed."""
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])


def _number(value: Any, default: float | None, shown: str) -> float | None:
    if value is None:
        return default
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not -LARGEST <= value <= LARGEST:
        told = str(value)[:40]
        raise FormatError("AT301", f"must be a finite number, not {told!r}", key=shown)
    return float(value)
