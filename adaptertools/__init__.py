"""Read, validate, convert and merge LoRA and (IA)³ adapters into base checkpoints.

The public functions are loaded on first use, so that importing this package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adaptertools.errors import AdapterError, Finding, FindingsError

if TYPE_CHECKING:
    from adaptertools.base.merge import merge as merge
    from adaptertools.base.unmerging import unmerge as unmerge
    from adaptertools.base.verify import verify as verify
    from adaptertools.check.converting import convert as convert
    from adaptertools.check.differing import diff as diff
    from adaptertools.check.inspecting import inspect as inspect
    from adaptertools.check.validating import validate as validate
    from adaptertools.composition.composing import compose as compose
    from adaptertools.composition.extracting import extract as extract
    from adaptertools.composition.resizing import resize as resize
    from adaptertools.formats.opening import open_adapter as open
    from adaptertools.searching.search import search as search

__all__ = [
    "AdapterError",
    "Finding",
    "FindingsError",
    "compose",
    "convert",
    "diff",
    "extract",
    "inspect",
    "merge",
    "open",
    "resize",
    "search",
    "unmerge",
    "validate",
    "verify",
]

_LAZY = {
    "search": ("adaptertools.searching.search", "search"),
    "extract": ("adaptertools.composition.extracting", "extract"),
    "resize": ("adaptertools.composition.resizing", "resize"),
    "unmerge": ("adaptertools.base.unmerging", "unmerge"),
    "compose": ("adaptertools.composition.composing", "compose"),
    "diff": ("adaptertools.check.differing", "diff"),
    "convert": ("adaptertools.check.converting", "convert"),
    "open": ("adaptertools.formats.opening", "open_adapter"),
    "inspect": ("adaptertools.check.inspecting", "inspect"),
    "validate": ("adaptertools.check.validating", "validate"),
    "merge": ("adaptertools.base.merge", "merge"),
    "verify": ("adaptertools.base.verify", "verify"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'adaptertools' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
