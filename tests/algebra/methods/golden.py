"""The worked cases of composition: tensors and expectations as the file has them, in fp64."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from adaptertools.algebra.methods.registry import check_params, get_method
from adaptertools.algebra.randomness import Key
from adaptertools.algebra.terms import Term

FILE = Path(__file__).resolve().parents[1] / "golden" / "composition-golden.json"
DOCUMENT = json.loads(FILE.read_text())
CASES: dict[str, dict[str, Any]] = {case["id"]: case for case in DOCUMENT["cases"]}
SHARED = DOCUMENT["shared"]


def tensor(values: object) -> torch.Tensor:
    """Return nested lists as an fp64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def term(name: str, weight: float = 1.0, *, rslora: bool = False) -> Term:
    """Return a shared adapter."""
    adapter = SHARED[name]
    scale = adapter["alpha"] / (adapter["r"] ** 0.5 if rslora else adapter["r"])
    return Term(tensor(adapter["B"]) * scale, tensor(adapter["A"]), weight, scale)


def terms(case: dict[str, Any]) -> list[Term]:
    """Return a case's adapters with its weights."""
    names = case["inputs"]["adapters"]
    weights = case.get("weights") or [1.0] * len(names)
    return [term(name, weight) for name, weight in zip(names, weights, strict=True)]


def deltas(case: dict[str, Any]) -> list[torch.Tensor]:
    """Return a case's dense changes."""
    return [tensor(SHARED[name]) for name in case["inputs"]["deltas"]]


def as_terms(changes: Sequence[torch.Tensor], weights: Sequence[float]) -> list[Term]:
    """Return dense changes as terms of full rank."""
    eye = torch.eye(changes[0].shape[1], dtype=torch.float64)
    return [Term(change, eye, weight) for change, weight in zip(changes, weights, strict=True)]


def key_for(count: int, seed: int = 7) -> Key:
    """Return a key with ids a, b, …"""
    return Key(seed, "layers.0.q_proj", tuple(f"adapter-{chr(97 + i)}" for i in range(count)))


def run(
    name: str,
    given: Sequence[Term] | Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    params: dict[str, object] | None = None,
    *,
    base: torch.Tensor | None = None,
    compat: Any = "",
    key: Key | None = None,
) -> torch.Tensor:
    """Run any method on terms or on dense changes, and return the dense result."""
    method = get_method(name, compat)
    checked = check_params(method, params or {})
    key = key or key_for(len(given))
    if method.kind == "low_rank":
        listed = [t for t in given if isinstance(t, Term)]
        if not listed:
            listed = as_terms([t for t in given if isinstance(t, torch.Tensor)], weights or [])
        elif weights is not None:
            listed = [replace(t, weight=w) for t, w in zip(listed, weights, strict=True)]
        up, down = method.run(listed, checked, key)
        assert isinstance(up, torch.Tensor)
        return up @ down
    dense = [t.up @ t.down if isinstance(t, Term) else t for t in given]
    used = weights or [t.weight if isinstance(t, Term) else 1.0 for t in given]
    arguments = (dense, used, checked, key)
    result = method.run(base, *arguments) if method.kind == "base" else method.run(*arguments)
    assert isinstance(result, torch.Tensor)
    return result


def check(case: dict[str, Any], got: object, name: str, **tolerance: float) -> None:
    """Assert that `got` is what a case expects under `name`."""
    expected = tensor(case["expected"][name])
    values = got if isinstance(got, torch.Tensor) else tensor(got)
    torch.testing.assert_close(values, expected, **(tolerance or case["tolerance"]))


def ids(prefixes: Iterable[str]) -> list[str]:
    """Return the ids of cases that begin so."""
    return [name for name in CASES if name.startswith(tuple(prefixes))]
