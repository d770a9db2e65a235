"""Zero updates for modules that a format expects in every layer, and which layers these are."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from adaptertools.adapter.model import Factor, LowRank, Scaling, Target, Update
from adaptertools.adapter.naming import Naming
from adaptertools.convert.report import Change
from adaptertools.errors import FormatError
from adaptertools.formats.factors import padded, reshaped, take
from adaptertools.formats.model import Model
from adaptertools.formats.spec import FormatSpec
from adaptertools.store.dtypes import DTYPES

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
    updates: list[Update], spec: FormatSpec, model: Model
) -> tuple[list[Update], Layers, list[Change]]:
    """Add zero updates where the format expects one; the number of layers is the model's own.

    Where the model is not known, the highest layer that has tensors is taken to be the last.
    """
    places = [(layer_of(u.target.module), u) for u in updates]
    inside = [(place, u) for place, u in places if place is not None]
    count = model.sizes.get("i") or 1 + max((place[1] for place, _ in inside), default=-1)
    first = min((place[1] for place, _ in inside), default=0)
    kinds = tuple(dict.fromkeys(place[2] for place, _ in inside))
    layers = Layers(count, first, kinds)
    if not spec.write.get("fill") or not inside:
        return updates, layers, []
    start = first if spec.write["fill"] == "last layers" else 0
    have = {(place[0], place[2], place[1]) for place, _ in inside}
    samples = {(place[0], place[2]): u for place, u in inside}
    added = [
        _zero(sample, f"{prefix}{number}.{kind}")
        for (prefix, kind), sample in samples.items()
        for number in range(start, count)
        if (prefix, kind, number) not in have
    ]
    if not added:
        return updates, layers, []
    if odd := next((u for u in added if isinstance(u, LowRank) and u.magnitude), None):
        raise FormatError(
            "AT250",
            f"{spec.title} wants a DoRA magnitude here too, which only the base's weights give",
            key=odd.target.name,
            hint="merge it into the base instead, or choose another format",
        )
    names = tuple(u.target.name for u in added)
    change = Change("filled", "modules without an update get one that is zero", names)
    return [*updates, *added], layers, [change]


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
                if name not in here:
                    here.add(name)
                    added.append(_zero_sized(update, name, naming))
    names = tuple(u.target.name for u in added)
    change = Change("filled", "modules that must be there together are zero", names)
    return [*updates, *added], [change] if added else []


def _zero_sized(update: LowRank, name: str, naming: Naming) -> LowRank:
    """Return a zero update of the output size that the model has for the tensor `name`."""
    family = naming.family
    member = next(iter(naming.members(name)), None)
    found = family.expected(member.module, naming.sizes) if family and member else None
    if found is None or found.out is None:
        hint = "give --base, or a folder with the base's config.json"
        raise FormatError("AT241", "its size is not known", key=name, hint=hint)
    zero = _constant(update.up, 0.0)
    up = padded(take(zero, 0, slice(0, min(found.out, zero.shape[0]))), 0, found.out)
    return replace(update, target=Target(name), up=up)


def _zero(update: Update, module: str) -> Update:
    target = Target(module, update.target.param)
    if isinstance(update, LowRank):
        return replace(update, target=target, down=update.down, up=_constant(update.up, 0.0))
    assert isinstance(update, Scaling)
    return replace(update, target=target, vector=_constant(update.vector, 1.0))


def _constant(factor: Factor, value: float) -> Factor:
    words = {"F64": 0x3FF << 52, "F32": 0x7F << 23, "F16": 0xF << 10, "BF16": 0x7F << 7}
    bits = words[factor.dtype] if value else 0

    def filled(values: object) -> object:
        import numpy as np

        word = f"u{DTYPES[factor.dtype].bits // 8}"
        return np.full(factor.shape, bits, word)

    return reshaped(factor, factor.shape, filled)
