"""How a base tensor stores a weight: the dims pattern that fits an update, ties broken by facts."""

from __future__ import annotations

from adaptertools import schemas
from adaptertools.adapter.model import LowRank, Scaling
from adaptertools.base.checkpoint import Checkpoint
from adaptertools.base.match import Place
from adaptertools.errors import FormatError, MergeError
from adaptertools.patterns.dims import compile_dims


def choose_layout(
    base: Checkpoint, update: LowRank | Scaling, place: Place, shape: tuple[int, ...]
) -> str:
    """Return the layout of a base tensor of `shape` for an update; raises `MergeError` (AT403).

    A square weight fits both orientations; then the family spec decides, then the model types that
    store `in out`, then the adapter's own flag.
    """
    if place.inside is not None:
        return _stacked_layout(update, place, shape)
    if isinstance(update, LowRank) and update.experts is not None and place.expert is not None:
        fitting = [text for text in ("out in", "in out") if _piece_fits(text, update, place, shape)]
    else:
        fitting = [text for text in update.weight if _fits(text, update, shape)]
    if not fitting:
        raise _mismatch(base, update, place, shape)
    if len(fitting) == 1:
        return fitting[0]
    transposed = _stored_transposed(base, update, place)
    if isinstance(update, LowRank) and update.orientation != "module":
        transposed = update.orientation == "always" or not transposed
    return next(t for t in fitting if t.endswith("in out") == transposed)


def _stored_transposed(base: Checkpoint, update: LowRank | Scaling, place: Place) -> bool:
    """Say whether the base stores a weight as `in out`, from what is known beside its shape."""
    expected = base.family.expected(place.tensor, base.sizes) if base.family else None
    if expected is not None:
        return expected.layout.endswith("in out")
    if base.config.get("model_type") in schemas.table("names")["conv1d_types"]:
        return True
    return update.transposed is True


def _sizes(update: LowRank | Scaling) -> dict[str, int]:
    if isinstance(update, Scaling):
        return {update.axis: update.vector.shape[0]}
    stacked = update.experts is not None
    down, up = update.down.shape, update.up.shape
    sizes = {"in": down[2 if stacked else 1], "out": up[1 if stacked else 0]}
    return {**sizes, "experts": update.experts} if update.experts is not None else sizes


def _fits(text: str, update: LowRank | Scaling, shape: tuple[int, ...]) -> bool:
    dims = compile_dims(text)
    if groups_of(update, shape) > 1:
        return bool(dims.tail)
    try:
        dims.solve(shape, _sizes(update))
    except FormatError:
        return False
    if isinstance(update, LowRank) and dims.tail:
        return tuple(shape[2:]) == tuple(update.down.shape[2:])
    return True


def _piece_fits(text: str, update: LowRank, place: Place, shape: tuple[int, ...]) -> bool:
    """Say whether one expert of a stacked update, cut to the piece's rows, has this shape."""
    whole = (update.up.shape[1], update.down.shape[2])
    rows, columns = whole if text == "out in" else whole[::-1]
    return shape == (place.rows[1] - place.rows[0] if place.rows else rows, columns)


def groups_of(update: LowRank | Scaling, shape: tuple[int, ...]) -> int:
    """Return the groups of a convolution whose input a vector scales; 1 where it is not grouped."""
    if not isinstance(update, Scaling) or update.axis != "in" or len(shape) < 3 or not shape[1]:
        return 1
    groups, rest = divmod(update.vector.shape[0], shape[1])
    return groups if groups > 1 and not rest and shape[0] % groups == 0 else 1


def _stacked_layout(update: LowRank | Scaling, place: Place, shape: tuple[int, ...]) -> str:
    assert place.inside is not None
    fits = (
        isinstance(update, LowRank)
        and update.magnitude is None
        and len(shape) == 3
        and len(update.down.shape) == 2
        and shape[2] == update.down.shape[1]
        and place.inside[0] < shape[0]
        and place.inside[1] + update.up.shape[0] <= shape[1]
    )
    if not fits:
        raise MergeError(
            "AT403", f"its shape {list(shape)} cannot hold {update.target}", key=place.tensor
        )
    return "experts out in"


def _mismatch(
    base: Checkpoint, update: LowRank | Scaling, place: Place, shape: tuple[int, ...]
) -> MergeError:
    sizes = _sizes(update)
    told = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
    kernel = (
        list(update.down.shape[2:]) if isinstance(update, LowRank) and not update.experts else []
    )
    told += f", kernel {kernel}" if kernel else ""
    hint = "is this the base the adapter was trained on?"
    if len(shape) > 2 and shape[0] == sizes.get("out") and shape[1] != sizes.get("in"):
        hint = "a grouped convolution has no exact merge: its adapter mixes all the channels"
    return MergeError(
        "AT403",
        f"the base tensor is {list(shape)}, the adapter has {told} for it",
        file=base.root,
        key=place.tensor,
        hint=hint,
    )
