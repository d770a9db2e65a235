"""The formats that are known: the shipped specs, plug-ins' specs, and `--spec FILE`."""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path

from adaptertools import schemas
from adaptertools.errors import FormatError, SpecError
from adaptertools.formats.spec import FormatSpec, check_spec, load_spec

GROUP = "adaptertools.formats"


@cache
def shipped() -> tuple[FormatSpec, ...]:
    """Return the specs under `schemas/formats/`, by id."""
    return tuple(load_spec(p) for p in sorted((schemas.root() / "formats").glob("*.toml")))


@cache
def plugged_in() -> tuple[FormatSpec, ...]:
    """Return the specs that other packages offer by the entry point group `adaptertools.formats`.

    Each entry point loads to the path of a spec file, or to a function that returns one.
    """
    from importlib.metadata import entry_points

    found = []
    for point in entry_points(group=GROUP):
        value = point.load()
        found.append(_checked(Path(value() if callable(value) else value)))
    return tuple(found)


@cache
def _checked(path: Path) -> FormatSpec:
    check_spec(path)
    return load_spec(path)


def all_formats(extra: tuple[Path, ...] = (), *, plugins: bool = True) -> tuple[FormatSpec, ...]:
    """Return every known format; `extra` spec files come first and must not reuse an id."""
    found = tuple(_checked(path) for path in extra) + shipped() + (plugged_in() if plugins else ())
    seen: dict[str, str] = {}
    for spec in found:
        if spec.id in seen:
            raise SpecError(
                "AT296", f"two specs have the id {spec.id!r}: {seen[spec.id]}", file=spec.source
            )
        seen[spec.id] = spec.source
    return found


def get_format(name: str, extra: tuple[Path, ...] = ()) -> FormatSpec:
    """Return the format called `name`; raises `FormatError` (AT200) with near misses."""
    known = {spec.id: spec for spec in all_formats(extra)}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    raise FormatError("AT200", f"no format is called {name!r}", hint=hint)
