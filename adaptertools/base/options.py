"""The options of a merge, checked once."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptertools.errors import AdapterError
from adaptertools.store.dtypes import WORDS, dtype_name
from adaptertools.store.threads import available_cores

QUANTISED = ("Q8_0",)
AdapterRef = str | Path | tuple[str | Path, float]
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """How to merge; `dtype` is "auto", a safetensors dtype name, or for GGUF bases Q8_0."""

    dtype: str = "auto"
    compute_dtype: str = "auto"
    jobs: int = 1
    overwrite: bool = False
    shard_size: int | None = None
    residual_base: bool = False
    hash: bool = False
    sync: bool = False
    with_code: bool = False
    specs: tuple[Path, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)


def make_options(
    *,
    dtype: str = "auto",
    compute_dtype: str = "auto",
    jobs: int | None = None,
    overwrite: bool = False,
    shard_size: int | str | None = None,
    residual_base: bool = False,
    hash: bool = False,
    sync: bool = False,
    with_code: bool = False,
    specs: Sequence[str | Path] = (),
    given: Mapping[str, Any] | None = None,
) -> MergeOptions:
    """Return checked options; raises `AdapterError` (AT500) naming what is allowed."""
    stored = _stored(dtype)
    if compute_dtype not in ("auto", "f32", "f64"):
        raise AdapterError(
            "AT500", f"cannot compute in {compute_dtype!r}", hint="use auto, f32 or f64"
        )
    if jobs is not None and jobs < 1:
        raise AdapterError("AT500", f"jobs must be at least 1, not {jobs}")
    return MergeOptions(
        stored,
        compute_dtype,
        jobs or available_cores(),
        overwrite,
        parse_size(shard_size),
        residual_base,
        hash,
        sync,
        with_code,
        tuple(Path(spec) for spec in specs),
        dict(given or {}),
    )


def _stored(dtype: str) -> str:
    """Return the dtype's own name: one that the CLI has a word for, or a type of GGUF."""
    if dtype == "auto" or dtype.upper() in QUANTISED:
        return dtype if dtype == "auto" else dtype.upper()
    stored = dtype_name(dtype)
    if stored not in WORDS.values():
        told = ", ".join([*WORDS, *QUANTISED]).lower()
        raise AdapterError("AT500", f"cannot store {dtype!r}", hint=f"use {told}")
    return stored


def parse_size(text: int | str | None) -> int | None:
    """Return bytes for `5GB`, `512MiB` or a number; raises `AdapterError` (AT500)."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B?)", str(text).strip().upper())
    unit = _UNITS.get(
        found[2]
        if found and found[2].endswith("B")
        else (found[2] + "B" if found and found[2] else "")
    )
    size = int(float(found[1]) * unit) if found and unit else 0
    if size <= 0:
        raise AdapterError("AT500", f"{text!r} is not a size", hint="write it like 5GB or 512MiB")
    return size


def split_weight(text: str) -> tuple[str, float]:
    """Split `PATH=WEIGHT`; a path that exists under the whole text wins.

    >>> split_weight("style=0.8")
    ('style', 0.8)
    """
    head, mark, tail = text.rpartition("=")
    if not mark or not head or Path(text).exists():
        return text, 1.0
    try:
        weight = float(tail)
    except ValueError:
        return text, 1.0
    return head, check_weight(weight, head)


def check_weight(weight: float, path: object) -> float:
    """Return `weight`; raises `AdapterError` (AT500) unless it is finite."""
    if not math.isfinite(weight):
        raise AdapterError("AT500", f"the weight of {path} must be finite, not {weight}")
    return weight


def as_pairs(adapters: AdapterRef | Sequence[AdapterRef]) -> list[tuple[Path, float]]:
    """Return (path, weight) for one adapter or several, given as paths, `path=weight` or pairs."""
    many: Sequence[AdapterRef]
    if isinstance(adapters, str | Path):
        many = [adapters]
    elif (
        isinstance(adapters, tuple) and len(adapters) == 2 and isinstance(adapters[1], int | float)
    ):
        many = [(adapters[0], float(adapters[1]))]
    else:
        many = list(adapters)
    pairs = []
    for item in many:
        if isinstance(item, tuple):
            pairs.append((Path(item[0]), check_weight(float(item[1]), item[0])))
        else:
            path, weight = split_weight(str(item))
            pairs.append((Path(path), weight))
    if not pairs:
        raise AdapterError("AT500", "no adapter is given")
    return pairs
