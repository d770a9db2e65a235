"""Candidates as recipes: what is scored is made by the same road as the winner, and again later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptertools.algebra.methods.registry import check_count, check_params, get_method
from adaptertools.base.checkpoint import open_base
from adaptertools.base.identity import identify
from adaptertools.conversion.output import config_bytes
from adaptertools.errors import AdapterError, SourceError
from adaptertools.formats.model import UNKNOWN, Model, read_model
from adaptertools.formats.opening import open_adapter
from adaptertools.recipes.recipe import read_recipe
from adaptertools.recipes.running import Kitchen, Progress
from adaptertools.searching.space import Point, Space
from adaptertools.store.place import check_place
from adaptertools.store.read import sha256

RECIPE = "recipe.yaml"
ADAPTER = "adapter"


@dataclass(frozen=True, slots=True)
class Making:
    """What every candidate has in common; `compose` makes adapters, else models are made.

    `combine`, `params` and `rule` are a method of compose and its rank rule; where one is given (or
    searched) and models are made, a candidate is composed first, and that is merged.
    """

    base: Path
    adapters: tuple[Path, ...]
    compose: bool = False
    combine: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    rule: tuple[str, float] | None = None
    to: str = ""
    dtype: str = "auto"
    lossy: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def reduces(self, space: Space) -> bool:
        """Say whether candidates are composed by a method or to a rank, not merely added."""
        searched = space.density is not None or space.rank is not None
        return bool(searched or self.combine or self.rule or self.params)

    def check(self, space: Space) -> None:
        """Raise `AdapterError` (AT500) for options that contradict each other or the space."""
        if space.rank and self.rule:
            raise AdapterError("AT500", "a rank rule is given, and the rank is searched too")
        if self.to and not self.compose:
            raise AdapterError("AT500", "a format is for adapters", hint="give --compose too")
        if not self.combine and (self.params or space.density):
            what = "a density" if space.density else "a parameter"
            hint = "give --combine METHOD, e.g. ties"
            raise AdapterError("AT500", f"{what} belongs to a method", hint=hint)
        if self.combine:
            method = get_method(self.combine)
            check_count(method, len(self.adapters))
            density = {"density": space.density.high} if space.density else {}
            check_params(method, {**self.params, **density})

    def recipe(self, point: Point, space: Space, adapter: str = "") -> dict[str, Any]:
        """Return the recipe of a candidate; `adapter` is where one that is only on the way goes."""
        adapters = [
            {"path": str(path.absolute()), "weight": weight}
            for path, weight in zip(self.adapters, point.weights, strict=True)
        ]
        base = str(self.base.absolute())
        more: dict[str, Any] = {"dtype": self.dtype, "given": dict(self.given)}
        if not self.compose and not self.reduces(space):
            merge = {"base": base, "adapters": adapters, **more}
            return {"schema": 1, "steps": [{"merge": _kept(merge)}]}
        density = {} if point.density is None else {"density": point.density}
        rule = ("rank", point.rank) if point.rank is not None else self.rule
        compose = {
            "adapters": adapters,
            "method": self.combine,
            "params": {**self.params, **density},
            "rule": None if rule is None else dict([rule]),
            "base": base if self.model is not UNKNOWN else None,
            "to": self.to,
            "lossy": self.lossy or None,
            "seed": self.seed or None,
            "given": dict(self.given),
        }
        if self.compose:
            return {"schema": 1, "steps": [{"compose": _kept({**compose, "dtype": self.dtype})}]}
        place = f"${{{ADAPTER}}}"
        merge = {"base": base, "adapters": [place], "dtype": self.dtype}
        steps = [{"compose": _kept({**compose, "out": place})}, {"merge": _kept(merge)}]
        return {"schema": 1, "vars": {ADAPTER: adapter}, "steps": steps}

    @property
    def model(self) -> Model:
        """What the base's config says of names; a bare file of tensors says nothing."""
        try:
            return read_model(self.base)
        except SourceError as error:
            if error.code != "AT135":
                raise
            return UNKNOWN

    def check_out(self, out: Path, overwrite: bool) -> None:
        """Raise `OutputError` where a model cannot be written to `out`; compose checks its own."""
        if not self.compose:
            base = open_base(self.base)
            inputs = [self.base, base.root, *self.adapters]
            file, end = base.is_file, base.ending
            check_place(out, inputs, is_file=file, ending=end, overwrite=overwrite)

    def inputs_hash(self) -> str:
        """Return a hash of everything that is read, wherever it lies."""
        model = self.model
        facts: list[Any] = []
        for path in self.adapters:
            adapter = open_adapter(path, model=model, given=self.given, accept=("residual_base",))
            facts.append({Path(file).name: sha256(Path(file)) for file in adapter.files})
        if self.compose:
            facts.append(dict(model.config))
        else:
            shards = open_base(self.base).shards
            facts.append({shard.file.name: identify(shard.file) for shard in shards})
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return what is the same for all candidates, without places."""
        made = {
            "made": "adapter" if self.compose else "model",
            "combine": self.combine,
            "params": dict(self.params),
            "rule": None if self.rule is None else dict([self.rule]),
            "to": self.to,
            "dtype": self.dtype,
            "lossy": self.lossy or None,
            "given": dict(self.given),
        }
        return _kept(made)


def _kept(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, {}, "", "auto")}


def write_recipe(document: Mapping[str, Any], path: Path) -> None:
    """Write a recipe whole or not at all."""
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_bytes(config_bytes(RECIPE, document))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def cook(
    recipe: Path,
    out: Path,
    jobs: int,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda done, total: None,
) -> None:
    """Run the recipe at this path, with its last result at `out`."""
    read = read_recipe(recipe)
    Kitchen(read.folder, out, overwrite, dry_run, jobs, progress).cook(read)
