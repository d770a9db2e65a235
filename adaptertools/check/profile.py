"""Serving profiles: what a server does with an adapter, as data (`schemas/profiles/`)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from adaptertools import schemas
from adaptertools.errors import AdapterError, Severity, SpecError

# What a server does where a rule applies:
#   refuse   it does not load or run the adapter
#   wrong    it runs, but not what was trained: another strength, or a part left out
#   depends  the model served, an option at its start, or its version decides
#   ignored  it leaves something out that changes nothing
Effect = Literal["refuse", "wrong", "depends", "ignored"]

# What `convert --for` can do about it, without any change of meaning, or else refuses by name:
#   fold_scale  put each module's whole scale into its B, so that plain alpha/r is right
#   pad_rank    append rows and columns of zeros to A and B
#   drop        leave the tensors out, where they change nothing
#   convert     write the adapter anew in the format `to`
#   none        nothing
Repair = Literal["fold_scale", "pad_rank", "drop", "convert", "none"]

EFFECTS: tuple[Effect, ...] = get_args(Effect)
REPAIRS: tuple[Repair, ...] = get_args(Repair)
_SEVERITIES: Mapping[Effect, Severity] = {
    "refuse": "error",
    "wrong": "error",
    "depends": "warning",
    "ignored": "warning",
}


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing a server cannot do: when it applies, what the server does, and the repair.

    `when` names a predicate of `check/serving.py`, `params` are its parameters; the rule is for
    adapters of the formats `only_for`, or of all. `until` is the last version that does so. `to` is
    the format that `convert` writes; `instead` is the next step where there is no repair.
    """

    when: str
    does: Effect
    says: str
    repair: Repair
    params: Mapping[str, Any] = field(default_factory=dict)
    only_for: tuple[str, ...] = ()
    until: str | None = None
    to: str | None = None
    instead: str = ""
    source: str = ""

    @property
    def severity(self) -> Severity:
        """An error where it refuses or is wrong; a warning where newer versions are right."""
        return "warning" if self.until else _SEVERITIES[self.does]


@dataclass(frozen=True, slots=True)
class Profile:
    """A server: the version whose source was read (`checked`), and its rules."""

    id: str
    title: str
    checked: str
    rules: tuple[Rule, ...]

    def rules_for(self, when: str) -> tuple[Rule, ...]:
        """Return the rules of one predicate."""
        return tuple(rule for rule in self.rules if rule.when == when)


def profile_names() -> tuple[str, ...]:
    """Return the ids of the profiles under `schemas/profiles/`."""
    return tuple(sorted(path.stem for path in _folder().glob("*.toml")))


def profiles() -> tuple[Profile, ...]:
    """Return every profile under `schemas/profiles/`, by id."""
    return tuple(map(load_profile, profile_names()))


def load_profile(name: str) -> Profile:
    """Return the profile called `name`; raises `AdapterError` (AT500) with a near miss.

    >>> load_profile("vllm").title
    'vLLM'
    """
    known = profile_names()
    if name in known:
        return _load(_folder() / f"{name}.toml")
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    raise AdapterError("AT500", f"no serving profile is called {name!r}", hint=hint)


def check_profile(path: Path) -> Profile:
    """Load a profile file and check all of it; raises `SpecError` (AT291, AT297)."""
    import jsonschema

    validator = jsonschema.Draft202012Validator(schemas.json_schema("profile"))
    for error in validator.iter_errors(schemas.read_toml(path)):
        raise SpecError("AT297", error.message, file=path, key=error.json_path)
    return _load(path)


def _folder() -> Path:
    return schemas.root() / "profiles"


@cache
def _load(path: Path) -> Profile:
    raw = schemas.read_toml(path)
    try:
        return Profile(raw["id"], raw["title"], raw["checked"], tuple(map(_rule, raw["rule"])))
    except (KeyError, TypeError) as error:
        raise SpecError("AT297", f"the profile is malformed: {error}", file=path) from None


def _rule(raw: Mapping[str, Any]) -> Rule:
    fields = {"params" if name == "with" else name: value for name, value in raw.items()}
    return Rule(**{**fields, "only_for": tuple(raw.get("only_for", ()))})
