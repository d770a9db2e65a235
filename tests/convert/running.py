"""Converting a source that was made by hand, and reading what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import adaptertools

from .sources import Source


def converted(place: Path, source: Source, to: str, **options: Any) -> Any:
    """Write a source and convert it to `place`/out, with the base's config."""
    folder = source.write(place)
    return adaptertools.convert(folder, to, place / "out", base=place / "base", jobs=1, **options)


def config_of(place: Path) -> dict[str, Any]:
    """Return the PEFT-like config that was written."""
    return json.loads((place / "out" / "adapter_config.json").read_text())
