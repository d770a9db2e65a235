"""The facts that a written config may state: `"@rank"` in a spec's `[write]`, by a closed list."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptertools import schemas
from adaptertools.adapter.model import Adapter, LowRank, Replace, Rows, Scaling, Update
from adaptertools.conversion.fill import Layers, layer_of
from adaptertools.conversion.scales import Terms
from adaptertools.errors import FormatError, SpecError
from adaptertools.formats.model import Model
from adaptertools.formats.spec import FormatSpec
from adaptertools.formats.targets import covered

OMIT = object()  # a fact that is not known is left out of the config


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known when a config is written; `updates` are canonical, `native` as written."""

    source: Adapter
    spec: FormatSpec
    model: Model
    updates: Sequence[Update]
    native: Sequence[Update]
    terms: Terms
    layers: Layers

    def filled(self, template: Any, name: str = "") -> Any:
        """Return a config template with every fact put in; unknown ones are left out."""
        if isinstance(template, str) and template.startswith("@"):
            return self._fact(template[1:], name)
        if isinstance(template, Mapping):
            if len(template) == 1 and (key := next(iter(template))).startswith("@"):
                return _RULES[key[1:]](self, template[key])
            pairs = ((key, self.filled(value, key)) for key, value in template.items())
            return {key: value for key, value in pairs if value is not OMIT}
        return template

    def _fact(self, fact: str, name: str) -> Any:
        if fact == "kept":
            same = self.spec.config_schema in (None, self.source.config_schema)
            return self.source.config.get(name) if same else None
        if fact not in _FACTS:
            raise SpecError("AT297", f"no fact is called @{fact}", file=self.spec.source)
        return _FACTS[fact](self)

    @property
    def low_rank(self) -> list[LowRank]:
        return [u for u in self.native if isinstance(u, LowRank)]

    @property
    def trained(self) -> list[str]:
        """The modules that a LoRA or (IA)³ update attaches to."""
        found = (
            u.target.module
            for u in self.updates
            if isinstance(u, Scaling) or (isinstance(u, LowRank) and u.experts is None)
        )
        return list(dict.fromkeys(found))

    @property
    def inner(self) -> list[str]:
        """The modules whose inputs a vector scales."""
        return [u.target.module for u in self.updates if isinstance(u, Scaling) and u.axis == "in"]


def targets(facts: Facts) -> list[str] | str:
    """Return the fewest endings of module paths that cover what is trained and nothing else."""
    if _keeps_targets(facts):
        kept: list[str] | str = facts.source.config["target_modules"]
        return kept
    inner = facts.inner
    outer = [module for module in facts.trained if module not in inner]
    return sorted({*endings(facts, outer), *endings(facts, inner)})


def _keeps_targets(facts: Facts) -> bool:
    """Say whether the source's own target_modules still say what is trained."""
    config = facts.source.config
    named = config.get("target_modules")
    if facts.spec.config_schema != facts.source.config_schema or not named:
        return False
    if config.get("layers_to_transform") is not None or not isinstance(named, str | list):
        return False
    return all(covered(named, facts.trained))


def endings(facts: Facts, modules: Sequence[str]) -> list[str]:
    """Return last segments where they mean just these modules in the model, else whole paths."""
    chosen = set(modules)
    if facts.model.family is not None and facts.model.sizes.get("i"):
        every = set(facts.model.family.modules_of(facts.model.sizes)) | chosen
    else:
        every = _all_layers(facts, chosen)
    found = []
    for module in modules:
        last = module.rpartition(".")[2]
        alike = {other for other in every if f".{other}".endswith(f".{last}")}
        found.append(last if alike <= chosen else module)
    return list(dict.fromkeys(found))


def _all_layers(facts: Facts, chosen: set[str]) -> set[str]:
    """Return the modules with these endings in every layer up to the last one that is known."""
    if facts.source.config.get("layers_to_transform") is not None:
        return chosen | {f"?.{module}" for module in chosen}  # of other layers nothing is known
    places = [place for module in chosen if (place := layer_of(module)) is not None]
    kinds = {(prefix, kind) for prefix, _, kind in places}
    numbers = range(facts.layers.count)
    return chosen | {f"{prefix}{n}.{kind}" for prefix, kind in kinds for n in numbers}


def _pattern(facts: Facts, value: Callable[[LowRank], float], usual: float) -> dict[str, float]:
    odd = {_matched(u): value(u) for u in facts.low_rank if value(u) != usual}
    by_value: dict[float, list[str]] = {}
    for module, number in odd.items():
        by_value.setdefault(number, []).append(module)
    return {
        ending: number
        for number, modules in sorted(by_value.items())
        for ending in endings(facts, modules)
    }


def _matched(update: LowRank) -> str:
    """Return the name that PEFT matches patterns against."""
    return update.target.module if update.experts is None else update.target.name


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def _bias(facts: Facts) -> str:
    biases = [u for u in facts.updates if isinstance(u, Replace) and u.target.param == "bias"]
    inside = {u.target.module for u in biases} <= set(facts.trained)
    return "none" if not biases else "lora_only" if inside else "all"


def _saved(facts: Facts) -> list[str] | None:
    touched = set(facts.trained)
    saved = [
        u.target.module.rpartition(".")[2]
        for u in facts.updates
        if isinstance(u, Replace) and u.target.module not in touched and u.target.param != "bias"
    ]
    return sorted(set(saved)) or None


def _token_rows(facts: Facts) -> Any:
    rows = [u for u in facts.updates if isinstance(u, Rows)]
    return {u.target.module.rpartition(".")[2]: list(u.index) for u in rows} or None


def _transposed(facts: Facts) -> bool:
    return any(getattr(u, "transposed", None) is True for u in facts.updates)


def _feedforward(facts: Facts) -> list[str] | str:
    named = facts.source.config.get("feedforward_modules")
    if _keeps_targets(facts) and isinstance(named, str | list):
        return named
    return sorted(endings(facts, facts.inner))


def _layer_keys(facts: Facts) -> list[str]:
    places = [(layer_of(u.target.module), u.target.module) for u in facts.native]
    return sorted({name if place is None else place[2] for place, name in places})


def _last_layers(facts: Facts) -> int:
    """Return how many layers there are from the first one touched; -1 for all of them.

    Raises `FormatError` (AT241) where that depends on the model, which is not known.
    """
    if facts.model.sizes.get("i"):
        return facts.layers.last
    if facts.layers.first == 0:
        return -1
    raise FormatError(
        "AT241",
        "layers are counted from the last one, and how many the model has is not known",
        hint="give --base, or a folder with the base's config.json",
    )


def _names(facts: Facts, table: Mapping[str, Sequence[str]]) -> list[str]:
    return [name for name, globs in table.items() if _any(facts, globs)]


def _any(facts: Facts, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(m, glob) for m in facts.trained for glob in globs)


def _known(value: Any) -> Any:
    return OMIT if value is None else value


def _size(name: str) -> Callable[[Facts], Any]:
    return lambda facts: _known(facts.model.sizes.get(name))


def _task_type(facts: Facts) -> str | None:
    """Return PEFT's word for the task: the adapter's own, else by the class of the base."""
    own = facts.source.config.get("task_type")
    if isinstance(own, str) and facts.spec.config_schema == facts.source.config_schema:
        return own
    classes: list[Any] = facts.model.config.get("architectures") or []
    words: dict[str, str] = schemas.table("names")["task_types"]
    found = (w for end, w in words.items() for name in classes if str(name).endswith(end))
    return next(found, None)


_FACTS: dict[str, Callable[[Facts], Any]] = {
    "null": lambda f: None,
    "base_model": lambda f: _known(f.source.base_model),
    "base_place": lambda f: f.source.base_model or "checkpoints/base",
    "base_revision": lambda f: f.source.base_revision,
    "base_count": lambda f: OMIT if f.source.base_model is None else 1,
    "task_type": _task_type,
    "architecture": lambda f: _known(
        f.model.naming(f.spec.scheme).architecture(f.model.config.get("model_type"))
    ),
    "model_type": lambda f: _known(f.model.config.get("model_type")),
    "rank": lambda f: f.terms.rank,
    "alpha": lambda f: _number(f.terms.alpha),
    "scale": lambda f: f.terms.factor,
    "method": lambda f: "dora" if any(u.magnitude for u in f.low_rank) else "lora",
    "dora": lambda f: any(u.magnitude for u in f.low_rank),
    "lora_bias": lambda f: any(u.bias for u in f.low_rank),
    "bias": _bias,
    "transposed": _transposed,
    "targets": targets,
    "feedforward": _feedforward,
    "rank_pattern": lambda f: _pattern(f, lambda u: u.rank, f.terms.rank),
    "alpha_pattern": lambda f: _pattern(
        f, lambda u: _number(u.alpha or 0.0), _number(f.terms.alpha)
    ),
    "modules_to_save": _saved,
    "token_indices": _token_rows,
    "layers": lambda f: f.layers.count,
    "last_layers": _last_layers,
    "layer_keys": _layer_keys,
    **{name: _size(size) for name, size in (("hidden_size", "hidden"), ("heads", "heads"))},
    **{name: _size(name) for name in ("kv_heads", "head_dim", "inter")},
}
_RULES: dict[str, Callable[[Facts, Any], Any]] = {
    "rule": lambda f, rule: f.terms.rule == rule,
    "names": _names,
    "any": _any,
    "f32": lambda f, value: float(f.filled(value)),
}
