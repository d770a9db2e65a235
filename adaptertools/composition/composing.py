"""The public `compose`: one call from files to a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from adaptertools.base.options import AdapterRef, as_pairs
from adaptertools.composition.combine import Recipe
from adaptertools.composition.compose import Composition, CompositionResult
from adaptertools.composition.reduce import Reduction
from adaptertools.composition.weights import parse_weights
from adaptertools.errors import AdapterError
from adaptertools.store.dtypes import dtype_name
from adaptertools.store.threads import available_cores

RULES = ("rank", "energy", "fro", "sum", "ratio", "sv_min", "max_error")


def compose(
    adapters: AdapterRef | Sequence[AdapterRef],
    out: str | Path,
    *,
    method: str | None = None,
    params: Mapping[str, Any] | None = None,
    rule: tuple[str, float] | None = None,
    weights: str = "",
    vectors: str = "linear",
    last_wins: bool = False,
    seed: int = 0,
    split: str = "balanced",
    compat: str | None = None,
    to: str | None = None,
    base: str | Path | None = None,
    dtype: str = "auto",
    lossy: bool = False,
    overwrite: bool = False,
    jobs: int | None = None,
    specs: Sequence[str | Path] = (),
    given: Mapping[str, Any] | None = None,
) -> CompositionResult:
    """Compose adapters (paths, `path=weight` or pairs) into one adapter, written to `out`.

    Without `method` and `rule` the sum is exact, by concatenating ranks. `rule` is one of `RULES`
    with its value; `compat` "peft" works on factors as PEFT does. `weights` are factors by module
    (`layers.0-7=0.2,*.mlp.*=1.3`). `base` tells names and head counts where a format has its own.
    Raises `AdapterError`; then nothing is left.
    """
    job = composition(
        as_pairs(adapters),
        Path(out),
        method=method,
        params=params,
        rule=rule,
        weights=weights,
        vectors=vectors,
        last_wins=last_wins,
        seed=seed,
        split=split,
        compat=compat,
        dtype=dtype,
    )
    job.to, job.base = to or "", None if base is None else Path(base)
    if jobs is not None and jobs < 1:
        raise AdapterError("AT500", f"jobs must be at least 1, not {jobs}")
    job.lossy, job.overwrite, job.jobs = lossy, overwrite, jobs or available_cores()
    job.specs, job.given = tuple(Path(spec) for spec in specs), given
    return job.run(job.plan())


def composition(
    adapters: Sequence[tuple[Path, float]],
    out: Path,
    *,
    method: str | None = None,
    params: Mapping[str, Any] | None = None,
    rule: tuple[str, float] | None = None,
    weights: str = "",
    vectors: str = "linear",
    last_wins: bool = False,
    seed: int = 0,
    split: str = "balanced",
    compat: str | None = None,
    dtype: str = "auto",
) -> Composition:
    """Return a composition of these adapters; raises `AdapterError` (AT500) for what is not one."""
    if rule is not None and rule[0] not in RULES:
        raise AdapterError("AT500", f"no rank rule is called {rule[0]!r}", hint=", ".join(RULES))
    if vectors not in ("linear", "product"):
        raise AdapterError("AT500", f"vectors are composed linear or product, not {vectors!r}")
    if split not in ("balanced", "up", "down"):
        raise AdapterError("AT500", f"σ is split balanced, up or down, not {split!r}")
    if compat not in (None, "peft"):
        raise AdapterError("AT500", f"results can be like PEFT's, not like {compat!r}")
    if rule is not None:
        from adaptertools.composition.reduce import check_rule

        check_rule(rule)
    reduction = None
    if method not in (None, "exact") or rule is not None or compat:
        plain = "cat" if compat else "linear"
        chosen = plain if method in (None, "exact") else str(method)
        like: Literal["", "peft"] = "peft" if compat == "peft" else ""
        reduction = Reduction(chosen, params or {}, rule, seed, split=split, compat=like)
    elif params:
        raise AdapterError("AT500", "parameters belong to a method", hint="give --method")
    recipe = Recipe(reduction, vectors, parse_weights(weights), last_wins)
    stored = dtype if dtype == "auto" else dtype_name(dtype)
    told = {
        "method": method,
        "params": dict(params or {}),
        "rule": None if rule is None else {rule[0]: _number(rule[1])},
        "weights": weights,
        "vectors": None if vectors == "linear" else vectors,
        "last_wins": last_wins or None,
        "seed": seed or None,
        "split": None if split == "balanced" else split,
        "compat": compat,
    }
    return Composition(adapters, out, recipe, dtype=stored, told=told)


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value
