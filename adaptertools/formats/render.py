"""Updates to the tensors of a format, by its spec: the inverse of grouping and building."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from math import prod

from adaptertools.adapter.model import Factor, LowRank, Replace, Rows, Scaling, Update
from adaptertools.errors import FormatError
from adaptertools.formats.factors import reshaped
from adaptertools.formats.parse import parameters_in_order
from adaptertools.formats.spec import FormatSpec, Role, UpdateSpec
from adaptertools.patterns.dims import Dims
from adaptertools.store.stored import Stored

Axes = tuple[str, ...]


def render(updates: Iterable[Update], spec: FormatSpec) -> list[Stored]:
    """Return the tensors of the updates (under the scheme's names), ready to be written.

    Raises `FormatError` (AT250) for an update that the format has no tensors for.
    """
    updates = list(updates)
    touched = {u.target.module for u in updates if isinstance(u, LowRank | Scaling)}
    nests = _nests(updates)
    return [one for update in updates for one in _tensors(update, spec, touched, nests)]


def _tensors(
    update: Update, spec: FormatSpec, touched: set[str], nests: Mapping[str, int]
) -> Iterator[Stored]:
    entry = _entry(update, spec, touched)
    fields = {"module": _written(update.target.module, spec), "param": update.target.param}
    if "adapter" in spec.write:
        fields["adapter"] = spec.write["adapter"]
    for name, (factor, axes) in _factors(update).items():
        role = next((r for r in entry.roles if r.name == name), None)
        if role is None:
            raise FormatError("AT250", f"has no place for a {name}", key=update.target.name)
        if isinstance(update, LowRank) and update.experts is not None and entry.stacked is not None:
            fields["module"] = update.target.module + ".base_layer" * nests[update.target.name]
            yield _stored(role, fields, factor, axes, _stacked_dims(entry, name))
        else:
            yield _stored(role, fields, factor, axes, None)


def _stored(
    role: Role, fields: Mapping[str, str], factor: Factor, axes: Axes, dims: Dims | None
) -> Stored:
    key = role.templates[0].format(fields)
    if not role.dims:
        return Stored(key, factor.dtype, factor.shape, factor.bits)
    kernel = factor.shape[len(axes) :]
    chosen = dims or next((d for d in role.dims if _suits(d, axes, kernel)), None)
    if chosen is None and (chosen := next((d for d in role.dims if "parts" in d.names), None)):
        one = (1, *factor.shape)
        factor, axes = reshaped(factor, one, lambda bits: bits.reshape(one)), ("parts", *axes)
    if chosen is None:
        raise FormatError("AT250", f"its {role.name} has no such form", key=key)
    sizes = dict(zip(axes, factor.shape, strict=False))
    shape = tuple(
        prod(int(n) if n.isdigit() else sizes[n] for n in axis.names) for axis in chosen.axes
    )
    load, found = factor.bits, chosen
    return Stored(
        key, factor.dtype, (*shape, *kernel), lambda: found.to_stored(load(), axes, sizes)
    )


def _suits(dims: Dims, axes: Axes, kernel: tuple[int, ...]) -> bool:
    return dims.names == set(axes) and (bool(dims.tail) or not kernel)


def _written(module: str, spec: FormatSpec) -> str:
    for written, meant in spec.aliases:
        if (fields := meant.match(module)) is not None:
            return written.format(fields)
    return module


def _factors(update: Update) -> dict[str, tuple[Factor, Axes]]:
    """Return the factors of an update by role, with the axes that each has."""
    if isinstance(update, LowRank):
        lead: Axes = ("experts",) if update.experts is not None else ()
        parts: Axes = ("parts",) if update.parts is not None else ()
        found: dict[str, tuple[Factor | None, Axes]] = {
            "down": (update.down, (*lead, *parts, "rank", "in")),
            "up": (_with_kernel(update), (*lead, "out", "rank")),
            "magnitude": (update.magnitude, ("out",)),
            "bias": (update.bias, ("out",)),
            "gate": (update.gate, ("rank",)),
        }
        return {name: (f, axes) for name, (f, axes) in found.items() if f is not None}
    if isinstance(update, Scaling):
        return {"vector": (update.vector, (update.axis,))}
    if isinstance(update, Replace):
        return {"value": (update.value, ())}
    if isinstance(update, Rows):
        return {"values": (update.values, ("tokens", "dim"))}
    raise FormatError("AT250", f"a {update.kind} update", key=update.target.name)


def _with_kernel(update: LowRank) -> Factor:
    """Return up with one kernel axis of 1 for each that down has (a convolution)."""
    extra = len(update.down.shape) - 2
    if extra <= 0 or update.experts is not None or update.parts is not None:
        return update.up
    shape = (*update.up.shape, *(1,) * extra)
    return reshaped(update.up, shape, lambda bits: bits.reshape(shape))


def _entry(update: Update, spec: FormatSpec, touched: set[str]) -> UpdateSpec:
    """Return the spec entry for an update: one for this very module first, then by its weight."""
    module = update.target.module
    entries = [e for e in spec.updates if e.kind == update.kind]
    own = [e for e in entries if module in e.modules]
    rest = [e for e in entries if not e.modules and e.beside == (module in touched)]
    rest = rest or [e for e in entries if not e.modules and not e.beside]
    if isinstance(update, LowRank):
        only = [e for e in rest if (e.weight == ("in out",)) == update.of_embedding]
        rest = only or rest
    chosen = own or [e for e in rest if not _needs_adapter(e, spec)]
    if not chosen:
        raise FormatError("AT250", f"{spec.title} holds no such update", key=update.target.name)
    return chosen[0]


def _needs_adapter(entry: UpdateSpec, spec: FormatSpec) -> bool:
    """Say whether the keys name an adapter, and the format writes none."""
    template = entry.roles[0].templates[0]
    return "adapter" not in spec.write and any(p.field == "adapter" for p in template.parts)


def _nests(updates: Iterable[Update]) -> dict[str, int]:
    """Return how deep each update on a named parameter is wrapped: the first one deepest."""
    params: dict[str, list[str]] = defaultdict(list)
    for update in updates:
        if isinstance(update, LowRank) and update.experts is not None:
            params[update.target.module].append(update.target.param)
    return {
        f"{module}.{param}": len(names) - 1 - number
        for module, names in params.items()
        for number, param in enumerate(parameters_in_order(names))
    }


def _stacked_dims(entry: UpdateSpec, name: str) -> Dims | None:
    assert entry.stacked is not None
    return {"down": entry.stacked.down, "up": entry.stacked.up}.get(name)
