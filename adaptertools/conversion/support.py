"""What a format cannot hold: each update is kept, changed without loss, dropped, or refused."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from adaptertools.adapter.model import LowRank, Replace, Scaling, Target, Update
from adaptertools.adapter.naming import Naming
from adaptertools.conversion.report import Change, refusal
from adaptertools.conversion.values import gated, product, scaled
from adaptertools.errors import AdapterError, Finding, Where
from adaptertools.formats.factors import take
from adaptertools.formats.model import Model
from adaptertools.formats.spec import FormatSpec


@dataclass(slots=True)
class Support:
    """Checks updates against a target format; what is kept is yielded by `kept`."""

    spec: FormatSpec
    model: Model
    naming: Naming
    lossy: bool = False
    findings: list[Finding] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    _refused: dict[tuple[str, str], list[Update]] = field(default_factory=dict)
    _lost: dict[str, list[Update]] = field(default_factory=dict)

    def kept(self, updates: Iterable[Update]) -> list[Update]:
        """Return what the format can hold of the updates, as it can hold it."""
        found = [one for update in updates for one in self._pieces(update)]
        kept = [done for update in found if (done := self._one(update)) is not None]
        kept = self._multiplied(kept)
        self._check_magnitudes(kept)
        for (code, title), refused in self._refused.items():
            self.findings.append(refusal(code, title, refused, self._hint(code)))
        for title, lost in self._lost.items():
            self.changes.append(Change("lost", title, tuple(u.target.name for u in lost)))
        return kept

    def _check_magnitudes(self, kept: list[Update]) -> None:
        """Refuse DoRA on some modules only: a config switches it on for all of them."""
        low_rank = [u for u in kept if isinstance(u, LowRank) and u.experts is None]
        plain = [u for u in low_rank if u.magnitude is None]
        if plain and len(plain) < len(low_rank):
            title = f"{self.spec.title} has DoRA for all modules or for none; these have none"
            for update in plain:
                self._refuse("AT250", title, update)

    def _multiplied(self, updates: list[Update]) -> list[Update]:
        """Join two vectors for the outputs of one module to their product."""
        alike: dict[object, list[Update]] = {}
        for update in updates:
            key = (update.target, update.axis) if isinstance(update, Scaling) else id(update)
            alike.setdefault(key, []).append(update)
        return [self._product(group) if len(group) > 1 else group[0] for group in alike.values()]

    def _product(self, updates: list[Update]) -> Update:
        vectors = [u for u in updates if isinstance(u, Scaling)]
        target = vectors[0].target
        title = f"vectors for {target.module} multiplied"
        self.changes.append(Change("folded", title, (target.name,)))
        return replace(vectors[0], vector=product([u.vector for u in vectors]))

    def _hint(self, code: str) -> str:
        """Return the next step for a refusal."""
        if code == "AT251":
            return "--lossy leaves them out"
        return "merge it into the base instead, or choose another format"

    def _pieces(self, update: Update) -> Iterator[Update]:
        """Take an update on stacked experts apart, where the format keeps them otherwise."""
        stacked = isinstance(update, LowRank) and update.experts is not None
        if not stacked or any(u.stacked is not None for u in self.spec.updates):
            yield update
            return
        assert isinstance(update, LowRank)
        family = self.model.family
        pieces = family.pieces(update.target.name, self.model.sizes) if family else ()
        if not pieces:
            self._refuse("AT252", "experts in one tensor, of a model that is not known", update)
        for piece in pieces:
            module = piece.tensor.removesuffix(".weight")
            rows = None if piece.rows is None else slice(*piece.rows)
            yield replace(
                update,
                target=Target(module),
                down=take(update.down, 0, piece.index),
                up=take(take(update.up, 0, piece.index), 0, rows),
                weight=("out in",),
                experts=None,
            )

    def _one(self, update: Update) -> Update | None:
        title = self.spec.title
        if update.kind not in {u.kind for u in self.spec.updates}:
            what = {"rows": "single token rows", "replace": "full values", "dense": "differences"}
            told = what.get(update.kind, f"updates of kind {update.kind}")
            return self._cannot(f"{title} holds no {told}", update, droppable=update.kind in what)
        if isinstance(update, LowRank):
            return self._low_rank(update)
        if isinstance(update, Scaling):
            return self._scaling(update)
        if isinstance(update, Replace) and not self.spec.limits.get("full_tensors"):
            return self._cannot(f"{title} holds no full values", update, droppable=True)
        return self._placed(update)

    def _low_rank(self, update: LowRank) -> Update | None:
        title, roles = self.spec.title, self._roles("low_rank")
        if update.gate is not None and "gate" not in roles:
            update = replace(update, up=gated(update.up, update.gate), gate=None)
            self.changes.append(
                Change("folded", "singular values multiplied into up", (update.target.name,))
            )
        if update.magnitude is not None and "magnitude" not in roles:
            return self._cannot(f"{title} holds no DoRA magnitudes", update)
        if (
            update.magnitude is not None
            and update.of_embedding
            and not self._limit("dora_embeddings")
        ):
            return self._cannot(f"{title} has DoRA magnitudes of embeddings by token", update)
        if update.bias is not None and "bias" not in roles:
            self._cannot(f"{title} holds no biases", update, droppable=True)
            update = replace(update, bias=None)
        if len(update.down.shape) > 2 and update.experts is None and not self._limit("conv"):
            return self._cannot(f"{title} holds no convolutions", update)
        if update.of_embedding and not self._limit("embeddings"):
            return self._cannot(f"{title} holds no updates of embeddings", update)
        return self._placed(update)

    def _scaling(self, update: Scaling) -> Update | None:
        axes = {
            name
            for spec in self.spec.updates
            if spec.kind == "scaling"
            for dims in spec.role("vector").dims
            for name in dims.names
        }
        if update.axis not in axes:
            family, config = self.model.family, self.model.config
            twin = family.twin(update.target.module, config) if family else None
            if twin is None:
                axis = "inputs" if update.axis == "in" else "outputs"
                return self._cannot(f"{self.spec.title} does not scale {axis}", update)
            self.changes.append(
                Change(
                    "joined",
                    f"the input of {update.target.module} is scaled as the output of {twin}",
                    (update.target.name,),
                )
            )
            update = replace(update, target=Target(twin), axis="out", weight=("out in",))
        if update.scale != 1.0:
            title = "the scale of vectors multiplied into them"
            self.changes.append(Change("folded", title, (update.target.name,)))
            update = replace(update, vector=scaled(update.vector, update.scale), scale=1.0)
        return self._placed(update)

    def _placed(self, update: Update) -> Update | None:
        module = update.target.module
        allowed: Iterable[str] = self.spec.limits.get("modules", ())
        if allowed and not any(fnmatch.fnmatchcase(module, glob) for glob in allowed):
            return self._cannot(f"{self.spec.title} attaches nothing to these modules", update)
        if isinstance(update, LowRank) and update.experts is not None:
            return update
        try:
            home = self.naming.home(module)
        except AdapterError as error:
            where = Where(None, module)
            self.findings.append(
                Finding(error.code, "error", error.message, where, hint=error.hint)
            )
            return None
        title = self.spec.title
        if home is None:
            return self._cannot(f"{title} has no name for these modules", update)
        if (odd := self._misfit(update)) is not None:
            return self._cannot(odd, update)
        if home.index is not None and not self._holds_stacks():
            return self._cannot(f"{title} holds no experts", update)
        if self._lacks_head(update):
            return self._cannot("the base's head is its embedding, so it has no tensor", update)
        return update

    def _misfit(self, update: Update) -> str | None:
        """Return how an update does not fit the model that was given, None where it does."""
        family, sizes, module = self.model.family, self.model.sizes, update.target.module
        if family is None or family.find(module) is None:
            return None
        expected = family.expected(module, sizes)
        if expected is None:
            return "the model that was given has no such layer"
        wanted = {"out": expected.out, "in": expected.in_}
        has: dict[str, int] = {}
        if isinstance(update, LowRank) and len(update.down.shape) == 2:
            has = {"out": update.up.shape[0], "in": update.down.shape[1]}
        elif isinstance(update, Scaling):
            has = {update.axis: update.vector.shape[0]}
        grown = (None, sizes.get("vocab"), sizes.get("labels"))  # an adapter may have grown these
        odd = [axis for axis, size in has.items() if wanted[axis] not in (*grown, size)]
        told = ", ".join(f"{axis} {has[axis]} and not {wanted[axis]}" for axis in odd)
        return f"the model that was given has other sizes here ({told})" if odd else None

    def _holds_stacks(self) -> bool:
        downs = (u.role("down") for u in self.spec.updates if u.kind == "low_rank")
        return any("experts" in dims.names for role in downs for dims in role.dims)

    def _lacks_head(self, update: Update) -> bool:
        """Say whether the update is of an output head that the base has no tensor for (tied)."""
        family = self.model.family
        if family is None or self.spec.scheme == "hf" or not family.is_tied(self.model.config):
            return False
        return self.model.same_name(update.target.module) + ".weight" == family.tied_head

    def _roles(self, kind: str) -> set[str]:
        return {role.name for u in self.spec.updates if u.kind == kind for role in u.roles}

    def _limit(self, name: str) -> bool:
        return bool(self.spec.limits.get(name))

    def _cannot(self, title: str, update: Update, *, droppable: bool = False) -> Update | None:
        """Note that an update cannot be held, or with --lossy is lost; returns nothing."""
        if droppable and self.lossy:
            self._lost.setdefault(title, []).append(update)
        else:
            self._refuse("AT251" if droppable else "AT250", title, update)
        return None

    def _refuse(self, code: str, title: str, update: Update) -> None:
        self._refused.setdefault((code, title), []).append(update)
