"""Two checkpoints, tensor by tensor: bytes first, and only of those that differ the values.

| code | condition |
|---|---|
| AT632 | the two have different layouts, or files that are sliced differently |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from adaptertools.adapter.model import Target
from adaptertools.algebra.blocks import BLOCK_ELEMENTS
from adaptertools.base.checkpoint import Checkpoint
from adaptertools.base.engine import Interrupts, run_threads
from adaptertools.base.match import Matcher
from adaptertools.check.difference import Difference, Status
from adaptertools.conversion.compare import ROUNDING
from adaptertools.errors import AdapterError, MergeError
from adaptertools.store.blocks import dequantise
from adaptertools.store.dtypes import dtype_of, nbytes
from adaptertools.store.read import read_bytes, read_flat, read_tensor, same_bytes
from adaptertools.store.slot import Slot
from adaptertools.store.tensor import as_tensor

Progress = Callable[[int, int], None]
Pair = tuple[str, Slot | None, Slot | None]
Values = Any  # a torch tensor
FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")


def diff_checkpoints(
    one: Checkpoint,
    other: Checkpoint,
    tol: float | None = None,
    jobs: int = 1,
    progress: Progress = lambda done, total: None,
) -> tuple[Difference, ...]:
    """Compare two checkpoints, in bounded memory, in `jobs` threads.

    Raises `AdapterError` (AT632). Without `tol` what fp32 arithmetic can make counts as the same.
    """
    _check(one, other)
    pairs = _pairs(one, other)
    total, done = sum(_bytes(pair) for pair in pairs), 0
    found: dict[str, Difference] = {}

    def finish(pair: Pair, item: Difference) -> None:
        nonlocal done
        found[pair[0]] = item
        done += _bytes(pair)
        progress(done, total)

    with Interrupts() as interrupts:
        run_threads(pairs, lambda pair: compare(*pair, tol), finish, jobs, interrupts.check)
    return tuple(found[name] for name, _, _ in pairs)


def _check(one: Checkpoint, other: Checkpoint) -> None:
    if one.layout.scheme != other.layout.scheme:
        told = f"is laid out as {other.layout.title}, {one.root} as {one.layout.title}"
        hint = "bring both to one layout; 'convert --to hf' does it for a Llama of Meta's layout"
        raise AdapterError("AT632", told, file=other.root, hint=hint)
    if len(one.ranks) != len(other.ranks):
        told = f"is cut into {len(other.ranks)} files, {one.root} into {len(one.ranks)}"
        hint = "'convert --to hf' makes one layout of both"
        raise AdapterError("AT632", told, file=other.root, hint=hint)


def _bytes(pair: Pair) -> int:
    return sum(slot.size for slot in pair[1:] if isinstance(slot, Slot))


def _pairs(one: Checkpoint, other: Checkpoint) -> list[Pair]:
    """Return the tensors of both by name: A's in the order of its files, then those only B has."""
    order = sorted(one.slots, key=lambda n: (str(one.slots[n].file), one.slots[n].offset))
    renamed = _renamed(one, other)
    pairs: list[Pair] = [(n, one.slots[n], other.slots.get(renamed.get(n, n))) for n in order]
    taken = {renamed.get(n, n) for n in order}
    return pairs + [(n, None, slot) for n, slot in other.slots.items() if n not in taken]


def _renamed(one: Checkpoint, other: Checkpoint) -> dict[str, str]:
    """Return B's name of tensors that it has under another root or an older spelling."""
    free = other.slots.keys() - one.slots.keys()
    lost = [name for name in one.slots if name not in other.slots]
    if not free or not lost:
        return {}
    matcher, found = Matcher(other), dict[str, str]()
    for name in lost:
        module, _, param = name.rpartition(".")
        try:
            places = matcher.places(Target(module, param))
        except MergeError:
            continue
        place = places[0]
        whole = place.expert is None and place.rows is None and place.inside is None
        if len(places) == 1 and whole and place.tensor in free:
            found[name] = place.tensor
            free -= {place.tensor}
    return found


def compare(name: str, one: Slot | None, other: Slot | None, tol: float | None) -> Difference:
    """Compare one tensor; one of the two checkpoints may lack it."""
    dtypes = (None if one is None else one.dtype, None if other is None else other.dtype)
    shapes = (None if one is None else one.shape, None if other is None else other.shape)
    if one is None or other is None or one.shape != other.shape:
        status: Status = "only-b" if one is None else "only-a" if other is None else "reshaped"
        return Difference(name, "tensor", status, dtypes=dtypes, shapes=shapes)
    limit = _limit(one, other) if tol is None else tol
    if same_bytes(one, other):
        return Difference(
            name,
            "tensor",
            "identical",
            0.0,
            limit,
            equal=one.elements,
            elements=one.elements,
            largest=0.0,
            dtypes=dtypes,
            shapes=shapes,
        )
    return _streamed(name, one, other, limit)


def _limit(one: Slot, other: Slot) -> float:
    """Return what arithmetic in fp32, or where both are F64 in fp64, can make.

    Not the rounding of a 16-bit dtype: whole fine-tunes are smaller than that.
    """
    return ROUNDING["F64" if one.dtype == other.dtype == "F64" else "F32"]


def _streamed(name: str, one: Slot, other: Slot, limit: float) -> Difference:
    dtypes, shapes = (one.dtype, other.dtype), (one.shape, other.shape)
    if not (_is_real(one.dtype) and _is_real(other.dtype)):
        equal = _equal(one, other)
        detail = "not the same values" if equal is not None else "not the same bits"
        return Difference(
            name,
            "tensor",
            "differs",
            tol=limit,
            equal=equal,
            elements=one.elements,
            dtypes=dtypes,
            shapes=shapes,
            detail=detail,
        )
    from adaptertools.algebra.compare import one_thread
    from adaptertools.algebra.tally import Tally

    one_thread()
    seen = Tally()
    for left, right in _blocks(one, other):
        seen.add(left, right)
    close = limit > 0 and seen.relative <= limit
    return Difference(
        name,
        "tensor",
        "same" if close else "differs",
        seen.relative,
        limit,
        seen.norms,
        equal=seen.equal,
        elements=seen.elements,
        largest=seen.largest,
        dtypes=dtypes,
        shapes=shapes,
        detail="" if close or seen.rounded < seen.elements else "only by rounding",
    )


def _is_real(dtype: str) -> bool:
    """Say whether values of a dtype are real numbers that can be read."""
    found = dtype_of(dtype)
    return found.floating or found.block is not None or dtype in FLOAT8


def _equal(one: Slot, other: Slot) -> int | None:
    """Return how many elements are equal; None where the dtype has none of its own."""
    found = dtype_of(one.dtype)
    if one.dtype != other.dtype or found.packed or not found.torch:
        return None
    from adaptertools.algebra.tally import count_equal

    return sum(count_equal(left, right) for left, right in _blocks(one, other))


def _blocks(one: Slot, other: Slot) -> Iterator[tuple[Values, Values]]:
    """Yield both tensors, flattened, block by block."""
    left, right = _reader(one), _reader(other)
    for start in range(0, one.elements, BLOCK_ELEMENTS):
        stop = min(start + BLOCK_ELEMENTS, one.elements)
        yield left(start, stop), right(start, stop)


def _reader(slot: Slot) -> Callable[[int, int], Values]:
    """Return a function that reads elements [start, stop); block-quantised ones come as F32."""
    if dtype_of(slot.dtype).block is not None:
        return lambda start, stop: _dequantised(slot, start, stop)
    if slot.plain:
        return lambda start, stop: read_flat(slot, start, stop)
    whole = read_tensor(slot).flatten()
    return lambda start, stop: whole[start:stop]


def _dequantised(slot: Slot, start: int, stop: int) -> Values:
    first = nbytes(slot.dtype, start)
    raw = read_bytes(slot, first, nbytes(slot.dtype, stop) - first)
    return as_tensor(dequantise(raw, slot.dtype, (stop - start,)).view("u4"), "F32")
