"""What trainers leave beside an adapter, recognised and told (`schemas/extras.toml`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptertools import schemas
from adaptertools.errors import Finding, Where
from adaptertools.formats.lookup import lookup


def extras(folder: Path, config: Mapping[str, Any]) -> list[Finding]:
    """Return a note (AT315) for every left-over of a trainer that is known."""
    found = []
    for extra in schemas.table("extras")["extra"]:
        here = [name for name in extra.get("files", ()) if (folder / name).is_file()]
        if here or _has_fields(extra, config):
            where = Where(str(folder), ", ".join(here) or ", ".join(extra.get("fields", ())))
            severity = extra.get("severity", "info")
            found.append(
                Finding("AT315", severity, extra["what"], where, hint=extra.get("hint", ""))
            )
    return found


def _has_fields(extra: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    fields = extra.get("fields", {})
    if not fields or any(lookup(config, name) is not None for name in extra.get("absent", ())):
        return False
    return all(
        bool(lookup(config, name)) if wanted == "*" else lookup(config, name) == wanted
        for name, wanted in fields.items()
    )
