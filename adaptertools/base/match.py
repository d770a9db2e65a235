"""Where an update lands: from a canonical target to the tensors of one base checkpoint."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from adaptertools import schemas
from adaptertools.adapter.model import Target, Update
from adaptertools.base.checkpoint import Checkpoint
from adaptertools.errors import MergeError
from adaptertools.patterns.template import compile_template

MOST = 4096  # layers or experts: a config that names more than this and than its tensors is absurd
NEAR_MISSES = 8  # looking for a near miss costs milliseconds, and a wrong base misses them all


@dataclass(frozen=True, slots=True)
class Place:
    """A base tensor that holds a target, or a piece of it.

    `expert` and `rows` pick the part of the update that lies there; `inside` is the (expert, row)
    of a larger stacked tensor where the whole update begins.
    """

    tensor: str
    expert: int | None = None
    rows: tuple[int, int] | None = None
    inside: tuple[int, int] | None = None


class Matcher:
    """Finds the places of targets in one base, remembering the renaming that worked last."""

    def __init__(self, base: Checkpoint) -> None:
        self.base = base
        names = schemas.table("names")
        self.roots: list[str] = names["roots"]
        self.renames = [
            (compile_template(r["old"]), compile_template(r["new"])) for r in names["rename"]
        ]
        self.parameters: list[str] = names["parameters"]
        self.renamed: dict[str, str] = {}
        self.misses = 0
        counts = [n for name, n in base.sizes.items() if len(name) == 1]
        self.absurd = any(n > max(MOST, len(base.slots)) for n in counts)

    def placed(self, update: Update) -> list[tuple[Update, Place]]:
        """Return an update for each place where it lies; raises as `places`."""
        return [(update, place) for place in self.places(update.target)]

    def name_of(self, target: str) -> str | None:
        """Return the base's name of a canonical tensor."""
        return target

    def places(self, target: Target) -> tuple[Place, ...]:
        """Return where `target` is; raises `MergeError` (AT401 nowhere, AT402 several)."""
        names = [target.name]
        if target.param == "weight":
            names = [Target(target.module, param).name for param in self.parameters]
        for name in names:
            if found := self._exact(name):
                return found
        candidates = {p: None for name in names for p in self._renamed(name)}
        if len(candidates) > 1:
            told = ", ".join(p[0].tensor for p in candidates)
            raise MergeError("AT402", f"could be any of {told}", key=target.name)
        if not candidates:
            raise self._nowhere(target)
        found = next(iter(candidates))
        self.renamed[target.name] = found[0].tensor
        return found

    def sibling(self, place: Place, param: str) -> str | None:
        """Return the name of another parameter of the same module, if the base has it."""
        module = place.tensor.rpartition(".")[0]
        name = f"{module}.{param}"
        if place.tensor.endswith(".in_proj_weight") and param == "bias":
            name = f"{module}.in_proj_bias"
        return name if name in self.base.slots else None

    def _exact(self, name: str) -> tuple[Place, ...]:
        if name in self.base.slots:
            return (Place(name),)
        family = self.base.family
        if family is None or self.absurd:
            return ()
        pieces = family.pieces(name, self.base.sizes)
        if pieces and all(piece.tensor in self.base.slots for piece in pieces):
            return tuple(Place(p.tensor, p.index, p.rows) for p in pieces)
        holder = family.placed_in(name, self.base.sizes)
        if holder is not None and holder.tensor in self.base.slots:
            if holder.index is None:
                return (Place(holder.tensor),)
            start = holder.rows[0] if holder.rows else 0
            return (Place(holder.tensor, inside=(holder.index, start)),)
        return ()

    def _renamed(self, name: str) -> Iterator[tuple[Place, ...]]:
        """Yield the places under one renaming, or where there is none, under two."""
        once = list(dict.fromkeys(self._spellings(name)))
        found = [places for other in once if (places := self._exact(other))]
        if not found:
            twice = dict.fromkeys(s for other in once for s in self._spellings(other))
            found = [places for other in twice if (places := self._exact(other))]
        yield from found

    def _spellings(self, name: str) -> Iterator[str]:
        for root in self.roots:
            yield root + name
            if name.startswith(root):
                yield name.removeprefix(root)
        for old, new in self.renames:
            for read, write in ((old, new), (new, old)):
                if (fields := read.match(name)) is not None:
                    yield write.format(fields)

    def _nowhere(self, target: Target) -> MergeError:
        self.misses += 1
        names = list(self.base.slots) if self.misses <= NEAR_MISSES else []
        near = difflib.get_close_matches(target.name, names, n=1, cutoff=0.6)
        hint = f"the nearest tensor is {near[0]!r}; " if near else ""
        return MergeError(
            "AT401",
            "the base has no such tensor",
            file=self.base.root,
            key=target.name,
            hint=f"{hint}is this the base the adapter was trained on?",
        )
