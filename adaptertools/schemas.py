"""Where the data under `schemas/` is found and read: the wheel's copy, or the source tree's."""

from __future__ import annotations

import json
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from adaptertools.errors import SpecError


@cache
def root() -> Path:
    """Return the folder that holds `formats/`, `families/` and the `*.schema.json` files."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "_schemas", package.parent / "schemas"):
        if candidate.is_dir():
            return candidate
    raise SpecError("AT290", "the schemas folder is missing", file=package, hint="reinstall")


def read_toml(path: Path) -> dict[str, Any]:
    """Read one TOML file; errors name the file and the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError("AT291", f"cannot be read as TOML: {error}", file=path) from None


@cache
def table(name: str) -> dict[str, Any]:
    """Read `schemas/NAME.toml`, once."""
    return read_toml(root() / f"{name}.toml")


@cache
def json_schema(name: str) -> dict[str, Any]:
    """Read `schemas/NAME.schema.json`, once."""
    loaded: dict[str, Any] = json.loads((root() / f"{name}.schema.json").read_text("utf-8"))
    return loaded
