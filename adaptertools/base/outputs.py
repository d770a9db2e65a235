"""Output files of a merge: the base's own shards, or new ones of a chosen size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from adaptertools.base.checkpoint import Checkpoint
from adaptertools.base.kept import lay_out_kept
from adaptertools.base.layouts import Shard
from adaptertools.base.plan import Companion, OutputFile, TensorPlan
from adaptertools.store.header import Header, render_header

INDEX = "model.safetensors.index.json"


def lay_out(
    base: Checkpoint,
    tensors: Mapping[str, TensorPlan],
    added: Sequence[str],
    shard_size: int | None,
    file_name: str | None,
) -> tuple[OutputFile, ...]:
    """Return the weight files to write; a shard of unchanged shapes keeps its header."""
    if base.layout.kept:
        return lay_out_kept(base, tensors, added, file_name)
    if shard_size is not None and not base.is_file:
        return _resharded(base, tensors, added, shard_size)
    names = _names(base, file_name)
    files = []
    for number, (shard, name) in enumerate(zip(base.shards, names, strict=True)):
        own = [_in_shard(shard, slot_name, tensors) for slot_name in shard.slots]
        if number == len(base.shards) - 1:
            own += [tensors[extra] for extra in added]
        files.append(_output(name, own, shard))
    return tuple(files)


def _in_shard(shard: Shard, name: str, tensors: Mapping[str, TensorPlan]) -> TensorPlan:
    """Return the plan of a shard's tensor; a copy that the index does not use stays as it is."""
    slot, plan = shard.slots[name], tensors.get(name)
    if plan is not None and (plan.source is slot or plan.source is None):
        return plan
    return TensorPlan(name, slot.dtype, slot.shape, slot, matrix=(slot.elements, 1))


def _names(base: Checkpoint, file_name: str | None) -> list[str]:
    if base.is_file:
        return [file_name or base.root.name]
    names = [shard.file.name for shard in base.shards]
    if base.shards[0].header is not None:
        return names
    if len(names) == 1:
        return ["model.safetensors"]
    return [f"model-{n:05d}-of-{len(names):05d}.safetensors" for n in range(1, len(names) + 1)]


def _output(name: str, tensors: Sequence[TensorPlan], shard: Shard | None) -> OutputFile:
    header = shard.header if shard and isinstance(shard.header, Header) else None
    if header is not None and _same_header(tensors, header.slots):
        offsets = {slot.name: slot.offset for slot in header.slots.values()}
        return OutputFile(name, header.raw, tuple(tensors), offsets, header.file_size)
    metadata = header.metadata if header is not None else {"format": "pt"}
    raw, offsets = render_header(((t.name, t.dtype, t.shape) for t in tensors), metadata)
    size = len(raw) + sum(t.size for t in tensors)
    return OutputFile(name, raw, tuple(tensors), offsets, size)


def _same_header(tensors: Sequence[TensorPlan], slots: Mapping[str, object]) -> bool:
    same = all(
        t.source is not None and (t.dtype, t.shape) == (t.source.dtype, t.source.shape)
        for t in tensors
    )
    return same and [t.name for t in tensors] == list(slots)


def _resharded(
    base: Checkpoint, tensors: Mapping[str, TensorPlan], added: Sequence[str], limit: int
) -> tuple[OutputFile, ...]:
    ordered = [tensors[n] for s in base.shards for n in s.slots if n in tensors and n not in added]
    groups: list[list[TensorPlan]] = [[]]
    filled = 0
    for tensor in [*ordered, *(tensors[name] for name in added)]:
        size = tensor.size
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += size
    if len(groups) == 1:
        return (_output("model.safetensors", groups[0], None),)
    return tuple(
        _output(f"model-{number:05d}-of-{len(groups):05d}.safetensors", group, None)
        for number, group in enumerate(groups, 1)
    )


def index_file(base: Checkpoint, files: Sequence[OutputFile]) -> Companion | None:
    """Return the shard index of the output; the base's own bytes where nothing in it changes."""
    single = len(files) == 1 and files[0].name == "model.safetensors"
    if base.is_file or base.layout.kept or single:
        return None
    weight_map = {t.name: file.name for file in files for t in file.tensors}
    total = sum(t.size for file in files for t in file.tensors)
    existing = base.root / INDEX
    if existing.is_file() and _index_of(existing) == weight_map:
        return Companion(INDEX, source=existing)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return Companion(INDEX, content=(json.dumps(index, indent=2) + "\n").encode())


def _index_of(path: Path) -> object:
    return json.loads(path.read_text(encoding="utf-8")).get("weight_map")
