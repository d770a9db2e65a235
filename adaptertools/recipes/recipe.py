"""A recipe: read, its variables filled in, checked against its schema before anything is opened."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptertools import schemas
from adaptertools.errors import Finding, FindingsError, SourceError, Where
from adaptertools.formats.model import read_config

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class RecipeStep:
    """One step: the verb, and its fields with every variable filled in."""

    verb: str
    fields: Mapping[str, Any]

    @property
    def inputs(self) -> list[str]:
        """The paths that the step reads."""
        found = [str(self.fields[name]) for name in ("ref", "base") if name in self.fields]
        for item in self.fields.get("adapters", ()):
            found.append(str(item["path"] if isinstance(item, Mapping) else item))
        return found


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A whole recipe; relative paths begin at `folder` (for a receipt the present one)."""

    file: Path
    steps: tuple[RecipeStep, ...]
    folder: Path


def read_recipe(path: Path, given: Mapping[str, Any] | None = None) -> RecipeFile:
    """Read a recipe, or the receipt of a merge; `given` are variables that replace its own.

    Raises `SourceError` (AT120 unreadable, AT280 a variable) and `FindingsError` (AT281) with
    every place where it is not what the schema says.
    """
    raw, folder = read_config(path), path.parent
    if "recipe" in raw and "steps" not in raw:
        raw = {"schema": 1, "steps": [{"merge": _of_receipt(raw["recipe"])}]}
        folder = Path()
    import jsonschema

    validator = jsonschema.Draft202012Validator(schemas.json_schema("recipe"))
    faults = [
        Finding("AT281", "error", fault.message[:300], Where(str(path), fault.json_path))
        for fault in validator.iter_errors(raw)
    ]
    if faults:
        raise FindingsError(faults)
    known = dict(raw.get("vars", {}))
    if strange := next((name for name in given or {} if name not in known), None):
        hint = f"it has: {', '.join(known) or 'none'}"
        raise SourceError("AT280", f"has no variable {strange!r}", file=path, hint=hint)
    known |= dict(given or {})
    steps = [next(iter(step.items())) for step in raw["steps"]]
    filled = tuple(RecipeStep(verb, _filled(fields, known, path)) for verb, fields in steps)
    return RecipeFile(path, filled, folder)


def _of_receipt(recipe: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("base", "adapters", "dtype", "compute_dtype", "shard_size", "residual_base", "given")
    return {name: recipe[name] for name in kept if recipe.get(name) is not None}


def _filled(value: Any, known: Mapping[str, Any], path: Path) -> Any:
    """Put the variables into a value; a text that is one variable becomes the value itself."""
    if isinstance(value, Mapping):
        return {key: _filled(inner, known, path) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, known, path) for inner in value]
    if not isinstance(value, str):
        return value
    whole = _VARIABLE.fullmatch(value)
    if whole:
        return _known(whole[1], known, path)
    return _VARIABLE.sub(lambda found: str(_known(found[1], known, path)), value)


def _known(name: str, known: Mapping[str, Any], path: Path) -> Any:
    if name not in known:
        hint = "name it under vars, or give --set"
        raise SourceError("AT280", f"the variable {name!r} has no value", file=path, hint=hint)
    return known[name]
