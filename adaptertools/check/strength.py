"""Predicates on ranks and scales: would the server multiply each update by what was trained?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from adaptertools.adapter.model import LowRank
from adaptertools.check.case import Case, Hit, hit, last, layer


def rank_over(case: Case) -> Iterator[Hit]:
    """A rank over `max`; `flag` and its `sizes` say which option would do, for ranks `upto`."""
    most, upto = case.params["max"], case.params.get("upto")
    sizes = sorted(case.params.get("sizes", ()))
    for update in case.low_rank:
        if update.rank > most and (upto is None or update.rank <= upto):
            fitting = next((size for size in sizes if size >= update.rank), None)
            flag = f"{case.params.get('flag')} {fitting or update.rank}"
            expected = flag if "flag" in case.params else f"at most {most}"
            yield hit(update, f"rank {update.rank}", expected)


def rank_not_allowed(case: Case) -> Iterator[Hit]:
    """A rank that is none of `ranks` and no multiple of `multiple_of`.

    Looked at are ranks from `low` to `high`, in adapters of at least `kinds` kinds of module.
    """
    ranks, step = case.params["ranks"], case.params.get("multiple_of")
    low, high = case.params.get("low", 1), case.params.get("high")
    kinds = {_kind(update) for update in case.low_rank}
    told = [str(rank) for rank in ranks] + ([f"a multiple of {step}"] if step else [])
    expected = " or ".join(told) if told else f"at most {low - 1}, or over {high}"
    for update in case.low_rank:
        if not rank_allowed(update.rank, case.params) and len(kinds) >= case.params.get("kinds", 1):
            yield hit(update, f"rank {update.rank}", expected)


def rank_allowed(rank: int, params: Mapping[str, Any]) -> bool:
    """Say whether the parameters of `rank_not_allowed` let a rank pass."""
    step, high = params.get("multiple_of"), params.get("high")
    inside = rank >= params.get("low", 1) and (high is None or rank <= high)
    return not inside or rank in params["ranks"] or bool(step and rank % step == 0)


def rank_pattern(case: Case) -> Iterator[Hit]:
    """A rank that is not the config's `r`."""
    rank = case.adapter.config.get("r")
    if isinstance(rank, int) and not isinstance(rank, bool):
        for update in case.low_rank:
            if update.rank != rank and update.gate is None:
                yield hit(update, f"rank {update.rank}", f"rank {rank}")


def mixed_rank(case: Case) -> Iterator[Hit]:
    """More than one rank in the adapter; with `each = "kind"`, within one kind of module."""
    groups: dict[str, list[LowRank]] = {}
    for update in case.low_rank:
        groups.setdefault(_kind(update) if case.params.get("each") else "", []).append(update)
    for group in groups.values():
        most = max(update.rank for update in group)
        for update in group:
            if update.rank != most:
                yield hit(update, f"rank {update.rank}", f"rank {most} like the others")


def mixed_scale(case: Case) -> Iterator[Hit]:
    """More than one scale in the adapter."""
    counts = Counter(update.scale for update in case.low_rank)
    usual = counts.most_common(1)[0][0] if counts else None
    for update in case.low_rank:
        if update.scale != usual:
            yield hit(update, f"scale {update.scale:g}", f"scale {usual:g} like the others")


def rslora(case: Case) -> Iterator[Hit]:
    """A scale of alpha/√r, which is not alpha/r."""
    if case.adapter.config.get("use_rslora") is not True:
        return
    for update in case.low_rank:
        if update.alpha and update.rank > 1:
            plain = update.alpha / update.rank
            yield hit(update, f"scale {plain:g}", f"scale {update.scale:g}")


def alpha_pattern(case: Case) -> Iterator[Hit]:
    """An alpha that is not the config's `lora_alpha`."""
    alpha = case.adapter.config.get("lora_alpha")
    if isinstance(alpha, int | float) and not isinstance(alpha, bool):
        for update in case.low_rank:
            if update.alpha is not None and update.alpha != alpha:
                yield hit(update, f"alpha {alpha:g}", f"alpha {update.alpha:g}")


def alpha_zero(case: Case) -> Iterator[Hit]:
    """An alpha of 0, which makes the update nothing."""
    for update in case.low_rank:
        if update.alpha == 0 and update.scale == 0:
            yield hit(update, "scale 1", "scale 0")


def _kind(update: LowRank) -> str:
    place = layer(update.target.module)
    return place[2] if place else last(update.target.module)
