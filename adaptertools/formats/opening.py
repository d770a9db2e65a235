"""Opening an adapter: the folder or file, its config, its format, its neutral form."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from adaptertools.adapter.model import Adapter
from adaptertools.errors import AdapterError, Finding, SourceError, Where
from adaptertools.formats.canonical import to_canonical
from adaptertools.formats.detect import detect
from adaptertools.formats.extras import extras
from adaptertools.formats.model import UNKNOWN, Model, parse_config, read_config, translated
from adaptertools.formats.parse import Parser
from adaptertools.formats.registry import all_formats, plugged_in
from adaptertools.formats.repairs import repaired
from adaptertools.formats.spec import FormatSpec
from adaptertools.store.container import Content, read_content
from adaptertools.store.read import TORCH_SUFFIXES

__all__ = ["open_adapter", "read_config"]


def open_adapter(
    path: str | Path,
    *,
    specs: Iterable[Path] = (),
    accept: Iterable[str] = (),
    model: Model | None = None,
    given: Mapping[str, Any] | None = None,
) -> Adapter:
    """Open the adapter at `path` (a folder or a weight file) from headers alone.

    `specs` are extra spec files; the specs of plug-ins are asked where no other fits. `accept`
    names refusals that the caller lifts ("residual_base"). `model` says which model it is for,
    where its format has names or row orders of its own; `given` are config fields that the file
    does not tell.
    Raises `SourceError` or `FormatError` when it cannot be read at all; what is wrong inside is in
    the adapter's `findings`.
    """
    place, extra = Path(path), tuple(specs)
    try:
        return _open(place, all_formats(extra, plugins=False), accept, model, given or {})
    except AdapterError as error:
        if error.code not in ("AT100", "AT201") or not plugged_in():
            raise
        return _open(place, all_formats(extra), accept, model, given or {})


def _open(
    place: Path,
    formats: Sequence[FormatSpec],
    accept: Iterable[str],
    model: Model | None,
    given: Mapping[str, Any],
) -> Adapter:
    weights, note = _find_weights(place, formats)
    source = _Source(weights, given)
    guess = detect(formats, str(place), weights.name, source.configs(formats), source.slots)
    spec = guess.spec
    config, files = source.config(spec)
    parser = Parser(
        spec,
        source.slots,
        config,
        file=str(weights),
        config_file=files[0] if files else "",
        accept=accept,
    )
    parser.findings += note + extras(weights.parent, config)
    adapter = parser.adapter(str(place), guess.evidence)
    if spec.scheme == "hf" and not any(
        getattr(u, "parts", None) or getattr(u, "enabled", ()) for u in adapter.updates
    ):
        return repaired(adapter, model, given)
    return _named(adapter, spec, config, model)


def _named(
    adapter: Adapter, spec: FormatSpec, config: Mapping[str, Any], model: Model | None
) -> Adapter:
    """Return the adapter under canonical names, where the model is known well enough."""
    if model is None and spec.model is not None:
        model = translated(spec.model, config)
    naming = (model or UNKNOWN).naming(spec.scheme)
    if naming.family is None and not naming.plain:
        return _unnamed(adapter, spec, "which model it is for is not known")
    named = _rooted(to_canonical(adapter, naming), model or UNKNOWN)
    lacking = next((f for f in named.findings if f.id == "AT241"), None)
    return named if lacking is None else _unnamed(adapter, spec, lacking.title)


def _rooted(adapter: Adapter, model: Model) -> Adapter:
    """Return the adapter under the names that the class of its base has."""
    targets = (replace(u.target, module=model.rooted(u.target.module)) for u in adapter.updates)
    pairs = zip(adapter.updates, targets, strict=True)
    return replace(adapter, updates=tuple(replace(u, target=t) for u, t in pairs))


def _unnamed(adapter: Adapter, spec: FormatSpec, why: str) -> Adapter:
    title = f"the names are those of {spec.title} ({why})"
    hint = "give --base, or a folder with the base's config.json, to see the model's own"
    note = Finding("AT314", "info", title, Where(adapter.files[0]), hint=hint)
    return replace(adapter, scheme=spec.scheme, findings=(*adapter.findings, note))


@dataclass(frozen=True)
class _Source:
    """A weight file and the configs beside it, each read once, when it is asked for."""

    weights: Path
    given: Mapping[str, Any]

    @cached_property
    def content(self) -> Content:
        return read_content(self.weights)

    @property
    def slots(self) -> Mapping[str, Any]:
        return self.content.slots

    def configs(self, formats: Iterable[FormatSpec]) -> dict[str, dict[str, Any]]:
        """Return the config that each format would read, by its id."""
        return {spec.id: self.config(spec)[0] for spec in formats}

    def config(self, spec: FormatSpec) -> tuple[dict[str, Any], list[str]]:
        """Return the config of a format, and the files it was read from."""
        config, files = dict(self.content.metadata if not spec.configs else {}), list[str]()
        for name in spec.configs:
            if (found := self._file(name)) is not None:
                config |= found
                files.append(str(self.weights.parent / name))
        return config | dict(self.given), files

    def _file(self, name: str) -> dict[str, Any] | None:
        path = self.weights.parent / name
        if (inside := self.content.members.get(name)) is not None:
            return parse_config(inside, path)
        if path not in self._read:
            self._read[path] = read_config(path) if path.is_file() else None
        return self._read[path]

    @cached_property
    def _read(self) -> dict[Path, dict[str, Any] | None]:
        return {}


def _find_weights(place: Path, formats: Iterable[FormatSpec]) -> tuple[Path, list[Finding]]:
    names = list(dict.fromkeys(name for f in formats for name in f.weights))
    if place.is_file():
        return place, []
    if not place.is_dir():
        raise SourceError("AT100", "no such file or folder", file=place)
    found = _named_files(place, names)
    if not found:
        inner = [d for d in sorted(place.iterdir()) if d.is_dir() and _named_files(d, names)]
        if len(inner) == 1:
            return _find_weights(inner[0], formats)
        hint = f"name one of its subfolders: {', '.join(d.name for d in inner)}" if inner else ""
        if any(place.glob("model*.safetensors*")):
            hint = "it looks like a base checkpoint; the base comes first, then the adapters"
        plain = [name for name in names if "*" not in name]
        raise SourceError(
            "AT100", f"holds no adapter weights ({', '.join(plain)})", file=place, hint=hint
        )
    stale = [p.name for p in found[1:] if p.suffix in TORCH_SUFFIXES]
    title = f"{found[0].name} is used; {', '.join(stale)} beside it is ignored and may be stale"
    note = [Finding("AT313", "warning", title, Where(str(place)))] if stale else []
    return found[0], note


def _named_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the files that are called so, in the order of `names`; patterns come last."""
    plain = [folder / name for name in names if "*" not in name and (folder / name).is_file()]
    if plain:
        return plain
    inside = sorted(path for path in folder.iterdir() if path.is_file())
    globs = [name for name in names if "*" in name]
    return [path for path in inside if any(fnmatch.fnmatchcase(path.name, g) for g in globs)]
