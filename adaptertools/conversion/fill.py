"""Zero updates for modules that a format expects in every layer, and which layers these are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adaptertools.adapter.model import Factor, LowRank, Scaling, Target, Update
from adaptertools.adapter.naming import Naming
from adaptertools.conversion.report import Change
from adaptertools.errors import FormatError
from adaptertools.formats.factors import constant, padded, take
from adaptertools.formats.spec import FormatSpec

MOST_LAYERS = 1 << 14
_LAYER = re.compile(r"(.*?\.(?:layers|h|blk|block|layer)\.|layers\.)(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of a model that an adapter touches: `first` to the last of `count`."""

    count: int
    first: int
    kinds: tuple[str, ...]

    @property
    def last(self) -> int:
        """How many layers there are from the first one touched to the end."""
        return self.count - self.first


def layer_of(name: str) -> tuple[str, int, str] | None:
    """Return what stands before the layer's number, the number, and what follows.

    >>> layer_of("model.layers.3.mlp.up_proj")
    ('model.layers.', 3, 'mlp.up_proj')
    """
    found = _LAYER.fullmatch(name)
    return None if found is None else (found[1], int(found[2]), found[3])


def fill(
    updates: list[Update], spec: FormatSpec, naming: Naming
) -> tuple[list[Update], Layers, list[Change]]:
    """Add zero updates where the format expects one; the number of layers is the model's own.

    Where the model is not known, the highest layer that has tensors is taken to be the last.
    """
    inside = [(place, u) for u in updates if (place := layer_of(u.target.module)) is not None]
    counts = {place[0]: _count(u, naming) for place, u in inside}
    for place, _ in inside:
        counts[place[0]] = max(counts[place[0]], place[1] + 1)
    first = min((place[1] for place, _ in inside), default=0)
    kinds = tuple(dict.fromkeys(place[2] for place, _ in inside))
    layers = Layers(max(counts.values(), default=0), first, kinds)
    if layers.count > MOST_LAYERS:
        title = f"{layers.count:,} layers, by the config or by a module's name, are absurd"
        raise FormatError("AT241", title, key=inside[0][1].target.module)
    if not spec.write.get("fill") or not inside:
        return updates, layers, []
    start = first if spec.write["fill"] == "last layers" else 0
    have = {(place[0], place[2], place[1]) for place, _ in inside}
    samples = {(place[0], place[2]): u for place, u in inside}
    added = [
        _zero(sample, f"{prefix}{number}.{kind}")
        for (prefix, kind), sample in samples.items()
        for number in range(start, counts[prefix])
        if (prefix, kind, number) not in have
    ]
    if not added:
        return updates, layers, []
    _refuse_magnitudes(added, spec)
    names = tuple(u.target.name for u in added)
    change = Change("filled", "modules without an update get one that is zero", names)
    return [*updates, *added], layers, [change]


def _count(update: Update, naming: Naming) -> int:
    """Return how many layers the stack of an update's module has; 0 where that is not known."""
    member = next(iter(naming.members(update.target.module)), None) if naming.family else None
    hit = naming.family.find(member.module) if naming.family and member else None
    index = next(iter(hit.fields), None) if hit else None
    return 0 if index is None else naming.sizes.get(index, 0)


def _refuse_magnitudes(added: Sequence[Update], spec: FormatSpec) -> None:
    if odd := next((u for u in added if isinstance(u, LowRank) and u.magnitude), None):
        raise FormatError(
            "AT250",
            f"{spec.title} wants a DoRA magnitude here too, which only the base's weights give",
            key=odd.target.name,
            hint="merge it into the base instead, or choose another format",
        )


def complete(
    updates: list[Update], spec: FormatSpec, naming: Naming
) -> tuple[list[Update], list[Change]]:
    """Add zero updates for modules that a layer must have together (q, k and v)."""
    added: list[Update] = []
    here = {u.target.module for u in updates}
    for group in spec.write.get("together", ()):
        for update in updates:
            place = layer_of(update.target.module)
            if place is None or place[2] not in group or not isinstance(update, LowRank):
                continue
            for kind in group:
                name = f"{place[0]}{place[1]}.{kind}"
                if name not in here and naming.members(name):
                    here.add(name)
                    added.append(_zero_sized(update, name, naming))
    _refuse_magnitudes(added, spec)
    names = tuple(u.target.name for u in added)
    change = Change("filled", "modules that must be there together are zero", names)
    return [*updates, *added], [change] if added else []


def _zero_sized(update: LowRank, name: str, naming: Naming) -> LowRank:
    """Return a zero update of the output size that the model has for the tensor `name`."""
    family = naming.family
    member = next(iter(naming.members(name)), None)
    found = family.expected(member.module, naming.sizes) if family and member else None
    if found is None or found.out is None or found.in_ is None:
        hint = "give --base, or a folder with the base's config.json"
        raise FormatError("AT241", "its size is not known", key=name, hint=hint)
    up, down = constant(update.up, 0), constant(update.down, 0)
    axis = len(down.shape) - 1
    return replace(
        update,
        target=Target(name),
        up=_resized(up, 0, found.out),
        down=_resized(down, axis, found.in_),
    )


def _resized(factor: Factor, axis: int, extent: int) -> Factor:
    return padded(take(factor, axis, slice(0, min(extent, factor.shape[axis]))), axis, extent)


def _zero(update: Update, module: str) -> Update:
    target = Target(module, update.target.param)
    if isinstance(update, LowRank):
        return replace(update, target=target, down=update.down, up=constant(update.up, 0))
    assert isinstance(update, Scaling)
    return replace(update, target=target, vector=constant(update.vector, 1))
