"""Groups to updates: one builder for each kind of update in the spec vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from adaptertools.adapter.model import (
    Axis,
    Factor,
    LowRank,
    Orientation,
    Replace,
    Rows,
    Scaling,
    Target,
    Update,
)
from adaptertools.errors import FormatError
from adaptertools.formats.factors import stored_factor, whole_factor
from adaptertools.formats.group import Group
from adaptertools.formats.lookup import lookup
from adaptertools.formats.rates import Rate, version_numbers
from adaptertools.formats.spec import Role
from adaptertools.formats.targets import covered
from adaptertools.patterns.dims import Dims
from adaptertools.store.slot import Slot


class Builder:
    """Builds the updates of one file; `warn` receives (code, key, title, expected, found)."""

    def __init__(self, config: Mapping[str, Any], warn: Callable[..., None]) -> None:
        self.config, self.warn = config, warn
        self.feedforward: set[str] = set()

    def low_rank(self, group: Group, rate: Callable[[int], Rate]) -> LowRank:
        slots = group.slots
        self._check_form(group, "down")
        up, known = self._factor(group, "up", ("out", "rank"))
        rank = known["rank"]
        down, sizes = self._down(group, known)
        if "experts" not in sizes and len(slots["up"].shape) != len(slots["down"].shape):
            raise FormatError(
                "AT220",
                f"shape {list(slots['up'].shape)} does not go with {list(slots['down'].shape)} of "
                f"{down.key}",
                key=up.key,
            )
        if rank == 0 or 0 in down.shape or 0 in up.shape:
            raise FormatError(
                "AT214",
                f"has the empty shape {list(down.shape)}",
                key=down.key,
                hint="a ZeRO-3 or FSDP save without gathering leaves such files; save again",
            )
        update = LowRank(
            Target(group.module),
            down,
            up,
            1.0,
            rank,
            None,
            group.update.weight,
            magnitude=self._optional(group, "magnitude", up.shape[-2]),
            bias=self._optional(group, "bias", up.shape[-2]),
            gate=self._optional(group, "gate", rank),
            transposed=self._flag(group),
            experts=sizes.get("experts"),
            parts=sizes.get("parts"),
        )
        return self._rated(update, rate(rank))

    def stacked(
        self, group: Group, param: str, module: str, rank: int, rate: Callable[[int], Rate]
    ) -> LowRank:
        """Build an update on a 3-D parameter; the number of experts is rows of A over `rank`."""
        spec = group.update.stacked
        assert spec is not None
        slots = group.slots
        rows = slots["down"].shape[0] if slots["down"].shape else 0
        if rows == 0 or rank <= 0 or rows % rank:
            raise FormatError(
                "AT221",
                f"its {rows} rows are not a multiple of the configured rank {rank}",
                key=slots["down"].name,
            )
        known = {"rank": rank, "experts": rows // rank}
        down = stored_factor(slots["down"], spec.down, ("experts", "rank", "in"), known)
        up = stored_factor(slots["up"], spec.up, ("experts", "out", "rank"), known)
        update = LowRank(
            Target(module, param),
            down,
            up,
            1.0,
            rank,
            None,
            spec.weight,
            experts=rows // rank,
            orientation=_orientation(spec.orientation, self.config),
        )
        return self._rated(update, rate(rank))

    def _rated(self, update: LowRank, rate: Rate) -> LowRank:
        if rate.configured_rank is not None and rate.configured_rank != update.rank:
            self.warn(
                "AT222",
                update.down.key,
                "the config names another rank; the tensors win",
                rate.configured_rank,
                update.rank,
            )
        if rate.quirk:
            self.warn("AT312", update.down.key, rate.quirk, "", "")
        return replace(update, scale=rate.scale, alpha=rate.alpha)

    def scaling(self, group: Group, rate: Callable[[int], Rate] | None) -> Scaling:
        slot, role = group.slots["vector"], group.update.role("vector")
        fitting = [dims for dims in role.dims if dims.fits(slot.shape)]
        if not fitting:
            raise _no_fit(slot, role)
        wanted = self._feedforward_axis(group)
        axes = {_axis(dims): dims for dims in reversed(fitting)}
        axis = wanted if wanted in axes else next(iter(axes))
        if wanted not in axes:
            self.warn(
                "AT303",
                slot.name,
                "the shape contradicts feedforward_modules; the shape wins",
                f"along {wanted}",
                f"along {axis}",
            )
        factor = stored_factor(slot, axes[axis], (axis,), {})
        return Scaling(
            Target(group.module),
            factor,
            axis,
            group.update.weight,
            transposed=self._flag(group),
            scale=1.0 if rate is None else rate(1).scale,
        )

    def _feedforward_axis(self, group: Group) -> Axis:
        """PEFT's rule (tuners/ia3/model.py): an entry is a plain suffix, a string a full match."""
        named = self.config.get(group.update.feedforward or "")
        if isinstance(named, str):
            return "in" if group.module in self.feedforward else "out"
        entries = [e for e in named or () if isinstance(e, str)]
        return "in" if any(group.module.endswith(entry) for entry in entries) else "out"

    def match_feedforward(self, groups: Sequence[Group]) -> None:
        """Match a pattern of feedforward modules against all the modules at once."""
        for field in {g.update.feedforward for g in groups if g.update.feedforward}:
            modules = [g.module for g in groups if g.update.feedforward == field]
            named = self.config.get(field)
            if isinstance(named, str):
                hits = covered(named, modules)
                self.feedforward |= {m for m, hit in zip(modules, hits, strict=True) if hit}

    def replace(self, group: Group) -> Replace:
        slot = group.slots["value"]
        return Replace(Target(group.module, group.param or "weight"), whole_factor(slot))

    def rows(self, group: Group) -> Rows:
        slot = group.slots["values"]
        index = self._row_index(group)
        if len(slot.shape) != 2 or slot.shape[0] != len(index):
            raise FormatError(
                "AT220",
                f"shape {list(slot.shape)} does not hold the {len(index)} rows that "
                f"{group.update.index} lists",
                key=slot.name,
            )
        if len(set(index)) != len(index):
            raise FormatError("AT301", "lists a row twice", key=group.update.index)
        return Rows(Target(group.module), index, whole_factor(slot))

    def _row_index(self, group: Group) -> tuple[int, ...]:
        field = group.update.index or ""
        value = self.config.get(field)
        if isinstance(value, dict):
            fitting = [v for k, v in value.items() if f".{group.module}".endswith(f".{k}")]
            value = fitting[0] if len(fitting) == 1 else None
        good = isinstance(value, list) and all(
            isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value
        )
        if not good:
            raise FormatError("AT301", f"must list the rows of {group.module}", key=field)
        return tuple(value or ())

    def _factor(
        self, group: Group, name: str, axes: Sequence[str]
    ) -> tuple[Factor, dict[str, int]]:
        slot, role = group.slots[name], group.update.role(name)
        for dims in role.dims:
            if dims.fits(slot.shape):
                sizes = dims.solve(slot.shape)
                lead = ("experts",) if "experts" in sizes else ()
                return stored_factor(slot, dims, (*lead, *axes)), sizes
        raise _no_fit(slot, role)

    def _down(self, group: Group, sizes: Mapping[str, int]) -> tuple[Factor, dict[str, int]]:
        """Return the down factor by the first pattern that agrees with the sizes of up."""
        slot, role = group.slots["down"], group.update.role("down")
        known = {name: sizes[name] for name in ("rank", "experts") if name in sizes}
        for dims in role.dims:
            if known.keys() - {"rank"} <= dims.names and dims.fits(slot.shape, known):
                solved = dims.solve(slot.shape, known)
                lead = [name for name in ("experts", "parts") if name in solved]
                return stored_factor(slot, dims, (*lead, "rank", "in"), known), solved
        found = next((d.solve(slot.shape)["rank"] for d in role.dims if d.fits(slot.shape)), None)
        if found is None:
            raise _no_fit(slot, role)
        raise FormatError(
            "AT221",
            f"its rank is {known['rank']}, but {slot.name} has rank {found}",
            key=group.slots["up"].name,
        )

    def _check_form(self, group: Group, name: str) -> None:
        slot, role = group.slots[name], group.update.role(name)
        if not any(
            len(slot.shape) - len(d.axes) in (range(9) if d.tail else (0,)) for d in role.dims
        ):
            raise _no_fit(slot, role)

    def _optional(self, group: Group, name: str, size: int) -> Factor | None:
        slot = group.slots.get(name)
        if slot is None:
            return None
        role = group.update.role(name)
        for dims in role.dims:
            axis = next(n for a in dims.axes for n in a.names if not n.isdigit())
            if dims.fits(slot.shape, {axis: size}):
                return stored_factor(slot, dims, (axis,), {axis: size})
        raise _no_fit(slot, role, size)

    def _flag(self, group: Group) -> bool | None:
        value = lookup(self.config, group.update.transposed or "")
        return value if isinstance(value, bool) else None


def _orientation(rule: Mapping[str, Any], config: Mapping[str, Any]) -> Orientation:
    """Return how the writer oriented expert parameters; no version means an old one."""
    if not rule:
        return "module"
    version = version_numbers(str(config.get(rule["field"]) or "0"))
    for before, meaning in rule["before"].items():
        if version < version_numbers(before):
            return cast(Orientation, meaning)
    return cast(Orientation, rule["default"])


def _axis(dims: Dims) -> Axis:
    names = {n for axis in dims.axes for n in axis.names}
    return "in" if "in" in names else "out"


def _no_fit(slot: Slot, role: Role, size: int | None = None) -> FormatError:
    told = " or ".join(f"'{dims.text}'" for dims in role.dims)
    more = f" with {size}" if size is not None else ""
    return FormatError(
        "AT220", f"shape {list(slot.shape)} does not fit {told}{more}", key=slot.name
    )


BUILDERS: dict[str, Callable[[Builder, Group], Update]] = {
    "replace": Builder.replace,
    "rows": Builder.rows,
}
