"""Dims patterns: how a stored tensor relates to the canonical one, in the manner of einops.

`out rank` names two axes; `(experts rank) in` says that the first stored axis is two axes, slowest
first; `out in *k` ends in any number of kernel axes and `out rank *1` in any number of ones.
Patterns are checked against shapes alone and inverted mechanically.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

from adaptertools.errors import FormatError, SpecError

Sizes = Mapping[str, int]
_TOKEN = re.compile(r"\s*([()]|\*1|\*?[A-Za-z_][A-Za-z0-9_]*|[0-9]+)")


@dataclass(frozen=True, slots=True)
class Axis:
    """One stored axis: the product of `names`, slowest first (numbers stand for themselves)."""

    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.names[0] if len(self.names) == 1 else f"({' '.join(self.names)})"


@dataclass(frozen=True, slots=True)
class Dims:
    """One compiled dims pattern; `tail` is `k` for `*k`, `1` for `*1`, else empty."""

    text: str
    axes: tuple[Axis, ...]
    tail: str = ""

    def solve(self, shape: Sequence[int], known: Sizes | None = None) -> dict[str, int]:
        """Return the size of every axis of a tensor of `shape`, given the `known` ones.

        Raises `FormatError` (AT220) that re-tells the pattern, the shape and the axis at odds.

        >>> compile_dims("(experts rank) in").solve((8, 5), {"experts": 4})
        {'experts': 4, 'rank': 2, 'in': 5}
        """
        rank_ok = len(shape) >= len(self.axes) if self.tail else len(shape) == len(self.axes)
        if not rank_ok:
            more = " or more" if self.tail else ""
            raise self._mismatch(shape, f"it needs {len(self.axes)}{more} dimensions")
        sizes = dict(known or {})
        for axis, size in zip(self.axes, shape, strict=False):
            self._solve_axis(axis, size, sizes, shape)
        rest = tuple(shape[len(self.axes) :])
        if self.tail == "1" and any(n != 1 for n in rest):
            raise self._mismatch(shape, "the trailing axes must be 1")
        if self.tail and self.tail != "1":
            sizes[self.tail] = prod(rest)
        return sizes

    def _solve_axis(
        self, axis: Axis, size: int, sizes: dict[str, int], shape: Sequence[int]
    ) -> None:
        unknown = [n for n in axis.names if not n.isdigit() and n not in sizes]
        given = prod(_size(n, sizes) for n in axis.names if n not in unknown)
        if len(unknown) == 1 and given and size % given == 0:
            sizes[unknown[0]] = size // given
        elif unknown or given != size:
            facts = ", ".join(f"{n}={sizes[n]}" for n in axis.names if n in sizes)
            raise self._mismatch(shape, f"axis {axis} of size {size} does not fit {facts or given}")

    def fits(self, shape: Sequence[int], known: Sizes | None = None) -> bool:
        """Say whether a tensor of `shape` can follow this pattern."""
        try:
            self.solve(shape, known)
        except FormatError:
            return False
        return True

    def to_canonical(self, tensor: Any, axes: Sequence[str], sizes: Sizes) -> Any:
        """Return `tensor` (torch or numpy) with one dimension per name in `axes`, in that order.

        Kernel axes, where the pattern has them, stay behind as they are.
        """
        names = [n for axis in self.axes for n in axis.names]
        kernel = tuple(tensor.shape[len(self.axes) :]) if self.tail not in ("", "1") else ()
        spread = tensor.reshape(tuple(_size(n, sizes) for n in names) + kernel)
        kept = [names.index(name) for name in axes]
        ones = [i for i, n in enumerate(names) if n.isdigit()]
        order = ones + kept + list(range(len(names), len(names) + len(kernel)))
        permuted = spread.permute(order) if hasattr(spread, "permute") else spread.transpose(order)
        return permuted.reshape(tuple(permuted.shape[len(ones) :]))

    def to_stored(self, tensor: Any, axes: Sequence[str], sizes: Sizes) -> Any:
        """Return the stored form of a tensor (torch or numpy) in canonical `axes`, no copy made.

        The inverse of `to_canonical`; a kernel stays behind, a tail of ones is left out.
        """
        names = [n for axis in self.axes for n in axis.names]
        kept = [n for n in names if not n.isdigit()]
        kernel = tuple(tensor.shape[len(axes) :])
        order = [axes.index(n) for n in kept] + list(range(len(axes), len(axes) + len(kernel)))
        permuted = tensor.permute(order) if hasattr(tensor, "permute") else tensor.transpose(order)
        shape = [prod(_size(n, sizes) for n in axis.names) for axis in self.axes]
        return permuted.reshape((*shape, *kernel))

    @property
    def names(self) -> frozenset[str]:
        """The axes that the pattern names."""
        return frozenset(n for axis in self.axes for n in axis.names if not n.isdigit())

    def _mismatch(self, shape: Sequence[int], why: str) -> FormatError:
        return FormatError("AT220", f"shape {list(shape)} does not fit '{self.text}': {why}")


def _size(name: str, sizes: Sizes) -> int:
    if name.isdigit():
        return int(name)
    if name not in sizes:
        raise SpecError("AT293", f"the size of axis {name!r} is not known")
    return sizes[name]


class _Reader:
    """A one-pass reader of the dims language."""

    def __init__(self, text: str) -> None:
        self.text, self.tokens, at = text, list[str](), 0
        while at < len(text.rstrip()):
            token = _TOKEN.match(text, at)
            if token is None:
                raise SpecError("AT293", f"dims {text!r}: cannot read from {text[at:]!r}")
            self.tokens.append(token[1])
            at = token.end()

    def read(self) -> Dims:
        axes: list[Axis] = []
        tail = ""
        while self.tokens:
            token = self.tokens.pop(0)
            if tail:
                raise SpecError("AT293", f"dims {self.text!r}: '*{tail}' must come last")
            if token.startswith("*"):
                tail = token[1:]
            elif token == "(":
                axes.append(Axis(self._group()))
            else:
                axes.append(Axis((self._name(token),)))
        names = [n for a in axes for n in a.names if not n.isdigit()]
        if len(names) != len(set(names)):
            raise SpecError("AT293", f"dims {self.text!r}: an axis is named twice")
        return Dims(self.text, tuple(axes), tail)

    def _name(self, token: str) -> str:
        if token in "()" or token.startswith("*"):
            raise SpecError("AT293", f"dims {self.text!r}: unexpected {token!r}")
        return token

    def _group(self) -> tuple[str, ...]:
        names: list[str] = []
        while (token := self._next()) != ")":
            names.append(self._name(token))
        if not names:
            raise SpecError("AT293", f"dims {self.text!r}: empty '()'")
        return tuple(names)

    def _next(self) -> str:
        if not self.tokens:
            raise SpecError("AT293", f"dims {self.text!r}: a bracket is never closed")
        return self.tokens.pop(0)


@cache
def compile_dims(text: str) -> Dims:
    """Compile `text`; raises `SpecError` (AT293) when it is malformed."""
    return _Reader(text).read()


@cache
def _expression(text: str) -> tuple[tuple[str, str], ...]:
    word = r"(?:[A-Za-z_][\w.]*|[0-9]+)"
    if not re.fullmatch(rf"\s*{word}(?:\s*[*/]\s*{word})*\s*", text):
        raise SpecError("AT293", f"size {text!r} is not names joined by * or /")
    return tuple(re.findall(rf"([*/]?)\s*({word})", text))


def evaluate(text: str, values: Mapping[str, Any]) -> int | None:
    """Return a size such as `hidden_size/num_attention_heads`, or None where a term is missing, a
    division leaves a rest, or the flag it hangs on (`… if flag`, `… if not flag`) is not so.

    >>> evaluate("hidden_size/num_attention_heads", {"hidden_size": 64, "num_attention_heads": 8})
    8
    """
    total = 1
    size, condition, flag = text.partition(" if ")
    wanted = not flag.startswith("not ")
    if condition and values.get(flag.removeprefix("not ")) is not wanted:
        return None
    for operator, name in _expression(size):
        value = int(name) if name.isdigit() else values.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            return None
        if operator == "/" and total % value:
            return None
        total = total // value if operator == "/" else total * value
    return total
