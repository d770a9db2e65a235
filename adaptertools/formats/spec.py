"""A format spec: one TOML file of `schemas/formats/`, compiled and checked once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptertools import schemas
from adaptertools.errors import SpecError
from adaptertools.patterns.dims import Dims, compile_dims
from adaptertools.patterns.template import Template, compile_template

RESERVED = {
    *("kind", "prefix", "weight", "transposed", "stacked", "fallback", "index", "feedforward"),
    *("modules", "beside", "scaled"),
}


@dataclass(frozen=True, slots=True)
class Role:
    """One tensor of an update: its full key templates (the first is written) and its shapes."""

    name: str
    templates: tuple[Template, ...]
    dims: tuple[Dims, ...]
    when: str | None = None
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Stacked:
    """How an update on a 3-D parameter is stored: dims of its factors, and where it nests."""

    parameters: str
    wrapper: str
    down: Dims
    up: Dims
    weight: tuple[str, ...]
    orientation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UpdateSpec:
    """One `[[update]]` entry: the kind of update, and the tensors it is made of.

    `modules` are the only ones it is for; `beside` says that it stands beside another update,
    `scaled` that the scale rule is for its vector too.
    """

    kind: str
    roles: tuple[Role, ...]
    weight: tuple[str, ...] = ()
    transposed: str | None = None
    stacked: Stacked | None = None
    fallback: bool = False
    index: str | None = None
    feedforward: str | None = None
    modules: tuple[str, ...] = ()
    beside: bool = False
    scaled: bool = False

    def role(self, name: str) -> Role:
        return next(role for role in self.roles if role.name == name)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A config field that makes the adapter unmergeable, with the reason."""

    field: str
    why: str
    hint: str = ""
    matches: tuple[str, ...] = ()
    unless: str | None = None


@dataclass(frozen=True, slots=True)
class FormatSpec:
    """A compiled format spec; `limits` says what the format can hold, `write` how it is written.

    `parts` says where the config tells which parts of a fused tensor an adapter has, `model` in
    which dialect of `schemas/configs.toml` it describes its base, `aliases` (in the file, in the
    scheme) how module paths differ from those of the naming scheme.
    """

    id: str
    title: str
    method: str
    scheme: str
    weights: tuple[str, ...]
    configs: tuple[str, ...]
    updates: tuple[UpdateSpec, ...]
    config_schema: str | None = None
    detect_config: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    detect_keys: tuple[str, ...] = ()
    detect_without: tuple[str, ...] = ()
    fields: Mapping[str, str | list[str]] = field(default_factory=dict)
    scale: Mapping[str, Any] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()
    limits: Mapping[str, Any] = field(default_factory=dict)
    marks: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    parts: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    write: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[tuple[Template, Template], ...] = ()
    source: str = ""

    @property
    def config(self) -> str | None:
        """The name of the config file that lies beside the weights."""
        return self.configs[0] if self.configs else None

    def roles(self) -> Iterator[tuple[int, UpdateSpec, Role]]:
        """Yield every role with its update and the update's number."""
        for number, update in enumerate(self.updates):
            for role in update.roles:
                yield number, update, role


def load_spec(path: Path) -> FormatSpec:
    """Load and compile one spec file; raises `SpecError` (AT291 to AT295)."""
    raw = schemas.read_toml(path)
    try:
        spec = _compile(raw, str(path))
    except KeyError as error:
        raise SpecError("AT295", f"the spec lacks {error.args[0]!r}", file=path) from None
    except SpecError as error:
        raise SpecError(error.code, error.message, file=path, hint=error.hint) from None
    if not spec.scale and any(update.kind == "low_rank" for update in spec.updates):
        raise SpecError("AT295", "a low_rank update needs a [scale] rule", file=path)
    _check_ambiguity(spec, path)
    return spec


def check_spec(path: Path) -> None:
    """Check a spec file against `schemas/format.schema.json`; raises `SpecError` (AT295)."""
    import jsonschema

    validator = jsonschema.Draft202012Validator(schemas.json_schema("format"))
    for error in validator.iter_errors(schemas.read_toml(path)):
        raise SpecError("AT295", error.message, file=path, key=error.json_path)


def _compile(raw: Mapping[str, Any], source: str) -> FormatSpec:
    files = raw["files"]
    return FormatSpec(
        id=raw["id"],
        title=raw["title"],
        method=raw["method"],
        scheme=raw["scheme"],
        weights=tuple(files["weights"]),
        configs=_texts(files.get("config", ())),
        config_schema=files.get("config_schema"),
        updates=tuple(_update(entry) for entry in raw["update"]),
        detect_config={k: tuple(v) for k, v in raw.get("detect", {}).get("config", {}).items()},
        detect_keys=tuple(raw.get("detect", {}).get("keys", ())),
        detect_without=tuple(raw.get("detect", {}).get("without", ())),
        fields=raw.get("fields", {}),
        scale=raw.get("scale", {}),
        refusals=tuple(
            Refusal(**{**entry, "matches": tuple(entry.get("matches", ()))})
            for entry in raw.get("refuse", ())
        ),
        limits=raw.get("limits", {}),
        marks=tuple(raw.get("marks", ())),
        ignored=tuple(raw.get("ignored", ())),
        parts=raw.get("parts", {}),
        model=files.get("model"),
        write=raw.get("write", {}),
        aliases=tuple(
            (compile_template(a["file"]), compile_template(a["module"]))
            for a in raw.get("alias", ())
        ),
        source=source,
    )


def _update(entry: Mapping[str, Any]) -> UpdateSpec:
    roles = [
        Role(
            name,
            tuple(compile_template(p + key) for p in entry["prefix"] for key in _keys(value)),
            tuple(compile_dims(text) for text in value.get("dims", ())),
            when=value.get("when"),
            shared=value.get("shared", False),
        )
        for name, value in entry.items()
        if name not in RESERVED
    ]
    stacked = entry.get("stacked")
    return UpdateSpec(
        entry["kind"],
        tuple(roles),
        weight=tuple(entry.get("weight", ())),
        transposed=entry.get("transposed"),
        stacked=None if stacked is None else _stacked(stacked),
        fallback=entry.get("fallback", False),
        index=entry.get("index"),
        feedforward=entry.get("feedforward"),
        modules=tuple(entry.get("modules", ())),
        beside=entry.get("beside", False),
        scaled=entry.get("scaled", False),
    )


def _texts(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _keys(role: Mapping[str, Any]) -> list[str]:
    """Return the key suffixes that a role may have; the first is written."""
    return [role["key"]] if isinstance(role["key"], str) else list(role["key"])


def _stacked(raw: Mapping[str, Any]) -> Stacked:
    return Stacked(
        raw["parameters"],
        raw["wrapper"],
        compile_dims(raw["down"]),
        compile_dims(raw["up"]),
        tuple(raw["weight"]),
        raw.get("orientation", {}),
    )


def _check_ambiguity(spec: FormatSpec, path: Path) -> None:
    """Reject a spec in which one key could mean two different tensors."""
    sample = {"module": "a.0.b", "adapter": "c", "param": "weight"}
    entries = [(n, r) for n, u, r in spec.roles() if not (u.fallback or u.modules)]
    for number, role in entries:
        key = role.templates[0].format({f: sample[f] for f in role.templates[0].fields})
        for other_number, other in entries:
            same = (number, role.name) == (other_number, other.name)
            if same or role.shared or other.shared:
                continue
            if other.templates[0].match(key):
                raise SpecError(
                    "AT292",
                    f"the key {key!r} could be {role.name} of update {number + 1} or "
                    f"{other.name} of update {other_number + 1}",
                    file=path,
                )
