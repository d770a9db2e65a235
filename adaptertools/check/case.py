"""One adapter before a server's rules: what the predicates ask about it, and what they answer."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from adaptertools import schemas
from adaptertools.adapter.families import detect_family
from adaptertools.adapter.model import Adapter, LowRank, Replace, Update, factors

_LAYER = re.compile(r"(?:^|.*?\.)(\d+)\.")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Hit:
    """One place where a predicate holds: a tensor's key, or a field of the config (`in_config`).

    `unknown` says that it cannot be told without the base.
    """

    key: str | None
    found: str
    expected: str = ""
    in_config: bool = False
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """An adapter, the parameters of a rule, and the base's config where it is known."""

    adapter: Adapter
    params: Mapping[str, Any] = field(default_factory=dict)
    base: Mapping[str, Any] | None = None

    @property
    def low_rank(self) -> Iterator[LowRank]:
        """The low-rank updates, in order."""
        return (u for u in self.adapter.updates if isinstance(u, LowRank))

    @property
    def full(self) -> Iterator[Replace]:
        """The tensors that replace one of the base."""
        return (u for u in self.adapter.updates if isinstance(u, Replace))

    def names(self, param: str) -> tuple[str, ...]:
        """A parameter that is a list of names; none given is an empty one."""
        return tuple(self.params.get(param, ()))

    def size(self, *fields: str) -> int | None:
        """The first of these sizes in the base's config, its text model's before its own."""
        for level in self._levels():
            for name in fields:
                value = level.get(name)
                if isinstance(value, int) and not isinstance(value, bool):
                    return value
        return None

    @property
    def tied(self) -> bool | None:
        """Whether the base's output head is its input embedding; None where it is not known."""
        if self.base is None:
            return None
        if (family := detect_family(self.base)) is not None:
            return family.is_tied(self.base)
        return any(level.get("tie_word_embeddings") is True for level in self._levels())

    def _levels(self) -> Iterator[Mapping[str, Any]]:
        if self.base is not None:
            if isinstance(inner := self.base.get("text_config"), Mapping):
                yield inner
            yield self.base


def hit(update: Update, found: str = "", expected: str = "") -> Hit:
    """Return the hit at an update's first tensor; without `found`, it names the kind of module."""
    key = next(factors(update)).key
    return Hit(key, found or last(update.target.module), expected)


def last(module: str) -> str:
    """Return the last part of a module path.

    >>> last("model.layers.0.self_attn.q_proj")
    'q_proj'
    """
    return module.rpartition(".")[2]


def like(name: str, patterns: Iterable[str]) -> bool:
    """Say whether a name fits one of some patterns with * and ?."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def layer(module: str) -> tuple[str, int, str] | None:
    """Split a path at its layer's number; the kind has experts' numbers as `*`.

    >>> layer("model.layers.3.mlp.experts.7.w1")
    ('model.layers', 3, 'mlp.experts.*.w1')
    """
    found = _LAYER.match(module)
    if found is None:
        return None
    return module[: found.start(1)].rstrip("."), int(found[1]), alike(module[found.end() :])


def alike(path: str) -> str:
    """Return a dotted path with its numbers as `*`.

    >>> alike("layers.0.q_proj")
    'layers.*.q_proj'
    """
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def expert(module: str) -> tuple[str, int, str] | None:
    """Split the path of a module inside one expert: the experts' path, the number, the rest.

    >>> expert("model.layers.3.mlp.experts.7.w1")
    ('model.layers.3.mlp.experts', 7, 'w1')
    """
    found = _EXPERT.search(module)
    if found is None:
        return None
    return module[: found.start(1) - 1], int(found[1]), module[found.end() :]


def is_embedding(update: LowRank) -> bool:
    """Say whether an update is on an input embedding, which is read by rows."""
    names = schemas.table("names")["tied_embeddings"]
    module = f".{update.target.name}"
    return update.of_embedding or any(module.endswith(f".{n}") for n in names)


def is_head(update: LowRank) -> bool:
    """Say whether an update is on the output head."""
    head: str = schemas.table("names")["tied_head"]
    return f".{update.target.name}".endswith(f".{head}")


def is_copy(update: Replace) -> bool:
    """Say whether a full tensor is the base's own weight beside an update."""
    return ".base_layer." in update.value.key
