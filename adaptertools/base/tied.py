"""Tied embeddings: one stored tensor that is both the input embedding and the output head.

An adapter that changes only one of the two makes them differ, so the merge must write both and say
so in `config.json`; otherwise loading ties them again and the change leaks into the other side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from adaptertools import schemas
from adaptertools.adapter.model import Adapter, Factor, LowRank, Replace, Rows, Update
from adaptertools.base.checkpoint import Checkpoint
from adaptertools.base.heads import head_name
from adaptertools.store.read import read_bytes, read_tensor, same_bytes


@dataclass(frozen=True, slots=True)
class TiedPair:
    """The names of the shared tensor: the embedding's, and the head's (stored or not).

    `target` is the head's canonical name; a pair that is not `separable` has no place for a head.
    """

    embedding: str
    head: str
    target: str
    separable: bool = True

    def is_head(self, update: Update) -> bool:
        """Say whether an update is one of the head."""
        return f".{update.target.name}".endswith(f".{self.target}")

    def head_replaced_by(self, adapter: Adapter) -> bool:
        """Say whether an adapter brings a full value of the head."""
        updates = (u for u in adapter.updates if isinstance(u, Replace))
        return any(u.target.name.endswith(self.target) for u in updates)

    def agrees(self, base: Checkpoint) -> bool:
        """Compare a stored head with the embedding: one that differs is loaded untied."""
        head = base.slots.get(self.head)
        return head is None or same_bytes(head, base.slots[self.embedding])


def find_tied(base: Checkpoint, name_of: Callable[[str], str | None]) -> TiedPair | None:
    """Return the tied pair of a base, or None where nothing is tied.

    `name_of` gives the base's name of a canonical tensor; a base in a layout of its own is tied
    where it holds no head.
    """
    if base.layout.kept:
        return _without_head(base, name_of)
    names = schemas.table("names")
    family = base.family
    head = head_name(base)
    wanted = [family.tied_to] if family and family.tied_to else names["tied_embeddings"]
    found = [
        n
        for n in base.slots
        for w in wanted
        if n == w or n.endswith(f".{w}") or w.endswith(f".{n}")
    ]
    if len(found) != 1 or not _says_tied(base, head) or not _has_head(base):
        return None
    return TiedPair(found[0], head, head)


def _without_head(base: Checkpoint, name_of: Callable[[str], str | None]) -> TiedPair | None:
    family = base.family
    if family is None or family.tied_to is None or family.tied_head is None:
        return None
    embedding, head = name_of(family.tied_to), name_of(family.tied_head)
    if embedding not in base.slots or head in base.slots or embedding is None:
        return None
    single = len(base.shards) == 1 and not base.layout.sliced
    return TiedPair(embedding, head or "", family.tied_head, single and head is not None)


def _says_tied(base: Checkpoint, head: str) -> bool:
    if not base.config:
        return False
    if base.family is not None:
        return base.family.is_tied(base.config)
    return bool(base.config.get("tie_word_embeddings", head not in base.slots))


def _has_head(base: Checkpoint) -> bool:
    """Say whether the model class has an output head (a bare encoder has none)."""
    classes = [c for c in base.config.get("architectures") or () if isinstance(c, str)]
    return not classes or not all(
        c.endswith("Model") and not c.endswith(("LMHeadModel", "HeadModel")) for c in classes
    )


@dataclass(frozen=True, slots=True)
class TiedChoice:
    """What a merge does about a tied pair: untie it, or drop the head's copy of the same update."""

    untie: bool
    same: bool = False


def choose(pair: TiedPair, adapters: Iterable[Adapter], lands_on: dict[int, str]) -> TiedChoice:
    """Decide from the updates on the pair; `lands_on` maps id(update) to a tensor name."""
    one_sided = duplicated = False
    for adapter in adapters:
        own = [u for u in adapter.updates if not is_shared(u, adapter)]
        embedding = [u for u in own if lands_on.get(id(u)) == pair.embedding]
        head = [u for u in own if lands_on.get(id(u)) == pair.head]
        if not embedding and not head:
            continue
        if _same_change(embedding, head):
            duplicated = True
        else:
            one_sided = True
    return TiedChoice(untie=one_sided, same=duplicated and not one_sided)


def is_shared(update: Update, adapter: Adapter) -> bool:
    """Say whether an update is one of the shared tensor itself, not of one of its two uses."""
    if isinstance(update, Rows):
        return True
    if not isinstance(update, Replace):
        return False
    saved = adapter.config.get("modules_to_save") or ()
    module = update.target.module
    return not any(isinstance(s, str) and f".{module}".endswith(f".{s}") for s in saved)


def _same_change(embedding: Sequence[Update], head: Sequence[Update]) -> bool:
    """Say whether both sides hold the same ΔW, as PEFT's ensure_weight_tying writes it."""
    if len(embedding) != 1 or len(head) != 1:
        return False
    first, second = embedding[0], head[0]
    if not isinstance(first, LowRank) or not isinstance(second, LowRank):
        return False
    if first.scale != second.scale or first.magnitude or second.magnitude:
        return False
    return _transposed_equal(first.up, second.down) and _transposed_equal(first.down, second.up)


def _transposed_equal(one: Factor, other: Factor) -> bool:
    import numpy as np

    if one.dtype != other.dtype or one.shape != other.shape[::-1]:
        return False
    if not (one.source.plain and other.source.plain):
        return bool((read_tensor(one.source) == read_tensor(other.source).T).all())
    width = one.size // max(1, one.shape[0] * one.shape[1])
    word = {2: np.uint16, 4: np.uint32, 8: np.uint64}[width]
    left = np.frombuffer(read_bytes(one.source), word).reshape(one.shape)
    right = np.frombuffer(read_bytes(other.source), word).reshape(other.shape)
    return bool((left == right.T).all())
