"""The space that is searched: a weight for every adapter, and a density and a rank where asked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptertools.base.options import AdapterRef, split_weight
from adaptertools.errors import AdapterError

WEIGHTS = (0.0, 1.5)
DIGITS = 6
SHARED = ("weight", "density", "rank")
_HINT = "write it like 'weight=0..1,style=0..2,density=0.2..0.9,rank=4..32'"


@dataclass(frozen=True, slots=True)
class Dimension:
    """One number from `low` to `high`; where they are the same it is not searched."""

    name: str
    low: float
    high: float
    whole: bool = False

    @property
    def free(self) -> bool:
        return self.low < self.high

    def at(self, share: float) -> float:
        """Return the value at this share, 0 to 1, of the way; whole numbers are equally likely."""
        if self.whole:
            return min(self.high, self.low + math.floor(share * (self.high - self.low + 1)))
        return min(
            self.high, max(self.low, round(self.low + share * (self.high - self.low), DIGITS))
        )

    def share(self, value: float) -> float:
        """Return where a value lies, 0 to 1."""
        half = 0.5 if self.whole else 0.0
        return (value - self.low + half) / (self.high - self.low + 2 * half)

    def near(self, value: float) -> float:
        """Return the allowed value next to this one."""
        return min(self.high, max(self.low, value))


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate: a weight for every adapter, and what else was asked for."""

    weights: tuple[float, ...]
    density: float | None = None
    rank: int | None = None

    def to_json(self) -> dict[str, Any]:
        more = {"density": self.density, "rank": self.rank}
        return {"weights": list(self.weights), **{k: v for k, v in more.items() if v is not None}}


@dataclass(frozen=True, slots=True)
class Space:
    """All dimensions, those of the weights in the adapters' order."""

    weights: tuple[Dimension, ...]
    density: Dimension | None = None
    rank: Dimension | None = None

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        return (*self.weights, *(d for d in (self.density, self.rank) if d is not None))

    @property
    def free(self) -> tuple[Dimension, ...]:
        return tuple(d for d in self.dimensions if d.free)

    def point(self, shares: Sequence[float]) -> Point:
        """Return the candidate at these shares, one for every free dimension."""
        left = iter(shares)
        values = [d.at(next(left)) if d.free else d.low for d in self.dimensions]
        return self._point(values)

    def shares(self, point: Point) -> list[float]:
        """Return the shares that `point` was made of."""
        values = [*point.weights, *(v for v in (point.density, point.rank) if v is not None)]
        pairs = zip(self.dimensions, values, strict=True)
        return [d.share(value) for d, value in pairs if d.free]

    def first(self) -> list[Point]:
        """Return the candidates every search begins with: the uniform mix, each adapter alone.

        Density and rank are the largest there.
        """
        free = [number for number, one in enumerate(self.weights) if one.free]
        mixes = [dict.fromkeys(free, 1 / max(1, len(free)))]
        mixes += [{number: float(number == alone) for number in free} for alone in free]
        most = [d.high for d in self.dimensions[len(self.weights) :]]
        points = []
        for mix in mixes:
            weights = [
                d.near(round(mix[n], DIGITS)) if n in mix else d.low
                for n, d in enumerate(self.weights)
            ]
            points.append(self._point([*weights, *most]))
        return list(dict.fromkeys(points))

    def _point(self, values: Sequence[float]) -> Point:
        count = len(self.weights)
        rest = iter(values[count:])
        density = next(rest) if self.density else None
        rank = int(next(rest)) if self.rank else None
        return Point(tuple(values[:count]), density, rank)

    def to_json(self) -> dict[str, list[float]]:
        return {d.name: [d.low, d.high] for d in self.dimensions}


def make_space(adapters: Sequence[AdapterRef], text: str = "") -> Space:
    """Return the space of these adapters as `text` bounds it; raises `AdapterError` (AT500).

    `weight=0..1` is for every adapter, `style=0..2` for the one called so (the last part of its
    path, or the path as given), one number fixes a dimension. A weight given beside an adapter
    fixes that one's, where `text` does not name it.

    >>> make_space(["a", "b=0.5"], "a=0..2,rank=4..8").to_json()
    {'a': [0.0, 2.0], 'b': [0.5, 0.5], 'rank': [4.0, 8.0]}
    """
    bounds = _bounds(text)
    names, fixed = _names(adapters)
    last = Counter(Path(name).name for name in names)
    shared = bounds.pop("weight", WEIGHTS)
    weights = []
    for name, weight in zip(names, fixed, strict=True):
        label = Path(name).name if last[Path(name).name] == 1 else name
        own = bounds.pop(name, None) or (bounds.pop(label, None) if label not in SHARED else None)
        weights.append(
            Dimension(label, *(own or ((weight, weight) if weight is not None else shared)))
        )
    density, rank = bounds.pop("density", None), bounds.pop("rank", None)
    if bounds:
        hint = f"known: {', '.join([*SHARED, *(d.name for d in weights)])}"
        raise AdapterError("AT500", f"nothing is called {next(iter(bounds))!r}", hint=hint)
    space = Space(
        tuple(weights),
        None if density is None else Dimension("density", *density),
        None if rank is None else Dimension("rank", *rank, whole=True),
    )
    return _checked(space)


def _names(adapters: Sequence[AdapterRef]) -> tuple[list[str], list[float | None]]:
    names, fixed = list[str](), list[float | None]()
    for item in adapters:
        path, weight = item if isinstance(item, tuple) else split_weight(str(item))
        given = isinstance(item, tuple) or path != str(item)
        names.append(str(path))
        fixed.append(float(weight) if given else None)
    return names, fixed


def _bounds(text: str) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, numbers = part.rpartition("=")
        low, mark, high = numbers.partition("..")
        try:
            pair = float(low), float(high if mark else low)
        except ValueError:
            pair = math.nan, math.nan
        if not name or not all(map(math.isfinite, pair)) or pair[0] > pair[1]:
            raise AdapterError("AT500", f"{part!r} is not NAME=LOW..HIGH", hint=_HINT)
        if name in found:
            raise AdapterError("AT500", f"{name!r} is bounded twice", hint=_HINT)
        found[name] = pair
    return found


def _checked(space: Space) -> Space:
    if not space.free:
        raise AdapterError("AT500", "nothing is left to search: every dimension is fixed")
    if (d := space.density) and not 0 <= d.low <= d.high <= 1:
        raise AdapterError("AT500", "a density lies between 0 and 1", hint=_HINT)
    if (d := space.rank) and (d.low < 1 or any(v != int(v) for v in (d.low, d.high))):
        raise AdapterError("AT500", "a rank is a whole number of 1 or more", hint=_HINT)
    return space


def described(space: Space, values: Mapping[str, Any]) -> str:
    """Return a candidate in words, e.g. `style=0.8 task=0.3 rank=8`."""
    parts = [f"{d.name}={v:g}" for d, v in zip(space.weights, values["weights"], strict=True)]
    parts += [f"{name}={values[name]:g}" for name in ("density", "rank") if name in values]
    return " ".join(parts)
