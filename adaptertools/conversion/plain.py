"""An adapter in the plainest form of a format: one rank, one scale, nothing without effect."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from adaptertools.adapter.model import LowRank, Update
from adaptertools.conversion.report import Change
from adaptertools.formats.factors import is_zero
from adaptertools.formats.spec import FormatSpec


def plain_spec(spec: FormatSpec) -> FormatSpec:
    """Return the format without ranks or alphas of single modules, under its usual rule alone."""
    limits = {**spec.limits, "rank_per_module": False, "alpha_per_module": False}
    return replace(spec, limits=limits, scale={**spec.scale, "case": []})


def one_rank_spec(spec: FormatSpec) -> FormatSpec:
    """Return the format with one rank for all modules."""
    return replace(spec, limits={**spec.limits, "rank_per_module": False})


def trimmed(updates: Iterable[Update]) -> tuple[list[Update], list[Change]]:
    """Leave out updates whose `up` is zero, and biases that are; reads these tensors."""
    kept: list[Update] = []
    dropped: list[str] = []
    for update in updates:
        if isinstance(update, LowRank):
            if update.bias is not None and is_zero(update.bias):
                dropped.append(f"{update.target.module}.bias")
                update = replace(update, bias=None)
            if update.magnitude is None and update.bias is None and is_zero(update.up):
                dropped.append(update.target.name)
                continue
        kept.append(update)
    if not dropped:
        return kept, []
    return kept, [Change("dropped", "they change nothing", tuple(dropped))]
