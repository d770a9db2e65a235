"""All methods by name, and their parameters checked. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from adaptertools.algebra.methods.dense_table import BASE, DENSE
from adaptertools.algebra.methods.low_rank_table import LOW_RANK
from adaptertools.algebra.methods.model import Method, Param, check_value, near
from adaptertools.algebra.methods.peft_table import PEFT
from adaptertools.errors import AdapterError

Compat = Literal["", "peft"]
REGISTRY: dict[str, Method] = {method.name: method for method in (*LOW_RANK, *DENSE, *BASE)}
COMPAT: dict[str, dict[str, Method]] = {"peft": {method.name: method for method in PEFT}}
ALIASES = {
    **dict.fromkeys(("task_arithmetic", "exact", "cat", "concat", "lora_soups"), "linear"),
    "magnitude_prune": "magnitude",
    "mean": "average",
}


def get_method(name: str, compat: Compat = "") -> Method:
    """Return the method called `name`, ours or as a peer does it.

    Raises `AdapterError` (AT500) with near misses.
    """
    known = COMPAT[compat] if compat else REGISTRY
    found = known.get(name if compat else ALIASES.get(name, name))
    if found is not None:
        return found
    whose = f"{compat} has no method" if compat else "no method is"
    hint = near(name, known if compat else [*known, *ALIASES])
    raise AdapterError("AT500", f"{whose} called {name!r}", hint=hint)


def declared(method: Method, given: Mapping[str, object]) -> dict[str, Param]:
    """Return the parameters a method takes, those of the inner method that is chosen too."""
    own = {param.name: param for param in method.params}
    if method.inner:
        chosen = check_value(method, own["inner"], given.get("inner", own["inner"].default))
        own |= {param.name: param for param in REGISTRY[str(chosen)].params}
    return own


def check_params(method: Method, given: Mapping[str, object]) -> dict[str, Any]:
    """Return a method's parameters, checked and complete; text is read as the kind it should be.

    Raises `AdapterError` (AT500) for an unknown name or a value that is not allowed.
    """
    known = declared(method, given)
    if (strange := next((name for name in given if name not in known), None)) is not None:
        told = f"the method {method.name!r} has no parameter {strange!r}"
        raise AdapterError("AT500", told, hint=near(strange, known))
    whole = {
        name: check_value(method, param, given.get(name, param.default))
        for name, param in known.items()
    }
    check = REGISTRY[str(whole["inner"])].check if method.inner else method.check
    if check and (wrong := check(whole)):
        raise AdapterError("AT500", f"{method.name}: {wrong}")
    return whole


def check_count(method: Method, count: int) -> None:
    """Raise `AdapterError` (AT500) where a method cannot take so many adapters."""
    if count < method.least:
        raise AdapterError("AT500", f"{method.name} takes {method.least} adapters or more")
    if method.most is not None and count > method.most:
        told = f"{method.name} takes {method.most} adapters, not {count}"
        raise AdapterError("AT500", told, hint="compose two at a time, or choose another method")
