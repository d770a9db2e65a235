"""Row patterns: how a naming scheme orders one axis, and the index vectors that follow from it.

`(heads 2 half)` is an axis of heads, each two halves; `[q:(heads head_dim) k:(kv_heads head_dim)]`
lays parts one after another; `(kv_heads [q:(q_per_kv head_dim) k:head_dim v:head_dim])` interleaves
them group by group. A pattern is spread over `arange(size)`; putting its axes into the order of the
canonical pattern gives `canonical = stored[index]`, for reading a gather, for writing a scatter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

from adaptertools.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Positions = NDArray[np.int64]

Sizes = Mapping[str, int]
Index = Any  # a slice where the rows are contiguous, else an array of positions
_TOKEN = re.compile(r"\s*([()\[\]]|[A-Za-z_][A-Za-z0-9_]*:|[A-Za-z_][A-Za-z0-9_]*|[0-9]+)")


@dataclass(frozen=True, slots=True)
class _Node:
    """A named axis, a product of axes (slowest first), or a sum of named parts."""

    name: str = ""
    product: tuple[_Node, ...] = ()
    parts: tuple[tuple[str, _Node], ...] = ()

    def names(self) -> set[str]:
        if self.name:
            return set() if self.name.isdigit() else {self.name}
        return {n for node in (*self.product, *(p for _, p in self.parts)) for n in node.names()}

    def size(self, sizes: Sizes) -> int:
        if self.name:
            return int(self.name) if self.name.isdigit() else sizes[self.name]
        if self.product:
            return prod(node.size(sizes) for node in self.product)
        return sum(node.size(sizes) for _, node in self.parts)


@dataclass(frozen=True, slots=True)
class Rows:
    """One compiled row pattern."""

    text: str
    node: _Node

    @property
    def names(self) -> set[str]:
        """The sizes that the pattern names."""
        return self.node.names()

    @property
    def parts(self) -> tuple[str, ...]:
        """The named parts, in the order in which they are laid; empty where there are none."""
        return tuple(part for part, _ in (_sum(self.node) or _Node()).parts)

    def size(self, sizes: Sizes) -> int:
        return self.node.size(sizes)

    def part_size(self, part: str, sizes: Sizes) -> int:
        """Return how many rows of the axis belong to `part`."""
        return int(_spread(self.node, sizes)[part][1].size)

    def positions(self, part: str, canonical: Rows, sizes: Sizes) -> Index:
        """Return where the rows of `part` (all rows: "") lie, in the order of `canonical`.

        >>> read, write = compile_rows("(heads 2 half)"), compile_rows("(heads half 2)")
        >>> write.positions("", read, {"heads": 1, "half": 4}).tolist()
        [0, 2, 4, 6, 1, 3, 5, 7]
        """
        spread = _spread(self.node, sizes)
        if part or len(canonical.parts) < 2:
            return _simple(_align(*spread[part or next(iter(spread))], canonical.node))
        return _simple(_all_parts(spread, _spread(canonical.node, sizes)))


def _sum(node: _Node) -> _Node | None:
    if node.parts:
        return node
    return next((found for child in node.product if (found := _sum(child))), None)


def _spread(node: _Node, sizes: Sizes) -> dict[str, tuple[tuple[str, ...], Positions]]:
    """Return, by part, the names of its axes and the positions with one dimension for each."""
    import numpy as np

    if node.name:
        return {"": ((node.name,), np.arange(node.size(sizes)))}
    if node.parts:
        found, start = {}, 0
        for part, child in node.parts:
            names, positions = _spread(child, sizes)[""]
            found[part] = (names, positions + start)
            start += child.size(sizes)
        return found
    total: dict[str, tuple[tuple[str, ...], Positions]] = {"": ((), np.zeros((), np.int64))}
    for child in node.product:
        size, inner = child.size(sizes), _spread(child, sizes)
        total = {
            left or right: (a + b, p[(...,) + (None,) * q.ndim] * size + q)
            for left, (a, p) in total.items()
            for right, (b, q) in inner.items()
        }
    return total


def _align(names: tuple[str, ...], positions: Positions, canonical: _Node) -> Positions:
    """Flatten positions, in the axis order of `canonical` where it has the same axes."""
    wanted = [child.name for child in canonical.product]
    if sorted(wanted) == sorted(names):
        positions = positions.transpose([names.index(name) for name in wanted])
    return positions.reshape(-1)


def _all_parts(stored: Any, canonical: Any) -> Positions:
    """Return the stored position of every canonical row of an axis that both lay out by parts."""
    import numpy as np

    total = sum(positions.size for _, positions in canonical.values())
    index = np.empty(total, np.int64)
    for part, (_, positions) in canonical.items():
        index[positions.reshape(-1)] = stored[part][1].reshape(-1)
    return index


def _simple(index: Positions) -> Index:
    start = int(index[0]) if index.size else 0
    if index.size and int(index[-1]) - start + 1 == index.size and (index[1:] > index[:-1]).all():
        return slice(start, start + index.size)
    return index


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.tokens, at = text, list[str](), 0
        while at < len(text.rstrip()):
            token = _TOKEN.match(text, at)
            if token is None:
                raise SpecError("AT293", f"rows {text!r}: cannot read from {text[at:]!r}")
            self.tokens.append(token[1])
            at = token.end()

    def read(self) -> _Node:
        node = self._node()
        if self.tokens:
            raise SpecError("AT293", f"rows {self.text!r}: {self.tokens[0]!r} follows the end")
        return node

    def _next(self) -> str:
        if not self.tokens:
            raise SpecError("AT293", f"rows {self.text!r}: a bracket is never closed")
        return self.tokens.pop(0)

    def _node(self) -> _Node:
        token = self._next()
        if token == "(":
            children: list[_Node] = []
            while self.tokens and self.tokens[0] != ")":
                children.append(self._node())
            self._next()
            if not children:
                raise SpecError("AT293", f"rows {self.text!r}: empty '()'")
            return _Node(product=tuple(children))
        if token == "[":
            parts: list[tuple[str, _Node]] = []
            while self.tokens and self.tokens[0] != "]":
                name = self._next()
                if not name.endswith(":"):
                    raise SpecError("AT293", f"rows {self.text!r}: a part is 'name:axis'")
                parts.append((name[:-1], self._node()))
            self._next()
            return _Node(parts=tuple(parts))
        if token in ")]" or token.endswith(":"):
            raise SpecError("AT293", f"rows {self.text!r}: unexpected {token!r}")
        return _Node(token)


@cache
def compile_rows(text: str) -> Rows:
    """Compile `text`; raises `SpecError` (AT293) when it is malformed."""
    return Rows(text, _Reader(text).read())
