"""From the names and row orders of a format's scheme to the canonical ones of the model.

Three rules do all of it: an order of the output axis applies to everything that carries `out` (up,
bias, magnitude, output vectors); splitting a fused tensor slices `out` and shares down; a stack
falls apart into its members. Values are never touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from adaptertools.adapter.model import Adapter, Factor, LowRank, Replace, Scaling, Target, Update
from adaptertools.adapter.naming import Home, Member, Naming
from adaptertools.errors import AdapterError, Finding, FormatError, Where
from adaptertools.formats.factors import (
    among_ones,
    block_diagonal,
    concatenated,
    placed,
    reshaped,
    take,
)
from adaptertools.formats.parts import enabled_parts
from adaptertools.patterns.rows import compile_rows


def to_canonical(adapter: Adapter, naming: Naming) -> Adapter:
    """Return the adapter under canonical names; what cannot be translated becomes a finding."""
    updates: list[Update] = []
    findings: list[Finding] = []
    for update in adapter.updates:
        try:
            updates += _update(update, naming)
        except AdapterError as error:
            where = Where(adapter.files[0], error.where.key or update.target.name)
            findings.append(Finding(error.code, "error", error.message, where, hint=error.hint))
    unique = tuple(dict.fromkeys(findings))
    return replace(adapter, updates=tuple(updates), findings=adapter.findings + unique, scheme="hf")


def _update(update: Update, naming: Naming) -> Iterator[Update]:
    if isinstance(update, LowRank) and update.parts is not None:
        yield from _own_parts(update, naming)
        return
    if isinstance(update, Scaling):
        update = _whole_vector(update, naming)
    members = naming.members(update.target.module)
    if not members:
        raise FormatError(
            "AT242",
            f"the model has no module that {naming.scheme} calls so",
            key=update.target.name,
            hint="is this the base the adapter was trained on?",
        )
    for member in members:
        yield _member(update, member)


def _whole_vector(update: Scaling, naming: Naming) -> Scaling:
    """Return a vector for all of a fused weight: ones in the parts that it leaves alone."""
    family, size = naming.family, update.vector.shape[0]
    expected = family.expected(update.target.module, naming.sizes) if family else None
    here = [number for number, name in enumerate(update.enabled) if name]
    if expected is None or expected.out in (None, size) or not here or update.axis != "out":
        return replace(update, enabled=())
    rows, rest = divmod(size, len(here))
    if rest or rows * len(update.enabled) != expected.out:
        raise FormatError(
            "AT220",
            f"{size} values are not {len(here)} of {len(update.enabled)} parts of {expected.out}",
            key=update.vector.key,
        )
    spans = [slice(part * rows, (part + 1) * rows) for part in here]
    vector = among_ones(update.vector, spans, rows * len(update.enabled))
    return replace(update, vector=vector, enabled=())


def _member(update: Update, member: Member) -> Update:
    target, home = Target(member.module, update.target.param), member.home
    if isinstance(update, LowRank):
        return _low_rank(update, target, home)
    if isinstance(update, Scaling):
        index = home.rows if update.axis == "out" else home.columns
        return replace(update, target=target, vector=take(update.vector, 0, index))
    if home.rows is not None or home.columns is not None or home.index is not None:
        what = "a full value" if isinstance(update, Replace) else f"an update of kind {update.kind}"
        raise FormatError(
            "AT243", f"{what} of a tensor that is stored in another order", key=update.target.name
        )
    return replace(update, target=target)


def _low_rank(update: LowRank, target: Target, home: Home) -> LowRank:
    down, up = update.down, update.up
    experts = update.experts
    if home.index is not None:
        down, up, experts = take(down, 0, home.index), take(up, 0, home.index), None
    axis = 0 if experts is None else 1
    return replace(
        update,
        target=target,
        down=take(down, axis + 1, home.columns),
        up=take(up, axis, home.rows),
        magnitude=_along_out(update.magnitude, home),
        bias=_along_out(update.bias, home),
        experts=experts,
    )


def _along_out(factor: Factor | None, home: Home) -> Factor | None:
    return None if factor is None else take(factor, 0, home.rows)


def _own_parts(update: LowRank, naming: Naming) -> Iterator[LowRank]:
    """Split an update whose parts have down blocks of their own."""
    members = naming.members(update.target.module)
    if len(members) == 1 and naming.fused(update.target.module) is not None:
        yield _on_fused(update, members[0], naming)
        return
    if len(members) < 2:
        for single in [_expanded(update)] if _is_fused(update, naming) else [_one_block(update)]:
            yield from (_low_rank(single, Target(m.module), m.home) for m in members)
        return
    fused = naming.fused(update.target.module)
    assert fused is not None
    stored = compile_rows(fused.out)
    sizes = {part: stored.part_size(part, naming.sizes) for part in stored.parts}
    names = enabled_parts(update, sizes)
    if fused.partial is not None and set(names) == set(stored.parts):
        # every part is there, so the rows were added to the interleaved weight as they stand
        whole = _block_form(update, [sizes[name] for name in names])
        for member in members:
            yield _low_rank(whole, Target(member.module), member.home)
        return
    start = 0
    homes = {member.home.part: member.module for member in members}
    for number, name in enumerate(names):
        rows = slice(start, start + sizes[name])
        start += sizes[name]
        yield replace(
            update,
            target=Target(homes[name]),
            down=take(update.down, 0, number),
            up=take(update.up, 0, rows),
            parts=None,
            enabled=(),
        )


def _on_fused(update: LowRank, member: Member, naming: Naming) -> LowRank:
    """Return one update of a module that is fused on disk too, zero in the parts it lacks."""
    fused, home = naming.fused(update.target.module), member.home
    assert fused is not None
    stored, rows = compile_rows(fused.out), naming.part_rows(member.module)
    sizes = {part: stored.part_size(part, naming.sizes) for part in stored.parts}
    names = enabled_parts(update, sizes)
    whole = replace(
        _block_form(update, [sizes[name] for name in names]), target=Target(member.module)
    )
    if fused.partial is not None and set(names) == set(stored.parts):
        return replace(whole, up=take(whole.up, 0, home.rows))
    spans, start = [], 0
    for name in names:
        block = take(whole.up, 0, slice(start, start + sizes[name]))
        spans.append((block, rows[name]))
        start += sizes[name]
    return replace(whole, up=placed(spans, 0, sum(sizes.values())))


def _is_fused(update: LowRank, naming: Naming) -> bool:
    """Say whether the target is a fused weight: by its blocks, or by its size in the model."""
    if update.parts != 1:
        return True
    family = naming.family
    expected = family.expected(update.target.module, naming.sizes) if family else None
    out = expected.out if expected else None
    return bool(update.enabled) and out is not None and out != update.up.shape[0]


def _one_block(update: LowRank) -> LowRank:
    return replace(update, down=take(update.down, 0, 0), parts=None, enabled=())


def _block_form(update: LowRank, sizes: list[int]) -> LowRank:
    """Return the update as one of a higher rank: downs stacked, ups along a diagonal."""
    rank, blocks, start = update.rank * len(sizes), [], 0
    for size in sizes:
        blocks.append(take(update.up, 0, slice(start, start + size)))
        start += size
    return replace(
        update,
        down=_flat_down(update.down, rank),
        up=block_diagonal(blocks),
        rank=rank,
        alpha=None,
        parts=None,
        enabled=(),
    )


def _flat_down(down: Factor, rank: int) -> Factor:
    shape = (rank, down.shape[2])
    return reshaped(down, shape, lambda bits: bits.reshape(shape))


def _expanded(update: LowRank) -> LowRank:
    """Return one update on the whole fused weight, zero in the parts that the adapter lacks."""
    if not update.enabled or len(update.enabled) < (update.parts or 0):
        raise FormatError(
            "AT244",
            f"has {update.parts} blocks of a fused tensor, but nothing tells which",
            key=update.down.key,
            hint="tell it, e.g. --set enable_lora=[true,false,true]",
        )
    here = [n for n, name in enumerate(update.enabled) if name]
    rows, rest = divmod(update.up.shape[0], len(here))
    if rest or len(here) != update.parts:
        raise FormatError(
            "AT220",
            f"shape {list(update.up.shape)} does not hold {len(here)} parts of equal size",
            key=update.up.key,
        )
    whole = _block_form(update, [rows] * len(here))
    extent = rows * len(update.enabled)
    blocks = []
    for number, part in enumerate(here):
        up = take(update.up, 0, slice(number * rows, (number + 1) * rows))
        blocks.append(placed([(up, slice(part * rows, (part + 1) * rows))], 0, extent))
    return replace(whole, up=concatenated(blocks, 1))
