"""Making a plan: every update placed on base tensors, shapes checked, every fault collected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from adaptertools import schemas
from adaptertools.adapter.model import Adapter, Dense, LowRank, Replace, Rows, Scaling, Update
from adaptertools.algebra.step import Step, matrix_shape
from adaptertools.base import heads, tied
from adaptertools.base.checkpoint import Checkpoint
from adaptertools.base.faults import conflict, shape_error
from adaptertools.base.layout import choose_layout, groups_of
from adaptertools.base.localise import Localiser
from adaptertools.base.match import Matcher, Place
from adaptertools.base.plan import TensorPlan
from adaptertools.errors import Finding, FormatError, MergeError, Severity, Where
from adaptertools.store.dtypes import dtype_of
from adaptertools.store.read import same_bytes


class Planner:
    """Places the updates of several adapters, in order, on the tensors of one base."""

    def __init__(
        self, base: Checkpoint, adapters: Sequence[tuple[Adapter, float]], dtype: str = "auto"
    ) -> None:
        self.base, self.adapters = base, adapters
        self.matcher = Localiser(base) if base.layout.kept else Matcher(base)
        self.findings: list[Finding] = []
        self.config_changes: dict[str, Any] = {}
        self.targets = 0
        self.tensors = {name: self._untouched(name, dtype) for name in base.slots}
        self.added: list[str] = []
        self.pair = tied.find_tied(base, self.matcher.name_of)
        self.choice = self._tied_choice()

    def run(self) -> None:
        """Place every update, full values before changes; faults are in `findings` afterwards."""
        order = [(a, u, w) for a, w in self.adapters for u in a.updates]
        order.sort(key=lambda item: not isinstance(item[1], Replace))
        for adapter, update, weight in order:
            self.targets += 1
            try:
                self._place(adapter, update, weight)
            except (MergeError, FormatError) as error:
                self._fault(error, adapter)
        self.findings += heads.check_vocabulary(self.base, self.tensors)
        if not any(t.steps for t in self.tensors.values()) and not self.errors:
            self._find("AT406", "error", "no update applies to the base: nothing would change")

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]

    def _untouched(self, name: str, dtype: str) -> TensorPlan:
        slot = self.base.slots[name]
        stored = slot.dtype if dtype == "auto" or not dtype_of(slot.dtype).floating else dtype
        return TensorPlan(name, stored, slot.shape, slot, matrix=matrix_shape("", slot.shape))

    def _tied_choice(self) -> tied.TiedChoice:
        if self.pair is None:
            return tied.TiedChoice(untie=False)
        lands_on: dict[int, str] = {}
        for adapter, _ in self.adapters:
            for update in adapter.updates:
                if self.pair.is_head(update):
                    lands_on[id(update)] = self.pair.head
                elif self._lands_on_embedding(update):
                    lands_on[id(update)] = self.pair.embedding
        if lands_on and not self.pair.agrees(self.base):
            self.pair = None
            return tied.TiedChoice(untie=False)
        choice = tied.choose(self.pair, [a for a, _ in self.adapters], lands_on)
        if choice.untie:
            self._untie(self.pair)
        elif choice.same:
            title = "both sides of the tied embedding carry the same update; it is applied once"
            self._find("AT321", "info", title, key=self.pair.embedding)
        return choice

    def _lands_on_embedding(self, update: Update) -> bool:
        assert self.pair is not None
        try:
            return self.matcher.placed(update)[0][1].tensor == self.pair.embedding
        except (MergeError, FormatError):
            return False

    def _untie(self, pair: tied.TiedPair) -> None:
        if not pair.separable:
            title = "it is the output head too, and this base has no place for a head of its own"
            hint = "merge into the base in the Hugging Face layout, then convert it"
            self._find("AT418", "error", title, key=pair.embedding, hint=hint)
            return
        if pair.head not in self.tensors:
            self.tensors[pair.head] = replace(self.tensors[pair.embedding], name=pair.head)
            self.added.append(pair.head)
        self._set_config("tie_word_embeddings", False)
        told = "" if self.base.layout.kept else " and tie_word_embeddings becomes false"
        title = f"the adapter changes one side of the tied {pair.embedding}: {pair.head} is written"
        self._find("AT320", "warning", f"{title} separately{told}", key=pair.head)

    def _set_config(self, field: str, value: Any, where: Any = None) -> None:
        """Change a config field, nested ones too; with `where`, only where it has that value."""
        for holder in () if self.base.layout.kept else ("", "text_config."):
            config: Any = self.base.config.get("text_config") if holder else self.base.config
            if not isinstance(config, dict) or (holder and field not in config):
                continue
            if where is None or config.get(field) == where:
                self.config_changes[holder + field] = value

    def _place(self, adapter: Adapter, update: Update, weight: float) -> None:
        pair = self.pair
        stored = pair is not None and pair.head in self.tensors
        if pair is not None and pair.is_head(update):
            if stored or not self.choice.same:
                self._place_at(update, weight, Place(pair.head if stored else pair.embedding))
            return
        for local, place in self._placed(adapter, update):
            self._place_at(local, weight, place)
            shared = pair is not None and place.tensor == pair.embedding and stored
            if pair is None or not shared or pair.head_replaced_by(adapter):
                continue
            if tied.is_shared(update, adapter):
                self._place_at(update, weight, Place(pair.head))

    def _placed(self, adapter: Adapter, update: Update) -> list[tuple[Update, Place]]:
        try:
            return self.matcher.placed(update)
        except MergeError:
            if isinstance(update, Replace) and self._may_add(adapter, update):
                return [(update, Place(update.target.name))]
            raise

    def _may_add(self, adapter: Adapter, update: Replace) -> bool:
        """Say whether a full value absent from the base is a task head that it may gain."""
        name = update.target.name
        if self.base.layout.kept or name in self.tensors:
            return not self.base.layout.kept
        saved = [s for s in adapter.config.get("modules_to_save") or () if isinstance(s, str)]
        known = [*saved, *schemas.table("names")["task_heads"]]
        if not any(f".{update.target.module}.".find(f".{head}.") >= 0 for head in known):
            return False
        dtype = update.value.dtype
        dtype = self._main_dtype() if dtype_of(dtype).floating else dtype
        shape = update.value.shape
        self.tensors[name] = TensorPlan(name, dtype, shape, None, matrix=matrix_shape("", shape))
        self.added.append(name)
        self._find("AT410", "warning", "the base lacks this tensor; it is added", key=name)
        return True

    def _main_dtype(self) -> str:
        totals: dict[str, int] = {}
        for tensor in self.tensors.values():
            if dtype_of(tensor.dtype).floating:
                totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.matrix[0]
        return max(totals, key=lambda name: totals[name], default="F32")

    def _place_at(self, update: Update, weight: float, place: Place) -> None:
        match update:
            case LowRank() | Scaling():
                self._place_matrix(update, weight, place)
            case Replace():
                self._place_value(update, weight, place)
            case Rows():
                self._place_rows(update, weight, place)
            case Dense():
                shape = self.tensors[place.tensor].shape
                if shape != update.diff.shape:
                    raise shape_error(place.tensor, shape, update.diff.shape)
                self._add(place.tensor, Step(update, weight, ""))

    def _place_matrix(self, update: LowRank | Scaling, weight: float, place: Place) -> None:
        shape = self.tensors[place.tensor].shape
        step = Step(
            update,
            weight,
            choose_layout(self.base, update, place, shape),
            expert=place.expert,
            rows=place.rows,
            at=place.inside[0] * shape[1] + place.inside[1] if place.inside else 0,
            groups=groups_of(update, shape),
        )
        self._add(place.tensor, step)
        if isinstance(update, Scaling):
            bias = self.matcher.sibling(place, "bias") if update.axis == "out" else None
            if bias is not None:
                self._add(bias, Step(update, weight, "", "bias"))
        elif update.bias is not None:
            bias = self.matcher.sibling(place, "bias")
            if bias is None:
                raise MergeError(
                    "AT404",
                    "the adapter trains a bias here, but the base layer has none",
                    key=place.tensor,
                    hint="this part cannot be merged: the base model has no place for a bias",
                )
            if self.tensors[bias].shape != update.bias.shape:
                raise shape_error(bias, self.tensors[bias].shape, update.bias.shape)
            self._add(bias, Step(update, weight, "", "bias"))

    def _place_value(self, update: Replace, weight: float, place: Place) -> None:
        tensor, shape = self.tensors[place.tensor], update.value.shape
        for step in tensor.steps:
            if isinstance(step.update, Replace):
                if not same_bytes(step.update.value.source, update.value.source):
                    raise conflict(place.tensor, "replace it with different values")
                if weight == step.weight == 1:
                    return
        if tensor.source is None and weight != 1:
            raise conflict(place.tensor, "cannot add a part of a tensor that the base lacks", "it")
        if tensor.shape != shape:
            grown = len(shape) == len(tensor.shape) >= 1 and shape[1:] == tensor.shape[1:]
            if not grown or weight != 1 or not self._may_grow(update, place.tensor):
                raise shape_error(place.tensor, tensor.shape, shape)
            self._grow(tensor, shape)
        self._add(place.tensor, Step(update, weight, ""))

    def _may_grow(self, update: Replace, name: str) -> bool:
        saved_with_lora = (
            isinstance(other, LowRank)
            for adapter, _ in self.adapters
            for other in adapter.updates
            if other.target == update.target
        )
        return heads.may_grow(self.base, name) or any(saved_with_lora)

    def _grow(self, tensor: TensorPlan, shape: tuple[int, ...]) -> None:
        """Take a vocabulary of another size from the adapter, and say so in the config."""
        self.tensors[tensor.name] = replace(
            tensor, shape=shape, source=None, matrix=matrix_shape("", shape)
        )
        if heads.is_vocabulary(self.base, tensor.name):
            self._set_config("vocab_size", shape[0], where=tensor.shape[0])
        title = f"resized from {tensor.shape[0]} to {shape[0]} rows by the adapter's full copy"
        self._find("AT322", "warning", title, key=tensor.name)

    def _place_rows(self, update: Rows, weight: float, place: Place) -> None:
        shape = self.tensors[place.tensor].shape
        last = max(update.index, default=-1)
        for step in self.tensors[place.tensor].steps:
            if isinstance(step.update, Rows) and set(step.update.index) & set(update.index):
                raise conflict(place.tensor, "set the same rows")
        if len(shape) != 2 or shape[1] != update.values.shape[1] or last >= shape[0]:
            raise MergeError(
                "AT403",
                f"the base tensor is {list(shape)}, the adapter has rows up to {last} of width "
                f"{update.values.shape[1]}",
                key=place.tensor,
            )
        self._add(place.tensor, Step(update, weight, ""))

    def _add(self, name: str, step: Step) -> None:
        tensor = self.tensors[name]
        layouts = {s.layout for s in tensor.steps if s.layout} | (
            {step.layout} if step.layout else set()
        )
        if len(layouts) > 1:
            raise MergeError(
                "AT403", f"two updates see it as {' and '.join(sorted(layouts))}", key=name
            )
        kind = dtype_of(tensor.dtype)
        if not (kind.floating or kind.block) and not isinstance(step.update, Replace):
            raise MergeError(
                "AT403", f"holds {tensor.dtype}, which cannot be scaled or added to", key=name
            )
        matrix = matrix_shape(next(iter(layouts), ""), tensor.shape)
        self.tensors[name] = replace(tensor, steps=(*tensor.steps, step), matrix=matrix)

    def _fault(self, error: MergeError | FormatError, adapter: Adapter) -> None:
        key = error.where.key
        self._find(
            error.code, "error", error.message, key=key, file=adapter.files[0], hint=error.hint
        )

    def _find(
        self,
        code: str,
        severity: Severity,
        title: str,
        *,
        key: str | None = None,
        file: str | None = None,
        hint: str = "",
    ) -> None:
        where = Where(file or str(self.base.root), key)
        self.findings.append(Finding(code, severity, title, where, hint=hint))
