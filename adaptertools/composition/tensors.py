"""Two checkpoints, tensor by tensor: what is equal, and how each that is not can be said.

| code | condition |
|---|---|
| AT650 | a layout other than Hugging Face's |
| AT651 | a tensor that only one of the two has |
| AT652 | experts in one tensor |
| AT653 | different shapes, or integers that differ |
| AT654 | vocabularies of different sizes, and `--vocab` says not what to do |
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from adaptertools import schemas
from adaptertools.adapter.family import Expected
from adaptertools.adapter.model import Target
from adaptertools.base.checkpoint import Checkpoint
from adaptertools.base.heads import head_name, is_embedding
from adaptertools.base.quantised import refuse_quantised
from adaptertools.base.tied import find_tied
from adaptertools.errors import AdapterError, Finding, Where
from adaptertools.store.dtypes import dtype_of, nbytes
from adaptertools.store.slot import Slot

How = Literal["low rank", "embedding", "full", "skipped"]
Embeddings = Literal["full", "lora", "skip"]
Vocab = Literal["refuse", "truncate", "extend"]
_EMBEDDINGS = ("wte", "wpe", "shared", "tok_embeddings")


@dataclass(frozen=True, slots=True)
class Choice:
    """Which tensors, and what becomes of embeddings and of vocabularies of different sizes."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    embeddings: Embeddings = "full"
    vocab: Vocab = "refuse"

    def wants(self, name: str) -> bool:
        """Say whether a tensor is to be looked at: globs are of its name, or of its module's."""
        names = (name, name.rpartition(".")[0])
        chosen = not self.include or _any(names, self.include)
        return chosen and not _any(names, self.exclude)


def _any(names: Sequence[str], globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for name in names for glob in globs)


@dataclass(frozen=True, slots=True)
class Pair:
    """One tensor of both; `how` it is said where it differs. `transposed`: it is stored `in out`.

    `twin` is the name of the head that shares this tensor in both.
    """

    name: str
    target: Target
    how: How
    base: Slot
    tuned: Slot
    transposed: bool = False
    twin: Target | None = None


class Matching:
    """Pairs the tensors of two checkpoints by their names; every fault is in `findings`."""

    def __init__(self, base: Checkpoint, tuned: Checkpoint, choice: Choice) -> None:
        self.base, self.tuned, self.choice = base, tuned, choice
        self.findings: list[Finding] = []
        self.notes: list[Finding] = []
        self.left_out: list[str] = []
        for one in (base, tuned):
            if one.layout.kept:
                hint = "bring both to one: 'adaptertools convert REF --to hf -o OUT'"
                told = f"is laid out as {one.layout.title}; extract reads Hugging Face's layout"
                raise AdapterError("AT650", told, file=one.root, hint=hint)
            refuse_quantised(one)
        self.head = head_name(base)
        self.ours, self.theirs, self.shared = self._with_heads()

    def _with_heads(self) -> tuple[dict[str, Slot], dict[str, Slot], str | None]:
        """Return the tensors of both, tied heads as their embedding; and one tied in both."""
        ours, theirs = dict(self.base.slots), dict(self.tuned.slots)
        pairs = [find_tied(one, str) for one in (self.base, self.tuned)]
        for pair, one, slots in zip(pairs, (self.base, self.tuned), (ours, theirs), strict=True):
            if pair is not None and pair.agrees(one):
                slots[pair.head] = slots[pair.embedding]
        first, second = pairs
        if first is None or first.head not in theirs:
            return ours, theirs, None
        both = second is not None and second.agrees(self.tuned) and first.agrees(self.base)
        if both and first.embedding in theirs:
            del ours[first.head], theirs[first.head]
            return ours, theirs, first.embedding
        if first.agrees(self.base):
            title = "it is tied to the embedding in the base, and not in the tuned model"
            where = Where(str(self.tuned.root), first.head)
            self.notes.append(Finding("AT657", "warning", title, where))
        return ours, theirs, None

    def run(self) -> list[Pair]:
        """Return a pair for every tensor that both have and that is wanted."""
        pairs = []
        for name in dict.fromkeys((*self.ours, *self.theirs)):
            if not self.choice.wants(name):
                self.left_out.append(name)
            elif name not in self.ours or name not in self.theirs:
                one, lacking = (
                    (self.base, self.tuned) if name in self.ours else (self.tuned, self.base)
                )
                title = f"only {one.root} has it, {lacking.root} does not"
                self._find("AT651", title, name, f"--exclude '{name}' leaves it out")
            elif (pair := self._pair(name)) is not None:
                pairs.append(pair)
        return pairs

    def _find(self, code: str, title: str, name: str, hint: str = "") -> None:
        where = Where(str(self.tuned.root), name)
        self.findings.append(Finding(code, "error", title, where, hint=hint))

    def _pair(self, name: str) -> Pair | None:
        base, tuned = self.ours[name], self.theirs[name]
        module, _, param = name.rpartition(".")
        expected = self._expected(module)
        embedding = self._is_embedding(name, expected)
        vocabulary = embedding or self._is_head(module)
        how: How = "full"
        if param == "weight" and len(tuned.shape) >= 2:
            how = "embedding" if embedding else "low rank"
        if vocabulary and self.choice.embeddings != "lora":
            how = "skipped" if self.choice.embeddings == "skip" else "full"
        if base.shape != tuned.shape:
            cut = self._resized(name, base, tuned, vocabulary=vocabulary)
            if cut is None:
                return None
            tuned, how = cut, "full" if self.choice.vocab == "extend" and how != "skipped" else how
        floating = dtype_of(base.dtype).floating and dtype_of(tuned.dtype).floating
        if not floating and base.dtype != tuned.dtype:
            title = f"is {base.dtype} in the base and {tuned.dtype} in the tuned model"
            self._find("AT653", title, name, f"--exclude '{name}' leaves it out")
            return None
        transposed = how == "low rank" and self._is_transposed(name, module, expected)
        pair = Pair(name, Target(self._canonical(module), param), how, base, tuned, transposed)
        if name == self.shared:
            head, _, head_param = self.head.rpartition(".")
            pair = replace(pair, twin=Target(self._canonical(head), head_param))
        return pair

    def check(self, pair: Pair) -> bool:
        """Say whether a pair that differs can be said; what cannot is a finding."""
        module = pair.name.rpartition(".")[0]
        expected = self._expected(module) or self._expected(pair.name)
        stacked = expected is not None and expected.experts is not None
        if len(pair.tuned.shape) >= 3 and (stacked or pair.target.param != "weight"):
            title = "experts in one tensor differ, which extract cannot factor yet"
            self._find("AT652", title, pair.name, f"--exclude '{pair.name}' leaves it out")
            return False
        if not dtype_of(pair.tuned.dtype).floating:
            title = f"holds {pair.tuned.dtype}, and differs"
            self._find("AT653", title, pair.name, f"--exclude '{pair.name}' leaves it out")
            return False
        return True

    def _expected(self, module: str) -> Expected | None:
        family = self.base.family
        return family.expected(module, self.base.sizes) if family else None

    def _is_embedding(self, name: str, expected: Expected | None) -> bool:
        if expected is not None:
            return expected.kind == "embedding"
        last = name.rpartition(".")[0].rpartition(".")[2]
        return is_embedding(self.base, name) or last in _EMBEDDINGS or "embed" in last

    def _is_head(self, module: str) -> bool:
        return f".{module}".endswith(f".{self.head.rpartition('.')[0]}")

    def _is_transposed(self, name: str, module: str, expected: Expected | None) -> bool:
        """Say whether a weight is stored `in out` (transformers' Conv1D)."""
        if len(self.ours[name].shape) != 2:
            return False
        if expected is not None:
            return expected.layout.endswith("in out")
        conv1d: Sequence[str] = schemas.table("names")["conv1d_types"]
        return self.base.config.get("model_type") in conv1d and not self._is_head(module)

    def _canonical(self, module: str) -> str:
        """Return what the model's class calls a module that the file names without a root."""
        model = self.base.model
        same = model.same_name(module)
        return model.rooted(same) if same.endswith(f".{module}") else module

    def _resized(self, name: str, base: Slot, tuned: Slot, *, vocabulary: bool) -> Slot | None:
        """Return the tuned tensor, or the rows of it that the base has too."""
        if not vocabulary or base.shape[1:] != tuned.shape[1:] or not base.shape:
            title = f"is {list(base.shape)} in the base, {list(tuned.shape)} in the tuned model"
            self._find("AT653", title, name, f"--exclude '{name}' leaves it out")
            return None
        rows, has = base.shape[0], tuned.shape[0]
        told = f"has {has} rows, the base {rows}"
        if self.choice.vocab == "refuse":
            hint = "--vocab extend stores the tuned one in full, --vocab truncate drops new rows"
            self._find("AT654", told, name, hint)
            return None
        if self.choice.vocab == "extend":
            return tuned
        if has < rows or not tuned.plain:
            self._find("AT654", f"{told}: nothing can be dropped", name, "use --vocab extend")
            return None
        shape = (rows, *tuned.shape[1:])
        return replace(tuned, shape=shape, size=nbytes(tuned.dtype, prod(shape)))


def unused(choice: Choice, names: Mapping[str, Slot]) -> list[str]:
    """Return the globs that match no tensor: slips, not wishes."""
    globs = (*choice.include, *choice.exclude)
    return [
        glob
        for glob in globs
        if not any(_any((name, name.rpartition(".")[0]), [glob]) for name in names)
    ]
