"""Which format is this? Scores with evidence, from config fields, file names and keys matched."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adaptertools import schemas
from adaptertools.errors import FormatError
from adaptertools.formats.lookup import lookup
from adaptertools.formats.spec import FormatSpec


@dataclass(frozen=True, slots=True)
class Guess:
    """One candidate: `score` (config 4, keys up to 3, file name 1), and why."""

    spec: FormatSpec
    score: float
    evidence: tuple[str, ...]


def score(spec: FormatSpec, file: str, config: Mapping[str, Any], keys: Iterable[str]) -> Guess:
    """Score one spec against a weight file's name, its config and its keys."""
    points, evidence = 0.0, list[str]()
    for name, accepted in spec.detect_config.items():
        value = lookup(config, name)
        if value in accepted:
            points += 4
            evidence.append(f"{spec.config or 'metadata'}: {name}={value}")
        elif value is not None:
            points -= 8
    if any(fnmatch.fnmatchcase(file, pattern) for pattern in spec.weights):
        points += 1
        evidence.append(f"file name {file}")
    keys = list(keys)
    if spec.detect_keys:
        named = sum(any(fnmatch.fnmatchcase(k, p) for p in spec.detect_keys) for k in keys[:64])
        points += named / len(keys[:64]) if named else -8
    if any(fnmatch.fnmatchcase(k, p) for k in keys[:64] for p in spec.detect_without):
        points -= 8
    roles = [role for _, update, role in spec.roles() if not update.fallback]
    templates = [template for role in roles for template in role.templates]
    matched = sum(any(t.match(key) for t in templates) for key in keys[:64])
    if matched:
        points += 3 * matched / len(keys[:64])
        evidence.append(f"{matched} of {len(keys[:64])} keys fit its templates")
    return Guess(spec, points, tuple(evidence))


def detect(
    specs: Iterable[FormatSpec],
    path: str,
    file: str,
    configs: Mapping[str, Mapping[str, Any]],
    keys: Iterable[str],
) -> Guess:
    """Return the best guess; raises `FormatError`: AT201 unknown, AT202 a tie, AT203 refused.

    `configs` are the configs that the formats would read, by their ids.
    """
    config = next((c for c in configs.values() if "peft_type" in c), {})
    _refuse_by_name(path, config)
    keys = list(keys)
    guesses = sorted((score(s, file, configs[s.id], keys) for s in specs), key=lambda g: -g.score)
    config = config or next((c for c in configs.values() if c), {})
    best = guesses[0] if guesses else None
    if best is None or best.score < 2:
        raise FormatError("AT201", _unknown(config, keys), file=path, hint=_unknown_hint(config))
    ties = [g for g in guesses if g.score == best.score]
    if len(ties) > 1:
        told = "; ".join(f"{g.spec.id} ({', '.join(g.evidence)})" for g in ties)
        raise FormatError("AT202", f"could be more than one format: {told}", file=path)
    return best


def _unknown(config: Mapping[str, Any], keys: list[str]) -> str:
    kind = config.get("peft_type")
    if kind is not None:
        return f"peft_type {str(kind)[:40]!r} is not one that adaptertools knows"
    if "peft_type" in config:
        return "peft_type is null, and the keys fit no known format"
    sample = f"keys such as {keys[0]!r}" if keys else "no keys"
    return f"not an adapter in a known format: {sample}"


def _unknown_hint(config: Mapping[str, Any]) -> str:
    if not config:
        return "a PEFT adapter needs its adapter_config.json beside the weights"
    return "see 'adaptertools formats' for what is supported"


def _refuse_by_name(path: str, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    for group in schemas.table("peft_types").values():
        if kind in group["types"]:
            raise FormatError(
                "AT203",
                f"peft_type {kind}: {group['why']}",
                file=path,
                hint="load it with PEFT at run time instead of merging",
            )
