"""Adapters to the updates of one adapter: target by target, each kind by its own rule.

| kind | rule |
|---|---|
| low rank | Σ wᵢ ΔWᵢ exactly, or a method of `algebra/methods`, then a rank rule |
| (IA)³ vectors | 1 + Σ wᵢ(lᵢ − 1), or ∏ lᵢ^wᵢ |
| full values, rows, DoRA | kept where one adapter has them, or all the same; else refused |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from adaptertools.adapter.model import Adapter, Factor, LowRank, Replace, Rows, Scaling, Update
from adaptertools.composition.exact import Part, concatenate
from adaptertools.composition.reduce import Reduction, reduced
from adaptertools.composition.results import combined, multiplied
from adaptertools.composition.weights import ModuleWeight, check_used, factor_of
from adaptertools.conversion.report import refusal
from adaptertools.errors import Finding, FindingsError, Where
from adaptertools.formats.factors import concatenated, same

Weighted = tuple[int, Update, float]  # the adapter's place, its update, its weight here


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to compose: `reduction` is None for exact sums, `vectors` is "linear" or "product"."""

    reduction: Reduction | None = None
    vectors: str = "linear"
    weights: tuple[ModuleWeight, ...] = ()
    last_wins: bool = False
    jobs: int = 1


@dataclass(slots=True)
class Combined:
    """The updates of the composition, and what was left of each target's energy (by name)."""

    updates: list[Update] = field(default_factory=list)
    discarded: dict[str, float] = field(default_factory=dict)


def combine(adapters: Sequence[tuple[Adapter, float]], recipe: Recipe) -> Combined:
    """Compose adapters under canonical names; raises `FindingsError` with all that has no sum."""
    groups = _grouped(adapters, recipe)
    findings = [f for group in groups.values() if (f := _refused(group, recipe)) is not None]
    findings += _mixed(groups)
    if recipe.reduction and not findings and not any(kind == "low_rank" for _, kind in groups):
        where = Where(adapters[0][0].files[0])
        title = "has no low-rank update for a method or a rank rule"
        findings.append(Finding("AT279", "error", title, where, hint="leave these out"))
    if findings:
        raise FindingsError(findings)
    done = Combined()
    weights = [weight for _, weight in adapters]
    with ThreadPoolExecutor(recipe.jobs) as pool:
        joined = pool.map(lambda group: _joined(group, recipe, weights), groups.values())
        for update, lost in joined:
            done.updates.append(update)
            if lost is not None:
                done.discarded[update.target.name] = lost
    return done


def _grouped(
    adapters: Sequence[tuple[Adapter, float]], recipe: Recipe
) -> dict[tuple[str, str], list[Weighted]]:
    modules = [u.target.module for adapter, _ in adapters for u in adapter.updates]
    check_used(recipe.weights, modules)
    groups: dict[tuple[str, str], list[Weighted]] = {}
    for number, (adapter, weight) in enumerate(adapters):
        for update in adapter.updates:
            own = weight * factor_of(update.target.module, recipe.weights)
            key = (update.target.name, _sort(update))
            groups.setdefault(key, []).append((number, update, own))
    return groups


def _sort(update: Update) -> str:
    return f"{update.kind}:{update.axis}" if isinstance(update, Scaling) else update.kind


def _refused(group: Sequence[Weighted], recipe: Recipe) -> Finding | None:
    """Return why a group has no sum in the neutral form, None where it has one."""
    _, first, weight = group[0]
    updates = [update for _, update, _ in group]
    if isinstance(first, LowRank):
        return _unlike(updates) or _dora(group, recipe)
    if isinstance(first, Scaling):
        return _compat_vectors(first, recipe)
    if isinstance(first, Replace) and recipe.last_wins:
        return None
    if len(group) == 1 and weight == 1.0:
        return None
    values = [value for u in updates if (value := _value(u)) is not None]
    alike = all(same(values[0], value) for value in values[1:])
    indices = [n for u in updates if isinstance(u, Rows) for n in u.index]
    apart = bool(indices) and len(set(indices)) == len(indices)
    same_place = len({u.index for u in updates if isinstance(u, Rows)}) < 2
    if all(w == 1.0 for _, _, w in group) and (apart or (alike and same_place)):
        return None
    title = "full values of several adapters (or weighted ones) have no sum without the base"
    return refusal("AT270", title, updates[:1], "merge them into the base, in their order")


def _value(update: Update) -> Factor | None:
    if isinstance(update, Replace):
        return update.value
    return update.values if isinstance(update, Rows) else None


def _unlike(updates: Sequence[Update]) -> Finding | None:
    shapes = {
        (u.up.shape[:-1], u.down.shape[:-2], u.down.shape[-1])
        if u.experts is not None
        else (u.up.shape[0], u.down.shape[1:], None)
        for u in updates
        if isinstance(u, LowRank)
    }
    if len(shapes) > 1:
        title = "the adapters have different sizes here; are they for the same base?"
        return refusal("AT271", title, updates[:1])
    return None


def _compat_vectors(update: Scaling, recipe: Recipe) -> Finding | None:
    if recipe.reduction is None or not recipe.reduction.compat:
        return None
    title = "PEFT sums the vectors themselves, which scales the whole layer; that is not offered"
    return refusal("AT279", title, [update], "leave --compat out")


def _dora(group: Sequence[Weighted], recipe: Recipe) -> Finding | None:
    magnitudes = [u for _, u, _ in group if isinstance(u, LowRank) and u.magnitude is not None]
    alone = len(group) == 1 and group[0][2] == 1.0 and recipe.reduction is None
    if not magnitudes or alone:
        return None
    title = "DoRA normalises the weight it is on, so its sum with another change needs the base"
    return refusal("AT272", title, magnitudes, "merge each into the base instead")


def _mixed(groups: Iterable[tuple[str, str]]) -> list[Finding]:
    """Refuse a low-rank change and a vector on one weight: no format holds both."""
    kinds: dict[str, set[str]] = {}
    for name, kind in groups:
        kinds.setdefault(name, set()).add(kind.split(":")[0])
    both = [name for name, found in kinds.items() if {"low_rank", "scaling"} <= found]
    if not both:
        return []
    more = f" and {len(both) - 1} more" if len(both) > 1 else ""
    title = "LoRA and (IA)³ on one weight are a chain, which no adapter format holds"
    hint = "merge them into the base, in their order"
    return [Finding("AT273", "error", title, Where(None, both[0] + more), hint=hint)]


def _joined(
    group: Sequence[Weighted], recipe: Recipe, weights: Sequence[float]
) -> tuple[Update, float | None]:
    """Return a group's update, and the share of its energy that a rank rule left out."""
    first = group[0][1]
    if isinstance(first, LowRank) and first.magnitude is not None:
        return first, None
    if isinstance(first, LowRank):
        parts = {n: Part(u, w) for n, u, w in group if isinstance(u, LowRank)}
        if recipe.reduction is None:
            return concatenate(list(parts.values())), None
        factor = factor_of(first.target.module, recipe.weights)
        return reduced(parts, [w * factor for w in weights], recipe.reduction)
    if isinstance(first, Scaling):
        vectors = [(u.vector, w) for _, u, w in group if isinstance(u, Scaling)]
        if len(vectors) == 1 and vectors[0][1] == 1.0:
            return first, None
        if recipe.vectors == "product":
            return replace(first, vector=multiplied(vectors)), None
        rest = 1.0 - sum(weight for _, weight in vectors)
        return replace(first, vector=combined(vectors, rest)), None
    if isinstance(first, Rows) and len(group) > 1 and not _same_rows(group):
        return _union([u for _, u, _ in group if isinstance(u, Rows)]), None
    return group[-1][1], None


def _same_rows(group: Sequence[Weighted]) -> bool:
    return len({u.index for _, u, _ in group if isinstance(u, Rows)}) == 1


def _union(updates: Sequence[Rows]) -> Rows:
    """Return token rows that several adapters set, each some of them."""
    index = tuple(n for update in updates for n in update.index)
    return replace(updates[0], index=index, values=concatenated([u.values for u in updates], 0))
