"""Rank rules: the rank, the energy that is told to be lost, and the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import adaptertools
from adaptertools import AdapterError

from .making import (
    SAMPLE,
    Q,
    V,
    apart,
    composed,
    config_of,
    deltas,
    lora,
    rank_in,
    tensors_of,
    total,
    weights_of,
)

NAMES = [f"{module}.weight" for module in SAMPLE]


def three(place: Path) -> list[tuple[Path, float]]:
    return [
        (lora(place, "a", rank=3), 1.0),
        (lora(place, "b", rank=4, alpha=3, dtypes=["BF16"]), -0.6),
        (lora(place, "c", SAMPLE[:2], rank=2, alpha=1), 0.3),
    ]


def singular(value: np.ndarray) -> np.ndarray:
    return np.linalg.svd(value, compute_uv=False)


def least(sigma: np.ndarray, rule: tuple[str, float]) -> int:
    """The definitions of composition.md, by counting."""
    name, value = rule
    energy = np.cumsum(sigma**2) / (sigma**2).sum()
    if name == "rank":
        return min(int(value), int((sigma > 1e-9 * sigma[0]).sum()))
    if name in ("energy", "fro"):
        wanted = value if name == "energy" else value**2
        return next(k for k in range(1, len(sigma) + 1) if energy[k - 1] >= wanted)
    if name == "sum":
        return next(k for k in range(1, 99) if sigma[:k].sum() >= value * sigma.sum())
    if name == "ratio":
        return max(1, int((sigma > sigma[0] / value).sum()))
    if name == "sv_min":
        return max(1, int((sigma > value).sum()))
    norm = np.sqrt((sigma**2).sum())
    return next(k for k in range(99) if np.sqrt((sigma[k:] ** 2).sum()) <= value * norm)


RULES = [
    ("rank", 1),
    ("rank", 4),
    ("rank", 99),
    ("energy", 0.5),
    ("energy", 0.9),
    ("fro", 0.9),
    ("sum", 0.8),
    ("ratio", 2.5),
    ("sv_min", 1.1),
    ("max_error", 0.4),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_rank_and_error_are_those_of_the_svd(tmp_path: Path, rule: tuple[str, float]) -> None:
    parts = three(tmp_path)
    result = adaptertools.compose(parts, tmp_path / "out", rule=rule, jobs=1)
    wanted, got = total(parts), deltas(tmp_path / "out")
    for name in NAMES:
        whole = wanted[name].value
        sigma = singular(whole)
        rank = least(sigma, rule)
        assert rank_in(tmp_path / "out", name.removesuffix(".weight")) == rank, name
        energy = (sigma**2).sum()
        lost = (sigma[rank:] ** 2).sum() / energy
        assert result.plan.discarded[name] == pytest.approx(lost, abs=1e-12)
        left = np.linalg.norm(got[name] - whole) ** 2 / energy
        assert left == pytest.approx(lost, rel=1e-4, abs=1e-12)


def test_ranks_that_differ_are_told(tmp_path: Path) -> None:
    result = adaptertools.compose(three(tmp_path), tmp_path / "out", rule=("rank", 99), jobs=1)
    assert result.plan.ranks == (7, 9)
    told = config_of(tmp_path / "out")
    assert {told["r"], *told["rank_pattern"].values()} == {7, 9}
    assert told["lora_alpha"] == told["r"]


@pytest.mark.parametrize("split", ["balanced", "up", "down"])
def test_split_moves_sigma_only(tmp_path: Path, split: str) -> None:
    parts = three(tmp_path)
    out = composed(tmp_path, *parts, rule=("rank", 2), split=split)
    other = composed(tmp_path, *parts, rule=("rank", 2), name="other")
    assert apart(deltas(out), deltas(other)) < 1e-6
    for key, value in tensors_of(out).items():
        rows = value if "lora_A" in key else value.T
        sizes = rows.astype(np.float64) @ rows.T.astype(np.float64)
        np.testing.assert_allclose(sizes - np.diag(np.diag(sizes)), 0, atol=1e-5)
        unit = split == ("up" if "lora_A" in key else "down")
        assert np.allclose(np.diag(sizes), 1, atol=1e-5) == unit, key


def test_one_target_of_one_adapter_is_reduced_too(tmp_path: Path) -> None:
    a, b = lora(tmp_path, "a", Q, rank=4), lora(tmp_path, "b", V, rank=4)
    out = composed(tmp_path, (a, 2.0), b, rule=("rank", 2))
    assert {rank_in(out, m) for m in [*Q, *V]} == {2}


def test_cancelled_changes_leave_rank_one_of_zeros(tmp_path: Path) -> None:
    a = lora(tmp_path, alpha=3.7)
    out = composed(tmp_path, (a, 0.7), (a, -0.7), rule=("energy", 0.99))
    assert {rank_in(out, m) for m in SAMPLE} == {1}
    assert not any(value.any() for value in deltas(out).values())


def test_an_adapter_twice_has_its_own_rank(tmp_path: Path) -> None:
    a = lora(tmp_path, rank=3)
    out = composed(tmp_path, a, (a, 0.5), rule=("max_error", 0.0))
    assert {rank_in(out, m) for m in SAMPLE} == {3}
    assert apart(deltas(out), {n: 1.5 * d for n, d in deltas(a).items()}) < 1e-6


DRAWN = {"method": "dare_ties", "params": {"density": 0.6}, "rule": ("rank", 3)}


@pytest.mark.parametrize(
    "options",
    [{}, {"rule": ("rank", 2)}, {"method": "ties"}, DRAWN, {"method": "knots"}],
    ids=["exact", "rank", "ties", "dare", "knots"],
)
def test_the_same_bytes_twice_and_for_two_threads(tmp_path: Path, options: dict) -> None:
    parts = three(tmp_path)
    outs = [
        composed(tmp_path, *parts, name=f"out{n}", jobs=jobs, **options)
        for n, jobs in enumerate((1, 1, 2))
    ]
    assert len({weights_of(out) for out in outs}) == 1
    assert len({(out / "adapter_config.json").read_bytes() for out in outs}) == 1


@pytest.mark.parametrize("rule", [("rank", 0), ("energy", 1.5), ("fro", -1), ("ratio", 0.5)])
def test_impossible_rules(tmp_path: Path, rule: tuple[str, float]) -> None:
    with pytest.raises(AdapterError, match="must lie in"):
        composed(tmp_path, *three(tmp_path), rule=rule)
    assert not list(tmp_path.glob("*out*"))


def test_unknown_rule_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no rank rule is called 'dim'") as raised:
        composed(tmp_path, lora(tmp_path), rule=("dim", 3))
    assert "energy" in str(raised.value.hint)
