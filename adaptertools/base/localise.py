"""Where canonical updates land in a base of another naming scheme, cut and ordered to fit there.

Three rules: rows and columns follow the scheme's order; a slice of a tensor takes its slice of the
update, a tensor that stands whole in every file takes all of it; one expert lies inside a stack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from adaptertools.adapter.family import Expected
from adaptertools.adapter.model import (
    Dense,
    Factor,
    LowRank,
    Replace,
    Rows,
    Scaling,
    Target,
    Update,
)
from adaptertools.adapter.naming import Home
from adaptertools.base.checkpoint import Checkpoint
from adaptertools.base.cuts import cut, cut_rows, turned
from adaptertools.base.faults import WRONG_BASE, nowhere
from adaptertools.base.match import MOST, Place
from adaptertools.errors import MergeError
from adaptertools.formats.factors import take
from adaptertools.patterns.rows import Index


class Localiser:
    """Places canonical updates on the tensors of a base in a scheme such as Meta's or GGUF's."""

    def __init__(self, base: Checkpoint) -> None:
        if base.family is None:
            kind = base.config.get("model_type")
            told = "" if kind is None else f" ({kind})"
            raise MergeError(
                "AT414",
                f"the architecture of this {base.layout.title} base{told} is no known family, so "
                "its names and row orders are not known",
                file=base.root,
                hint="convert the base to the Hugging Face layout first",
            )
        self.base, self.family = base, base.family
        self.scheme = base.layout.scheme
        self.naming = base.model.naming(self.scheme)
        self.sizes = base.sizes
        _check_sizes(base, self.sizes)

    def placed(self, update: Update) -> list[tuple[Update, Place]]:
        """Return the pieces of an update and their places; raises `MergeError`, `FormatError`."""
        pieces = list(self._singles(update))
        return [found for piece in pieces for found in self._homed(piece)]

    def sibling(self, place: Place, param: str) -> str | None:
        """Return the name of another parameter of the same module, if the base has it."""
        name = f"{place.tensor.rpartition('.')[0]}.{param}"
        return name if name in self.base.slots else None

    def name_of(self, target: str) -> str | None:
        """Return the base's name of a canonical tensor, None where the scheme has no place."""
        module, _, param = target.rpartition(".")
        home = self.naming.home(module)
        return None if home is None else f"{home.name}.{param}"

    def _singles(self, update: Update) -> Iterator[Update]:
        """Yield an update of an expert parameter expert by expert, any other as it is."""
        if not isinstance(update, LowRank) or update.experts is None:
            yield update
            return
        pieces = self.family.pieces(update.target.name, self.sizes)
        if not pieces or any(piece.index is None for piece in pieces):
            raise nowhere(
                self.base.root, update.target.name, f"{self.scheme} has no such parameter"
            )
        last = max(piece.index or 0 for piece in pieces)
        if last + 1 != update.experts:
            why = f"the adapter has {update.experts} experts, the base {last + 1}"
            raise MergeError("AT403", why, key=update.target.name, hint=WRONG_BASE)
        is_turned = self._is_turned(update)
        for piece in pieces:
            down, up = take(update.down, 0, piece.index), take(update.up, 0, piece.index)
            if is_turned:
                down, up = turned(up), turned(down)
            up = take(up, 0, slice(*piece.rows)) if piece.rows else up
            target = Target(piece.tensor.removesuffix(".weight"))
            yield replace(update, target=target, down=down, up=up, experts=None)

    def _is_turned(self, update: LowRank) -> bool:
        """Say whether an expert update acts on the transposed weight: by size, else by its word."""
        expected = self.family.expected(update.target.name, self.sizes)
        own = expected is not None and expected.layout.endswith("in out")
        if expected and expected.out and expected.in_ and expected.out != expected.in_:
            return update.up.shape[1] != expected.out
        return {"module": False, "always": not own, "inverted": True}[update.orientation]

    def _homed(self, update: Update) -> Iterator[tuple[Update, Place]]:
        module = update.target.module
        home = self.naming.home(module)
        if home is None or home.part is not None:
            raise nowhere(self.base.root, update.target.name, f"{self.scheme} has no place for it")
        expected = self.family.expected(module, self.sizes)
        self._check_kind(update, expected)
        axes = ("in", "out") if expected and expected.kind == "embedding" else ("out", "in")
        if isinstance(update, LowRank | Scaling):
            update = replace(update, weight=(" ".join(axes),))
        for number, rank in enumerate(self.base.ranks):
            name = f"{rank}{home.name}.{update.target.param}"
            if name not in self.base.slots:
                raise nowhere(self.base.root, update.target.name, f"it has no {name}")
            index = self._index(update, home, name, number, axes, expected)
            piece = _piece(update, axes, index)
            if piece is not None:
                inside = None if home.index is None else (home.index, 0)
                yield piece, Place(name, inside=inside)

    def _check_kind(self, update: Update, expected: Expected | None) -> None:
        shifted = self.family.schemes.get(self.scheme, {}).get("shifted", ())
        if expected is not None and expected.kind in shifted:
            raise MergeError(
                "AT414",
                f"{self.base.layout.title} stores the {expected.kind} weights of this family "
                "shifted by a constant",
                key=update.target.name,
                hint="merge into the base in the Hugging Face layout, then convert it",
            )

    def _index(
        self,
        update: Update,
        home: Home,
        name: str,
        number: int,
        axes: tuple[str, str],
        expected: Expected | None,
    ) -> dict[str, Index]:
        """Return the canonical positions, along each axis, that lie in one tensor, in its order."""
        shape = self.base.slots[name].shape[0 if home.index is None else 1 :]
        stored = dict(zip(axes if len(shape) > 1 else ("out",), shape, strict=False))
        split = self._split(update.target.module, stored, expected)
        ranks = len(self.base.ranks)
        if split == "in" and isinstance(update, LowRank) and update.magnitude is not None:
            raise MergeError(
                "AT415",
                "DoRA divides by the norm of whole rows, which lie across the files of this base",
                key=update.target.name,
                hint="convert the base to the Hugging Face layout, and merge there",
            )
        found: dict[str, Index] = {}
        orders = {"out": home.rows, "in": home.columns}
        for axis, extent in stored.items():
            whole = extent * ranks if axis == split else extent
            has = _extents(update, axes).get(axis, whole)
            if has != whole:
                raise _mismatch(self.base, update, name, axis, whole, has)
            rows = max(update.index, default=-1) + 1 if isinstance(update, Rows) else 0
            if axis == axes[0] and rows > whole:
                raise _mismatch(self.base, update, name, axis, whole, rows)
            part = slice(number * extent, (number + 1) * extent) if axis == split else None
            found[axis] = _positions(orders[axis], part, whole)
        return found

    def _split(
        self, module: str, stored: Mapping[str, int], expected: Expected | None
    ) -> str | None:
        """Return the axis that the files share out; sizes that say the other one are believed."""
        hit = self.family.find(module)
        axis = hit.module.split.get(self.scheme) if hit else None
        ranks = len(self.base.ranks)
        if ranks == 1 or axis is None or axis not in stored:
            return None
        other = "in" if axis == "out" else "out"
        known = {} if expected is None else {"out": expected.out, "in": expected.in_}
        if known.get(axis) == stored[axis] and known.get(other) != stored.get(other):
            return other
        return axis


def _check_sizes(base: Checkpoint, sizes: Mapping[str, int]) -> None:
    """Refuse (AT403) a config that tells more rows than any tensor has: they would be counted."""
    shapes = [slot.shape for slot in base.slots.values()]
    most = max((extent for shape in shapes for extent in shape), default=0) * len(base.ranks)
    for heads, size in (("heads", "head_dim"), ("kv_heads", "head_dim"), ("e", "")):
        told = sizes.get(heads, 0) * sizes.get(size, 1)
        if told > max(most, MOST):
            why = f"the config tells {told} {heads} in all, but no tensor is larger than {most}"
            raise MergeError("AT403", why, file=base.root, hint="the config is of another model")


def _extents(update: Update, axes: tuple[str, str]) -> dict[str, int]:
    """Return the sizes of an update along its canonical axes, those that it has."""
    if isinstance(update, LowRank):
        return {"out": update.up.shape[0], "in": update.down.shape[1]}
    if isinstance(update, Scaling):
        return {update.axis: update.vector.shape[0]}
    if isinstance(update, Rows):
        return {axes[1]: update.values.shape[1]}
    shape = _full(update).shape
    return dict(zip(axes if len(shape) > 1 else ("out",), shape, strict=False))


def _full(update: Dense | Replace) -> Factor:
    return update.diff if isinstance(update, Dense) else update.value


def _positions(order: Index | None, part: slice | None, extent: int) -> Index:
    """Return the canonical position of every stored one of `part`; a slice where they are in order.

    `order` tells the stored position of every canonical one.
    """
    if order is None or isinstance(order, slice):
        return part or slice(0, extent)
    import numpy as np

    if order.size != extent:
        raise MergeError("AT403", f"{order.size} rows by the config, {extent} in the tensor")
    inverse = np.empty_like(order)
    inverse[order] = np.arange(extent)
    return inverse if part is None else inverse[part]


def _piece(update: Update, axes: tuple[str, str], index: Mapping[str, Index]) -> Update | None:
    """Return the part of an update at these positions; None where it has nothing there."""
    out, in_ = index.get("out"), index.get("in")
    match update:
        case LowRank():
            magnitude = None if update.magnitude is None else take(update.magnitude, 0, out)
            bias = None if update.bias is None else take(update.bias, 0, out)
            down, up = take(update.down, 1, in_), take(update.up, 0, out)
            return replace(update, down=down, up=up, magnitude=magnitude, bias=bias)
        case Scaling():
            vector = take(update.vector, 0, out if update.axis == "out" else in_)
            return replace(update, vector=vector)
        case Rows():
            return cut_rows(update, index[axes[0]], index[axes[1]])
        case Dense():
            return replace(update, diff=cut(update.diff, _along(update.diff, axes, index)))
        case Replace():
            return replace(update, value=cut(update.value, _along(update.value, axes, index)))


def _along(factor: Factor, axes: tuple[str, str], index: Mapping[str, Index]) -> list[Index]:
    return [index[axis] for axis in (axes if len(factor.shape) > 1 else ("out",))]


def _mismatch(
    base: Checkpoint, update: Update, name: str, axis: str, whole: int, has: int
) -> MergeError:
    ranks = len(base.ranks)
    told = f" in {ranks} files" if ranks > 1 else ""
    hint = WRONG_BASE
    if base.layout.sliced:
        hint += " are all its files there?"
    if isinstance(update, Replace) and axis == "out":
        hint = f"a tensor cannot grow in the {base.layout.title} layout; merge into a HF one"
    return MergeError(
        "AT403",
        f"the base tensor {name} has {whole} along {axis!r}{told}, the adapter has {has} for it",
        file=base.root,
        key=update.target.name,
        hint=hint,
    )
