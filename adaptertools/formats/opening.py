"""Opening an adapter: the folder or file, its config, its format, its neutral form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adaptertools.adapter.model import Adapter
from adaptertools.errors import AdapterError, Finding, SourceError, Where
from adaptertools.formats.detect import detect
from adaptertools.formats.parse import Parser
from adaptertools.formats.registry import all_formats, plugged_in
from adaptertools.formats.spec import FormatSpec
from adaptertools.store.read import TORCH_SUFFIXES, read_slots

MAX_CONFIG = 16_000_000


def open_adapter(
    path: str | Path, *, specs: Iterable[Path] = (), accept: Iterable[str] = ()
) -> Adapter:
    """Open the adapter at `path` (a folder or a weight file) from headers alone.

    `specs` are extra spec files; the specs of plug-ins are asked where no other fits. `accept`
    names refusals that the caller lifts ("residual_base").
    Raises `SourceError` or `FormatError` when it cannot be read at all; what is wrong inside is in
    the adapter's `findings`.
    """
    place, extra = Path(path), tuple(specs)
    try:
        return _open(place, all_formats(extra, plugins=False), accept)
    except AdapterError as error:
        if error.code not in ("AT100", "AT201") or not plugged_in():
            raise
        return _open(place, all_formats(extra), accept)


def _open(place: Path, formats: Sequence[FormatSpec], accept: Iterable[str]) -> Adapter:
    weights, note = _find_weights(place, formats)
    config_path = next(
        (c for f in formats if f.config and (c := weights.parent / f.config).is_file()), None
    )
    config = {} if config_path is None else read_config(config_path)
    slots = read_slots(weights)
    guess = detect(formats, str(place), weights.name, config, slots)
    parser = Parser(
        guess.spec,
        slots,
        config,
        file=str(weights),
        config_file=str(config_path or ""),
        accept=accept,
    )
    parser.findings += note
    return parser.adapter(str(place), guess.evidence)


def _find_weights(place: Path, formats: Iterable[Any]) -> tuple[Path, list[Finding]]:
    names = list(dict.fromkeys(name for f in formats for name in f.weights))
    if place.is_file():
        return place, []
    if not place.is_dir():
        raise SourceError("AT100", "no such file or folder", file=place)
    found = [place / name for name in names if (place / name).is_file()]
    if not found:
        inner = [d for d in sorted(place.iterdir()) if d.is_dir() and _holds(d, names)]
        if len(inner) == 1:
            return _find_weights(inner[0], formats)
        hint = f"name one of its subfolders: {', '.join(d.name for d in inner)}" if inner else ""
        if any(place.glob("model*.safetensors*")):
            hint = "it looks like a base checkpoint; the base comes first, then the adapters"
        raise SourceError(
            "AT100", f"holds no adapter weights ({', '.join(names)})", file=place, hint=hint
        )
    stale = [p.name for p in found[1:] if p.suffix in TORCH_SUFFIXES]
    title = f"{found[0].name} is used; {', '.join(stale)} beside it is ignored and may be stale"
    note = [Finding("AT313", "warning", title, Where(str(place)))] if stale else []
    return found[0], note


def _holds(folder: Path, names: list[str]) -> bool:
    return any((folder / name).is_file() for name in names)


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON config; raises `SourceError` (AT120) with the place of the fault."""
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise SourceError("AT120", "too large for a config", file=path)
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError("AT120", f"cannot be read: {error.strerror}", file=path) from None
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise SourceError("AT120", f"not valid JSON: {why}", file=path) from None
    if not isinstance(value, dict):
        raise SourceError("AT120", f"must be a JSON object, not {type(value).__name__}", file=path)
    return value
