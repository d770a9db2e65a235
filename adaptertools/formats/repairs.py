"""Exports of other tools that are known to be wrong: told, and put right where that is certain.

What is known lies in `schemas/repairs.toml`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaptertools import schemas
from adaptertools.adapter.model import Adapter, LowRank, Update
from adaptertools.errors import Finding, Where
from adaptertools.formats.factors import take
from adaptertools.formats.model import Model
from adaptertools.patterns.rows import Index, compile_rows

REPAIRED, SUSPECTED, UNDECIDED = "AT317", "AT318", "AT319"


def repaired(adapter: Adapter, model: Model | None, given: Mapping[str, Any]) -> Adapter:
    """Return the adapter with the faults of a known exporter undone, and a finding for each.

    Where only the model could tell whether it is at fault, or the exporter is not certain, the
    adapter stays as it is and a warning says what to do.
    """
    for repair in schemas.table("repairs")["repair"]:
        hit = [u for u in adapter.updates if _concerns(u, repair)]
        fields = set(adapter.config) - set(given)
        if not hit or not fields <= set(repair["fields"]):
            continue
        certain = given.get(repair["told"]) is True or _beside(adapter, repair)
        family = model.family.id if model and model.family else None
        if given.get(repair["told"]) is False or (family and family not in repair["families"]):
            continue
        if model is None or family is None or not certain:
            adapter = _told(adapter, repair, certain=certain)
            continue
        updates = tuple(_mended(update, repair, model) for update in adapter.updates)
        note = _finding(adapter, REPAIRED, "info", f"{repair['what']}; undone")
        adapter = replace(adapter, updates=updates, findings=(*adapter.findings, note))
    return adapter


def _concerns(update: Update, repair: Mapping[str, Any]) -> bool:
    if not isinstance(update, LowRank) or _order(update, repair) is None:
        return False
    return all(getattr(update, name) is not None for name in repair["factors"])


def _order(update: LowRank, repair: Mapping[str, Any]) -> Mapping[str, str] | None:
    matches: Iterator[Mapping[str, str]] = (
        order
        for glob, order in repair["modules"].items()
        if fnmatch.fnmatchcase(update.target.module, glob)
    )
    return next(matches, None)


def _beside(adapter: Adapter, repair: Mapping[str, Any]) -> bool:
    file = Path(adapter.files[0])
    name = str(repair["beside"])
    return file.name != name and (file.parent / name).is_file()


def _mended(update: Update, repair: Mapping[str, Any], model: Model) -> Update:
    if not isinstance(update, LowRank) or (order := _order(update, repair)) is None:
        return update
    index: Index = compile_rows(order["stored"]).positions(
        "", compile_rows(order["canonical"]), model.sizes
    )
    changed: dict[str, Any] = {
        name: take(factor, 0, index)
        for name in repair["factors"]
        if (factor := getattr(update, name)) is not None
    }
    return replace(update, **changed)


def _told(adapter: Adapter, repair: Mapping[str, Any], *, certain: bool) -> Adapter:
    families = ", ".join(repair["families"])
    if certain:
        title = f"{repair['what']}; whether this one does ({families}) depends on the model"
        note = _finding(adapter, UNDECIDED, "warning", title, "give --base")
    else:
        title = f"if torchtune wrote this for one of {families}: {repair['what']}"
        hint = f"--set {repair['told']}=true undoes it, =false silences this"
        note = _finding(adapter, SUSPECTED, "info", title, hint)
    return replace(adapter, findings=(*adapter.findings, note))


def _finding(adapter: Adapter, code: str, severity: Any, title: str, hint: str = "") -> Finding:
    return Finding(code, severity, title, Where(adapter.files[0]), hint=hint)
