"""Output files of a layout that is kept: the base's own bytes, but for the tensors that change."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from adaptertools.base.checkpoint import Checkpoint
from adaptertools.base.layouts import Shard
from adaptertools.base.plan import OutputFile, Sealed, Span, TensorPlan
from adaptertools.errors import MergeError
from adaptertools.store.archive import Member, read_members
from adaptertools.store.gguf import GgufFile
from adaptertools.store.gguf_write import render_header
from adaptertools.store.slot import Slot

_HINT = "load it with torch.load, make each tensor contiguous and a clone, and save it again"


def lay_out_kept(
    base: Checkpoint,
    tensors: Mapping[str, TensorPlan],
    added: Sequence[str],
    file_name: str | None,
) -> tuple[OutputFile, ...]:
    """Return the files of a kept layout; a head is rendered anew only where types change."""
    files = []
    for shard in base.shards:
        name = (file_name or shard.file.name) if base.is_file else shard.file.name
        own = [tensors[n] for n in [*shard.slots, *added]]
        if isinstance(shard.header, GgufFile) and (added or any(map(_retyped, own))):
            files.append(_rendered(name, shard.header, own))
        elif isinstance(shard.header, GgufFile):
            files.append(_in_place(name, shard, own))
        else:
            files.append(_archived(name, shard, own))
    return tuple(files)


def _retyped(tensor: TensorPlan) -> bool:
    return tensor.source is not None and tensor.source.dtype != tensor.dtype


def _rendered(name: str, gguf: GgufFile, tensors: Sequence[TensorPlan]) -> OutputFile:
    """Return a GGUF file with the same pairs and a new table; every tensor at a new place.

    `general.file_type` stays too: it only tells which type most tensors have.
    """
    rows = [(t.name, t.dtype, t.shape) for t in tensors]
    head, offsets, size = render_header(gguf.pairs, rows, gguf.alignment)
    return OutputFile(name, head, tuple(tensors), offsets, size)


def _in_place(name: str, shard: Shard, tensors: Sequence[TensorPlan]) -> OutputFile:
    changed = [shard.slots[t.name] for t in tensors if t.steps]
    for slot in changed:
        if not slot.plain:
            why = "it is not stored as one contiguous range of bytes"
            raise MergeError("AT417", why, file=slot.file, key=slot.name, hint=_HINT)
    _check_alone(shard, changed)
    size = shard.size
    kept = tuple(_between(shard.file, changed, 0, size))
    offsets = {n: slot.offset for n, slot in shard.slots.items()}
    return OutputFile(name, b"", tuple(tensors), offsets, size, kept)


def _between(file: Path, slots: Sequence[Slot], start: int, stop: int) -> Iterator[Span]:
    """Yield the ranges of [start, stop) in which none of the slots lies."""
    for slot in sorted(slots, key=lambda slot: slot.offset):
        if slot.offset > start:
            yield Span(file, start, start, slot.offset - start)
        start = max(start, slot.end)
    if stop > start:
        yield Span(file, start, start, stop - start)


def _check_alone(shard: Shard, changed: Sequence[Slot]) -> None:
    """Refuse (AT417) a tensor that changes but shares its bytes with another."""
    touched = {id(slot) for slot in changed}
    last: Slot | None = None
    for slot in sorted(shard.slots.values(), key=lambda slot: (slot.offset, slot.end)):
        if not slot.size or not slot.plain:
            continue
        if last is not None and slot.offset < last.end and touched & {id(slot), id(last)}:
            why = f"it shares its bytes with {last.name}, which would change with it"
            raise MergeError("AT417", why, file=slot.file, key=slot.name, hint=_HINT)
        last = slot if last is None or slot.end > last.end else last


def _archived(name: str, shard: Shard, tensors: Sequence[TensorPlan]) -> OutputFile:
    """Return a torch file (a zip) in place, with the checksums of the members that change."""
    file = _in_place(name, shard, tensors)
    members = read_members(shard.file)
    starts = [member.start for member in members]
    inside: dict[int, list[TensorPlan]] = {}
    for tensor in tensors:
        if tensor.steps and tensor.size:
            at = bisect_right(starts, file.offsets[tensor.name]) - 1
            inside.setdefault(at, []).append(tensor)
    seals = tuple(_sealed(shard, members[at], inside[at]) for at in sorted(inside))
    return OutputFile(name, b"", file.tensors, file.offsets, file.size, file.kept, seals)


def _sealed(shard: Shard, member: Member, tensors: Sequence[TensorPlan]) -> Sealed:
    slots = [shard.slots[tensor.name] for tensor in tensors]
    pieces: list[tuple[int, str | Span]] = [(shard.slots[t.name].offset, t.name) for t in tensors]
    pieces += [(s.start, s) for s in _between(shard.file, slots, member.start, member.stop)]
    return Sealed(tuple(piece for _, piece in sorted(pieces, key=lambda p: p[0])), member.sums)
