"""Looking up a field of a config: by its name, or by a dotted path into nested objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ABSENT = object()


def lookup(config: Mapping[str, Any], *names: str, default: Any = None) -> Any:
    """Return the first of the fields that is there.

    >>> lookup({"config": {"alpha": 8}}, "lora_alpha", "config.alpha")
    8
    """
    for name in names:
        value = _find(config, name)
        if value is not _ABSENT:
            return value
    return default


def _find(config: Any, name: str) -> Any:
    if not isinstance(config, Mapping):
        return _ABSENT
    if name in config:
        return config[name]
    head, dot, rest = name.partition(".")
    return _find(config[head], rest) if dot and head in config else _ABSENT
