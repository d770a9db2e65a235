"""What is known of the model an adapter belongs to: its config, in whatever dialect, and family."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptertools import schemas
from adaptertools.adapter.families import Family, detect_family, families
from adaptertools.adapter.naming import Naming
from adaptertools.errors import SourceError
from adaptertools.formats.lookup import lookup
from adaptertools.patterns.dims import evaluate
from adaptertools.patterns.template import compile_template
from adaptertools.store.container import read_content

MAX_CONFIG = 16_000_000


@dataclass(frozen=True, slots=True)
class Model:
    """A model by its config, in the fields of a Hugging Face config.json."""

    config: Mapping[str, Any]
    family: Family | None

    @property
    def sizes(self) -> dict[str, int]:
        return self.family.sizes(self.config) if self.family else {}

    def naming(self, scheme: str) -> Naming:
        """Return how `scheme` names the modules of this model."""
        return Naming(scheme, self.family, self.sizes)

    def rooted(self, module: str) -> str:
        """Return a canonical name as the class of the model has it: a bare model has no root."""
        classes = self.config.get("architectures") or ()
        bare = any(str(name).endswith("Model") for name in classes if "LMHead" not in str(name))
        for group in self.family.roots if self.family and bare else ():
            if "" in group and group[0] and module.startswith(group[0]):
                return module.removeprefix(group[0])
        return module

    def same_name(self, module: str) -> str:
        """Return a module's name in the family's own tree, under whatever root it is given."""
        hit = self.family.find(module) if self.family else None
        return module if hit is None else compile_template(hit.module.name).format(hit.fields)


UNKNOWN = Model({}, None)


def as_model(config: Mapping[str, Any]) -> Model:
    """Return the model that a Hugging Face config describes."""
    return Model(config, detect_family(config))


def translated(dialect: str, values: Mapping[str, Any]) -> Model:
    """Return the model that a config of another dialect describes (`schemas/configs.toml`)."""
    table = schemas.table("configs")[dialect]
    config: dict[str, Any] = {}
    rule = table["model_type"]
    kind = rule.get("value") or lookup(values, rule.get("field", ""))
    prefix = f"{lookup(values, table['strip'])}." if "strip" in table else ""
    known = {k.removeprefix(prefix): v for k, v in values.items()}
    if "map" in rule:
        kind = rule["map"].get(kind)
    elif "family" in rule:
        kind = _model_type(rule["family"], kind, stacked=bool(known.get(rule["experts"])))
    for name, texts in table.items():
        if name not in ("model_type", "file", "strip"):
            tried = [texts] if isinstance(texts, str) else texts
            size = next((s for t in tried if (s := evaluate(t, known)) is not None), None)
            if size is not None:
                config[name] = size
    return as_model({"model_type": kind, **config})


def _model_type(scheme: str, architecture: Any, *, stacked: bool) -> str | None:
    """Return a model type that the scheme calls `architecture`, with or without experts."""
    found = None
    for family in families():
        table = family.schemes.get(scheme, {}).get("architecture", {})
        kind = next((kind for kind, name in table.items() if name == architecture), None)
        if kind is not None and stacked == ("e" in family.expressions):
            return str(kind)
        found = found or kind
    return found


def read_model(path: Path) -> Model:
    """Return the model at `path`: a folder, its config file, or a GGUF file; raises `SourceError`.

    Only configs are read, so a folder without weights is enough.
    """
    if path.suffix == ".gguf":
        return translated("gguf", read_content(path).metadata)
    dialects = {t["file"]: name for name, t in schemas.table("configs").items() if "file" in t}
    names = ["config.json", *dialects]
    found = (
        path if path.is_file() else next((path / n for n in names if (path / n).is_file()), None)
    )
    if found is None or found.name not in names:
        if not path.exists():
            raise SourceError("AT100", "no such file or folder", file=path)
        told = ", ".join(names)
        raise SourceError("AT135", f"tells nothing about the model: no {told}", file=path)
    values = read_config(found)
    if found.name == "config.json":
        return as_model(values)
    return translated(dialects[found.name], values)


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML config; raises `SourceError` (AT120) with the place of the fault."""
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise SourceError("AT120", "too large for a config", file=path)
        return parse_config(path.read_bytes(), path)
    except OSError as error:
        raise SourceError("AT120", f"cannot be read: {error.strerror}", file=path) from None


def parse_config(data: bytes, path: Path) -> dict[str, Any]:
    """Parse the bytes of a JSON or YAML (by the name's end) config; raises `SourceError`."""
    yaml = path.suffix in (".yaml", ".yml")
    try:
        text = data.decode("utf-8")
        value = _parse_yaml(text) if yaml else json.loads(text)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        kind = "YAML" if yaml else "JSON"
        raise SourceError("AT120", f"not valid {kind}: {why}", file=path) from None
    if not isinstance(value, dict):
        kind = type(value).__name__
        what = "a YAML mapping" if yaml else "a JSON object"
        raise SourceError("AT120", f"must be {what}, not {kind}", file=path)
    return value


def _parse_yaml(text: str) -> Any:
    """Parse YAML as plain data: what carries a tag of its own (a Python object) becomes None."""
    import yaml

    class Loader(yaml.SafeLoader):  # its own, as constructors are added to a class
        pass

    Loader.add_multi_constructor("", lambda *_: None)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None
