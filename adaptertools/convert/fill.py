"""Zero updates for modules that a format expects in every layer, and which layers these are."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from adaptertools.adapter.model import Factor, LowRank, Scaling, Target, Update
from adaptertools.convert.report import Change
from adaptertools.formats.factors import reshaped
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
    names = tuple(u.target.name for u in added)
    change = Change("filled", "modules without an update get one that is zero", names)
    return [*updates, *added], layers, [change]


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
