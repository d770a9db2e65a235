"""The files beside the weights: config, tokenizer, templates, licence; and what stays behind."""

from __future__ import annotations

import copy
import fnmatch
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptertools import schemas
from adaptertools.adapter.model import Adapter
from adaptertools.base.checkpoint import Checkpoint
from adaptertools.base.plan import Companion


def companions(
    base: Checkpoint,
    adapters: Iterable[Adapter],
    changes: Mapping[str, Any],
    *,
    with_code: bool = False,
) -> tuple[tuple[Companion, ...], tuple[str, ...]]:
    """Return the files to write beside the weights, and the names of those left out.

    An adapter's tokenizer and chat template win over a Hugging Face base's. `changes` are config
    fields (dotted) to set; where there are none, `config.json` keeps its bytes.
    """
    if base.root.is_file():
        return (), ()
    table = schemas.table("companions")
    never = [*table["never"], *([] if with_code else table["code"])]
    taken: dict[str, Companion] = {}
    left_out = []
    for path, name in _walk(base.root):
        if _matches(name, table["weights"]):
            continue
        if _matches(name, never):
            left_out.append(name)
        else:
            taken[name] = Companion(name, source=path)
    for adapter in () if base.layout.kept else adapters:
        folder = Path(adapter.files[0]).parent
        for pattern in table["from_adapter"]:
            for path in sorted(folder.glob(pattern)):
                if path.is_file():
                    name = path.relative_to(folder).as_posix()
                    taken[name] = Companion(name, source=path)
    if changes:
        taken["config.json"] = Companion("config.json", content=changed_config(base, changes))
    return tuple(taken[name] for name in sorted(taken)), tuple(left_out)


def changed_config(base: Checkpoint, changes: Mapping[str, Any]) -> bytes:
    """Return `config.json` with the dotted fields of `changes` set, everything else as it is."""
    config = copy.deepcopy(dict(base.config))
    for dotted, value in changes.items():
        holder, _, field = dotted.rpartition(".")
        (config[holder] if holder else config)[field] = value
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def dtype_changes(base: Checkpoint, dtype: str, torch_name: str) -> dict[str, Any]:
    """Return the config fields that state the weights' dtype, when the merge changes it."""
    if dtype == "auto" or not base.config or base.layout.kept:
        return {}
    fields = [field for field in ("dtype", "torch_dtype") if field in base.config]
    return dict.fromkeys(fields or ["torch_dtype"], torch_name)


def _walk(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield (path, relative name) of every regular file, symlinks to files included, sorted."""
    for folder, _, names in sorted(os.walk(root)):
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file():
                yield path, path.relative_to(root).as_posix()


def _matches(name: str, patterns: Iterable[str]) -> bool:
    parts = name.split("/")
    return any(
        fnmatch.fnmatchcase(name, pattern)
        or any(fnmatch.fnmatchcase(part, pattern) for part in parts)
        for pattern in patterns
    )
