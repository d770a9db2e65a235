"""PEFT's `target_modules`: which module paths a list of endings, or one pattern, covers."""

from __future__ import annotations

from typing import Any

from adaptertools.patterns.bounded import match_table


def covered(named: Any, modules: list[str]) -> list[bool]:
    """Say for each module whether `named` covers it; a string is a pattern for the whole path.

    >>> covered(["q_proj"], ["layers.0.q_proj", "layers.0.xq_proj"])
    [True, False]
    """
    if isinstance(named, str):
        return match_table(r"(?:{})\Z", [named], modules)[0] if modules else []
    entries = [e for e in named if isinstance(e, str)] if isinstance(named, list) else []
    return [any(f".{module}".endswith(f".{entry}") for entry in entries) for module in modules]


def covers(named: Any, module: str) -> bool:
    """Say whether `named` covers one module."""
    return covered(named, [module])[0]
