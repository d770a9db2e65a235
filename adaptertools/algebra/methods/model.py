"""What a method of composition is, and the check of one parameter. Free of torch.

One rule for weights: where a paper has none, a weight multiplies the adapter's ΔW first, so that
weights of 1 are the paper's method and −1 negates an adapter.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from adaptertools.errors import AdapterError

Kind = Literal["low_rank", "dense", "base"]
Value = float | int | str | bool
Params = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter: its kind, default, the bounds of a number (within reach), or its choices."""

    name: str
    kind: Literal["float", "int", "str", "bool"]
    default: Value
    low: float | None = None
    high: float | None = None
    help: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Late:
    """A function named by module and name, imported when first called: listing needs no torch."""

    module: str
    name: str

    def __call__(self, *arguments: Any) -> Any:
        return self.found()(*arguments)

    def found(self) -> Callable[..., Any]:
        """Return the function."""
        found: Callable[..., Any] = getattr(
            import_module(f"adaptertools.algebra.methods.{self.module}"), self.name
        )
        return found


@dataclass(frozen=True, slots=True)
class Method:
    """A method of composition.

    `run` takes, by `kind`: low_rank (terms, params, key) → (up, down); dense (deltas, weights,
    params, key) → ΔW; base (base, deltas, weights, params, key) → ΔW. Tensors are fp64 and in the
    logical orientation (out × in). `exact`: an adapter holds the result of the formula on ΔW
    without loss. `random`: it draws from the key. `row_local`: it may be given some rows at a time
    (`by_rows`). `inner`: the methods that it can apply within, by its parameter `inner`. `check`
    returns what is wrong with parameters that are each within bounds.
    """

    name: str
    title: str
    paper: str
    formula: str
    kind: Kind
    run: Callable[..., Any]
    params: tuple[Param, ...] = ()
    exact: bool = False
    least: int = 1
    most: int | None = None
    random: bool = False
    row_local: bool = False
    inner: tuple[str, ...] = ()
    check: Callable[[Params], str] | None = None
    note: str = ""

    def by_rows(self, params: Params) -> bool:
        """Say whether blocks of rows, with `key.start` their place, give the whole's result."""
        return self.row_local and params.get("rescale") not in ("l1", "l2")


def near(name: str, known: Iterable[str]) -> str:
    """Return a hint: the name that is nearest, or all of them."""
    names = sorted(known)
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {found[0]!r}?" if found else f"known: {', '.join(names) or 'none'}"


def check_value(method: Method, param: Param, value: object) -> Value:
    """Return a parameter's value as its kind; raises `AdapterError` (AT500)."""
    place = f"{method.name}: {param.name}"
    if param.kind == "str":
        if not isinstance(value, str) or (param.choices and value not in param.choices):
            hint = near(str(value), param.choices)
            raise AdapterError("AT500", f"{place} cannot be {value!r}", hint=hint)
        return value
    if param.kind == "bool":
        read = {"true": True, "false": False}.get(str(value).lower())
        if read is None:
            raise AdapterError("AT500", f"{place} is true or false, not {value!r}")
        return read
    return _number(place, param, value)


def _number(place: str, param: Param, value: object) -> float | int:
    number: float | int
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = int(str(value)) if param.kind == "int" else float(value)
    except ValueError:
        noun = "a whole number" if param.kind == "int" else "a number"
        raise AdapterError("AT500", f"{place} is {noun}, not {value!r}") from None
    low = float("-inf") if param.low is None else param.low
    high = float("inf") if param.high is None else param.high
    if not low <= number <= high or number in (float("inf"), float("-inf")):
        told = f"{place} must lie in {low:g} to {high:g}, not {value!r}"
        raise AdapterError("AT500", told)
    return number
