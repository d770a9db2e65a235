"""An adapter's config against its JSON Schema: wrong types are errors, with their JSON path."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from adaptertools import schemas
from adaptertools.adapter.model import Adapter
from adaptertools.errors import Finding, Where


def config_findings(adapter: Adapter) -> list[Finding]:
    """Return a finding (AT301) for every field of the config that has a wrong type or value."""
    if adapter.config_schema is None or not adapter.config:
        return []
    import jsonschema

    file = adapter.files[-1]
    validator = jsonschema.Draft202012Validator(schemas.json_schema(adapter.config_schema))
    faults = {
        path: f"{value} is not a finite number"
        for path, value in _numbers(adapter.config, "$")
        if not math.isfinite(value)
    }
    for error in validator.iter_errors(adapter.config):
        faults.setdefault(error.json_path, error.message)
    return [_finding(file, path, message) for path, message in faults.items()]


def _finding(file: str, path: str, message: str) -> Finding:
    return Finding("AT301", "error", message[:300], Where(file, path), hint="correct the config")


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _numbers(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _numbers(inner, f"{path}[{number}]")
