"""Faults of a merge that several rules share."""

from __future__ import annotations

from pathlib import Path

from adaptertools.errors import MergeError

WRONG_BASE = "is this the base the adapter was trained on?"


def nowhere(root: Path, target: str, why: str) -> MergeError:
    """Return the error (AT401) for a target that a base of another naming scheme does not hold."""
    return MergeError(
        "AT401", f"the base has no such tensor: {why}", file=root, key=target, hint=WRONG_BASE
    )


def conflict(name: str, what: str, who: str = "two adapters") -> MergeError:
    """Return the error (AT412) for adapters that cannot have their way with a tensor."""
    return MergeError(
        "AT412",
        f"{who} {what}",
        key=name,
        hint="merge only one of them, or combine them first",
    )


def shape_error(name: str, base: tuple[int, ...], adapter: tuple[int, ...]) -> MergeError:
    """Return the error (AT403) for an adapter's tensor that is not of the base tensor's shape."""
    return MergeError(
        "AT403",
        f"the base tensor is {list(base)}, the adapter's is {list(adapter)}",
        key=name,
        hint=WRONG_BASE,
    )
