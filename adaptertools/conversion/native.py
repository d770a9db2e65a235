"""From canonical updates to the tensors of a naming scheme: reordered, stacked, joined.

The inverse of `formats.canonical`. Parts of a fused tensor that share a down stay shared; others
are joined block-diagonally, which is exact and adds their ranks. Where the scheme keeps a block for
each part, nothing is joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from adaptertools.adapter.model import Factor, LowRank, Replace, Scaling, Target, Update
from adaptertools.adapter.naming import Home, Naming
from adaptertools.conversion.report import Change
from adaptertools.conversion.values import cast, common_dtype, scaled
from adaptertools.errors import FormatError
from adaptertools.formats.factors import (
    concatenated,
    constant,
    padded,
    placed,
    reshaped,
    same,
    stacked,
    take,
)
from adaptertools.formats.spec import FormatSpec
from adaptertools.patterns.rows import Index, compile_rows


@dataclass(slots=True)
class Joiner:
    """Puts canonical updates where one format keeps them; `changes` tells what was joined."""

    spec: FormatSpec
    naming: Naming
    changes: list[Change] = field(default_factory=list)

    def native(self, updates: Iterable[Update]) -> list[Update]:
        """Return the updates under the scheme's names, in the order in which they first come."""
        groups: dict[tuple[str, str, str], list[tuple[Update, Home]]] = {}
        for update in updates:
            experts = isinstance(update, LowRank) and update.experts is not None
            module = update.target.module
            home = Home(module) if experts else self.naming.home(module)
            assert home is not None
            key = (update.kind, home.name, update.target.param)
            groups.setdefault(key, []).append((update, home))
        low_rank = [g for g in groups.values() if isinstance(g[0][0], LowRank)]
        own = self._parts_present(low_rank)
        return [self._group(name, members, own) for (_, name, _), members in groups.items()]

    def _group(
        self, name: str, members: Sequence[tuple[Update, Home]], own: dict[str, tuple[str, ...]]
    ) -> Update:
        update, home = members[0]
        if not isinstance(update, LowRank):
            return _reordered(update, home)
        low_rank = [(u, h) for u, h in members if isinstance(u, LowRank)]
        if home.index is not None:
            return self._stack(name, low_rank)
        fused = self.naming.fused(name) if self._has_own_blocks() else None
        if home.part is None and fused is not None:
            return self._cut(name, update)
        if home.part is None:
            return _ordered(update, home)
        if self._has_own_blocks():
            return self._own_blocks(name, low_rank, own[_kind_of(name)])
        return self._shared(name, low_rank)

    def _has_own_blocks(self) -> bool:
        return any(
            "parts" in dims.names
            for u in self.spec.updates
            if u.kind == "low_rank"
            for dims in u.role("down").dims
        )

    def _parts_present(
        self, groups: Sequence[Sequence[tuple[Update, Home]]]
    ) -> dict[str, tuple[str, ...]]:
        """Return which parts any layer has: a config switches them on for all layers at once."""
        found: dict[str, tuple[str, ...]] = {}
        for members in groups:
            fused = self.naming.fused(members[0][1].name) if members[0][1].part else None
            if fused is not None:
                kind = _kind_of(members[0][1].name)
                here = {home.part for _, home in members} | set(found.get(kind, ()))
                found[kind] = tuple(p for p in compile_rows(fused.out).parts if p in here)
        return found

    def _stack(self, name: str, members: list[tuple[LowRank, Home]]) -> LowRank:
        count = max(len(self.naming.members(name)), 1)
        updates = self._evened(name, members)
        by_index = {h.index: u for u, (_, h) in zip(updates, members, strict=True)}
        first = updates[0]
        zero = replace(first, down=constant(first.down, 0), up=constant(first.up, 0))
        if len(by_index) < count:
            self._note("filled", f"experts without an update in {name} are zero", members)
        every = [by_index.get(n, zero) for n in range(count)]
        return replace(
            first,
            target=Target(name),
            down=stacked([u.down for u in every]),
            up=stacked([u.up for u in every]),
            experts=count,
        )

    def _own_blocks(
        self, name: str, members: list[tuple[LowRank, Home]], parts: tuple[str, ...]
    ) -> LowRank:
        sizes = self._part_sizes(name)
        updates = self._evened(name, members)
        by_part = {h.part: u for u, (_, h) in zip(updates, members, strict=True)}
        first, ups, downs = updates[0], list[Factor](), list[Factor]()
        for part in parts:
            update = by_part.get(part)
            if update is None:
                self._note("filled", f"{part} has no update in {name}, so it is zero", members)
                empty = reshaped(first.up, (0, first.rank), lambda bits: bits[:0])
                ups.append(padded(empty, 0, sizes[part]))
                downs.append(constant(first.down, 0))
            else:
                ups.append(update.up)
                downs.append(update.down)
        return replace(
            first,
            target=Target(name),
            down=stacked(downs),
            up=concatenated(ups, 0),
            parts=len(parts),
            enabled=parts,
        )

    def _shared(self, name: str, members: list[tuple[LowRank, Home]]) -> LowRank:
        fused = self.naming.fused(name)
        assert fused is not None
        extent = compile_rows(fused.out).size(self.naming.sizes)
        updates = [u for u, _ in members]
        rows: list[Index] = [home.rows for _, home in members]
        first = updates[0]
        if all(u.scale == first.scale and same(u.down, first.down) for u in updates):
            ups = [(u.up, r) for u, r in zip(updates, rows, strict=True)]
            return replace(first, target=Target(name), up=placed(ups, 0, extent))
        updates = self._evened(name, members, pad=False)
        rank = sum(u.rank for u in updates)
        self._note("joined", f"parts of {name} joined at rank {rank}", members)
        return replace(
            updates[0],
            target=Target(name),
            down=concatenated([u.down for u in updates], 0),
            up=_columns([u.up for u in updates], rows, extent, rank),
            rank=rank,
            alpha=None,
        )

    def _cut(self, name: str, update: LowRank) -> LowRank:
        """Give every part of a fused module its rows of up, and a down that is the same for all."""
        rows = self.naming.part_rows(update.target.module)
        return replace(
            update,
            target=Target(name),
            down=stacked([update.down] * len(rows)),
            up=concatenated([take(update.up, 0, index) for index in rows.values()], 0),
            parts=len(rows),
            enabled=tuple(rows),
        )

    def _evened(
        self, name: str, members: list[tuple[LowRank, Home]], *, pad: bool = True
    ) -> list[LowRank]:
        updates = [update for update, _ in members]
        done = _alike(updates, pad=pad)
        if any(a.scale != b.scale for a, b in zip(updates, done, strict=True)):
            self._note("folded", f"scales within {name} multiplied into up", members)
        return done

    def _part_sizes(self, name: str) -> dict[str, int]:
        fused = self.naming.fused(name)
        assert fused is not None
        stored = compile_rows(fused.out)
        return {part: stored.part_size(part, self.naming.sizes) for part in stored.parts}

    def _note(self, kind: str, title: str, members: Sequence[tuple[LowRank, Home]]) -> None:
        names = tuple(u.target.name for u, _ in members)
        self.changes.append(Change(kind, title, names))  # type: ignore[arg-type]


def _columns(ups: Sequence[Factor], rows: Sequence[Index], extent: int, rank: int) -> Factor:
    """Return [extent, rank] with each up in its rows and in columns of its own."""
    blocks, start = [], 0
    for up, index in zip(ups, rows, strict=True):
        wide = placed([(up, slice(start, start + up.shape[1]))], 1, rank)
        blocks.append((wide, index))
        start += up.shape[1]
    return placed(blocks, 0, extent)


def _kind_of(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _alike(updates: list[LowRank], *, pad: bool = True) -> list[LowRank]:
    """Return the updates with one scale, one dtype, and (with `pad`) one rank."""
    scale = next((u.scale for u in updates if u.scale), 1.0)
    rank = max(u.rank for u in updates)
    dtype = common_dtype([f.dtype for u in updates for f in (u.down, u.up)])
    done = []
    for update in updates:
        up = scaled(cast(update.up, dtype), update.scale / scale)
        down = cast(update.down, dtype)
        if pad:
            down, up = padded(down, 0, rank), padded(up, 1, rank)
        done.append(replace(update, down=down, up=up, scale=scale, rank=down.shape[0]))
    return done


def _put(factor: Factor | None, axis: int, index: Index | None) -> Factor | None:
    if factor is None or index is None:
        return factor
    return placed([(factor, index)], axis, factor.shape[axis])


def _ordered(update: LowRank, home: Home) -> LowRank:
    axis = 0 if update.experts is None else 1
    down, up = _put(update.down, axis + 1, home.columns), _put(update.up, axis, home.rows)
    assert down is not None and up is not None
    return replace(
        update,
        target=Target(home.name, update.target.param),
        down=down,
        up=up,
        magnitude=_put(update.magnitude, 0, home.rows),
        bias=_put(update.bias, 0, home.rows),
    )


def _reordered(update: Update, home: Home) -> Update:
    target = Target(home.name, update.target.param)
    if isinstance(update, Scaling):
        index = home.rows if update.axis == "out" else home.columns
        if home.part is not None or home.index is not None:
            raise FormatError("AT250", "a vector for a part of a fused tensor", key=home.name)
        vector = _put(update.vector, 0, index)
        assert vector is not None
        return replace(update, target=target, vector=vector)
    if isinstance(update, Replace) and (home.rows is not None or home.part or home.index):
        raise FormatError(
            "AT250", "a full value of a tensor that is stored in another order", key=home.name
        )
    return replace(update, target=target)
