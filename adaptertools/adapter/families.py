"""The model families that are known: one TOML file each, read when a base needs it.

They lie under `schemas/families/` and are described by `schemas/family.schema.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from adaptertools import schemas
from adaptertools.adapter.family import LAYOUTS, Expected, Family, Fused, Module, Piece, Spot, Twin
from adaptertools.errors import SpecError
from adaptertools.patterns.rows import compile_rows

__all__ = [
    "Expected",
    "Family",
    "Piece",
    "check_family",
    "detect_family",
    "families",
    "load_family",
]

# the fields of an entry that are not the name of a naming scheme
_OWN = {"hf", "v5", "kind", "layout", "stack", "out", "in", "bias", "optional", "partial", "split"}


@cache
def _files() -> dict[Path, str]:
    paths = sorted((schemas.root() / "families").glob("*.toml"))
    return {path: path.read_text(encoding="utf-8") for path in paths}


@cache
def families() -> tuple[Family, ...]:
    """Return every family under `schemas/families/`, by file name."""
    return tuple(map(load_family, _files()))


def detect_family(config: Mapping[str, Any]) -> Family | None:
    """Return the family of a parsed config.json by its `model_type`, else its text model's.

    >>> family = detect_family({"model_type": "mistral"})
    >>> family.expected("lm_head", {"hidden": 64, "vocab": 100})
    Expected(kind='linear', layout='out in', out=100, in_=64, experts=None)
    """
    for level in (config, config.get("text_config")):
        wanted = level.get("model_type") if isinstance(level, Mapping) else None
        for path, content in _files().items():
            if isinstance(wanted, str) and f'"{wanted}"' in content:
                family = load_family(path)
                if wanted in family.model_types:
                    return family
    return None


def check_family(path: Path) -> Family:
    """Load a family file and check all of it; raises `SpecError` (AT291, AT294)."""
    import jsonschema

    validator = jsonschema.Draft202012Validator(schemas.json_schema("family"))
    for error in validator.iter_errors(schemas.read_toml(path)):
        raise SpecError("AT294", error.message, file=path, key=error.json_path)
    family = load_family(path)
    family.check()
    return family


@cache
def load_family(path: Path) -> Family:
    """Load one family file; raises `SpecError` (AT291 unreadable, AT294 malformed).

    Its name templates are compiled, and so checked, at the first look-up.
    """
    raw = schemas.read_toml(path)
    try:
        family = _family(raw, str(path))
        _check(family)
    except SpecError as error:
        raise SpecError("AT294", error.message, file=path) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SpecError("AT294", f"the family is malformed: {error!r}", file=path) from None
    return family


def _family(raw: Mapping[str, Any], source: str) -> Family:
    tied = raw.get("tied", {})
    sizes = {**raw["sizes"], **raw.get("counts", {})}
    entries = (*raw["module"], *raw.get("fused", ()))
    return Family(
        id=raw["id"],
        title=raw["title"],
        model_types=_texts(raw["detect"]["model_type"]),
        tied_head=tied.get("head"),
        tied_to=tied.get("to"),
        tied_default=tied.get("default", False),
        roots=tuple(map(_texts, raw.get("roots", ()))),
        expressions={name: _texts(value) for name, value in sizes.items()},
        modules=tuple(_module(entry) for entry in entries if {"hf", "v5"} & entry.keys()),
        fused=dict(pair for entry in raw.get("fused", ()) for pair in _fused(entry)),
        schemes=raw.get("scheme", {}),
        twins=tuple(
            Twin(_text(t["in"]), _text(t["out"]), t.get("when", {})) for t in raw.get("twin", ())
        ),
        source=source,
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(map(_text, value))


def _module(raw: Mapping[str, Any]) -> Module:
    """Compile one `[[module]]` or `[[fused]]` entry; a fused one of the tree alone has no `hf`."""
    virtual = "hf" not in raw
    kind = "parameter" if virtual else raw.get("kind", "linear")
    outs, ins = _by_scheme(raw["out"]), _by_scheme(raw.get("in"))
    v5: Any = None if virtual else raw.get("v5")
    held = isinstance(v5, Mapping)
    return Module(
        name=_text(raw["v5"] if virtual else raw["hf"]),
        kind=kind,
        layout=raw.get("layout", LAYOUTS[kind]),
        out=_text(outs["hf"]),
        in_=ins.get("hf"),
        stack=_text(raw["stack"]) if virtual else raw.get("stack"),
        optional=raw.get("optional", False),
        virtual=virtual,
        v5=_text(v5["in"]) if held else v5,
        part=_text(v5["part"]) if held else None,
        spots={name: _spot(raw[name]) for name in raw.keys() - _OWN},
        outs=outs,
        ins=ins,
        split=raw.get("split", {}),
    )


def _by_scheme(value: Any) -> dict[str, str]:
    if isinstance(value, Mapping):
        return {scheme: _text(text) for scheme, text in value.items()}
    return {} if value is None else {"hf": _text(value)}


def _spot(value: Any) -> Spot:
    if isinstance(value, Mapping):
        return Spot(_text(value["in"]), value.get("part"), value.get("stack"))
    return Spot(_text(value))


def _fused(raw: Mapping[str, Any]) -> list[tuple[tuple[str, str], Fused]]:
    """Return the layouts of a fused tensor, by naming scheme and the tensor's name in it."""
    fused = Fused(_text(raw["out"]) if isinstance(raw["out"], str) else "", raw.get("partial"))
    return [((scheme, _text(raw[scheme])), fused) for scheme in raw.keys() - _OWN]


def _check(family: Family) -> None:
    """Reject sizes that are not defined, parts without a whole, and modules given twice."""
    wholes = {m.name: m for m in family.modules if m.virtual}
    for module in family.modules:
        texts = (*module.outs.values(), *module.ins.values())
        sizes = {name for text in texts for name in compile_rows(text).names}
        sizes |= {stack for s in module.spots.values() if (stack := s.stack)}
        sizes |= {module.stack} if module.stack else set()
        if lacking := sizes - family.expressions.keys():
            raise SpecError("AT294", f"{module.name!r} needs the sizes {sorted(lacking)}")
        if module.part is not None:
            whole = wholes.get(module.v5 or "")
            if whole is None or module.part not in compile_rows(whole.out).parts:
                raise SpecError("AT294", f"no fused {module.v5!r} has a part {module.part!r}")
        for scheme, spot in module.spots.items():
            fused = family.fused.get((scheme, spot.name))
            if spot.part and (fused is None or spot.part not in compile_rows(fused.out).parts):
                raise SpecError("AT294", f"no fused {spot.name!r} has a part {spot.part!r}")
        if sum(m.name == module.name for m in family.modules) > 1:
            raise SpecError("AT294", f"{module.name!r} is there twice")
