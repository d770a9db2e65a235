"""Rules over an adapter: each returns the findings it makes, none raises at the first fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from adaptertools.adapter.model import Adapter, Replace, Rows
from adaptertools.errors import Finding, FormatError, Where
from adaptertools.formats.config import config_findings
from adaptertools.formats.targets import covered
from adaptertools.formats.values import value_findings

Rule = Callable[[Adapter], list[Finding]]


def reading(adapter: Adapter) -> list[Finding]:
    """What reading found: unmatched keys, missing partners, shapes, ranks, refusals."""
    return list(adapter.findings)


def target_modules(adapter: Adapter) -> list[Finding]:
    """AT307: `target_modules` and the tensors name different modules."""
    named = adapter.config.get("target_modules")
    trained = sorted(
        {u.target.module for u in adapter.updates if not isinstance(u, Replace | Rows)}
    )
    where = Where(adapter.files[-1], "target_modules")
    if named == "all-linear" or not isinstance(named, str | list):
        return []
    if isinstance(named, list) and adapter.config.get("target_parameters"):
        return []
    try:
        row = covered(named, trained)
    except FormatError as error:
        return [Finding(error.code, "error", error.message, where, hint=error.hint)]
    found = []
    entries = [e for e in named if isinstance(e, str)] if isinstance(named, list) else []
    if unused := [entry for entry in entries if not any(covered([entry], trained))]:
        title = f"names modules that have no tensors: {', '.join(unused)}"
        found.append(Finding("AT307", "warning", title, where, hint="is the file complete?"))
    strays = [module for module, hit in zip(trained, row, strict=True) if not hit]
    return [*found, _stray(where, strays)] if strays else found


def _stray(where: Where, modules: list[str]) -> Finding:
    more = f" and {len(modules) - 1} more" if len(modules) > 1 else ""
    title = f"does not cover {modules[0]}{more}, which has tensors; the tensors win"
    return Finding("AT307", "warning", title, where)


def base_name(adapter: Adapter) -> list[Finding]:
    """AT308: the adapter does not say which base it belongs to."""
    if adapter.base_model or not adapter.config:
        return []
    where = Where(adapter.files[-1], "base_model_name_or_path")
    return [Finding("AT308", "info", "does not name its base model", where)]


RULES: tuple[Rule, ...] = (reading, config_findings, target_modules, base_name, value_findings)


def run_rules(adapter: Adapter) -> Iterator[Finding]:
    """Yield the findings of every rule, in the order of `RULES`."""
    for rule in RULES:
        yield from rule(adapter)
