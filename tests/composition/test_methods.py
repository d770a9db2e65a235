"""Methods by their names: that weights, terms and adapters without a module reach each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.answers import Shell

from adaptertools import AdapterError

from .making import SAMPLE, Q, V, apart, composed, deltas, lora, weights_of

TINY = 2e-6
ONLY_A = f"{SAMPLE[2]}.weight"  # b lacks this module


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two adapters; the second has no change of ONLY_A."""
    return lora(tmp_path, "a"), lora(tmp_path, "b", SAMPLE[:2], rank=4, alpha=3)


def full(place: Path, *adapters: Any, **options: Any) -> dict[str, np.ndarray]:
    """Return ΔW of a method at a rank that loses nothing."""
    return deltas(composed(place, *adapters, rule=("rank", 200), **options))


def added(pair: tuple[Path, Path], one: float, other: float) -> dict[str, np.ndarray]:
    a, b = map(deltas, pair)
    return {name: one * a[name] + other * b.get(name, 0 * a[name]) for name in a}


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))


def trimmed(value: np.ndarray, density: float) -> np.ndarray:
    order = np.argsort(-np.abs(value).ravel(), kind="stable")
    kept = np.zeros(value.size, bool)
    kept[order[: int(density * value.size)]] = True
    return np.where(kept.reshape(value.shape), value, 0)


def ties(terms: list[tuple[np.ndarray, float]], density: float) -> np.ndarray:
    stack = np.stack([w * trimmed(d, density) for d, w in terms])
    agrees = np.sign(stack) == np.where(stack.sum(0) >= 0, 1, -1)
    share = (agrees * np.array([abs(w) for _, w in terms])[:, None, None]).sum(0)
    return np.where(agrees, stack, 0).sum(0) / np.where(share == 0, 1, share)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 2.0), (1.0, -0.7)])
def test_ties_is_the_formula(tmp_path: Path, pair: tuple, weights: tuple) -> None:
    got = full(tmp_path, *zip(pair, weights, strict=True), method="ties", params={"density": 0.4})
    a, b = map(deltas, pair)
    wanted = {
        name: ties([(a[name], weights[0]), (b.get(name, 0 * a[name]), weights[1])], 0.4)
        for name in a
    }
    assert apart(got, wanted) < TINY


def test_ties_of_one_adapter_twice_is_the_adapter(tmp_path: Path, pair: tuple) -> None:
    got = full(tmp_path, pair[0], (pair[0], 3.0), method="ties")
    assert apart(got, deltas(pair[0])) < TINY


def test_magnitude_keeps_the_largest(tmp_path: Path, pair: tuple) -> None:
    parts = list(zip(pair, (0.5, -2.0), strict=True))
    got = full(tmp_path, *parts, method="magnitude", params={"density": 0.3})
    wanted: dict = {}
    for folder, weight in parts:
        for name, value in deltas(folder).items():
            wanted[name] = wanted.get(name, 0) + weight * trimmed(value, 0.3)
    assert apart(got, wanted) < TINY


@pytest.mark.parametrize(
    "method", ["dare_linear", "magnitude", "breadcrumbs", "della_linear", "linear", "cat"]
)
def test_all_kept_is_the_sum(tmp_path: Path, pair: tuple, method: str) -> None:
    """With density 1 nothing is dropped, and nothing is rescaled."""
    got = full(tmp_path, (pair[0], 0.5), (pair[1], -2.0), method=method)
    assert apart(got, added(pair, 0.5, -2.0)) < TINY


def test_dare_keeps_and_rescales(tmp_path: Path) -> None:
    """Every element is 0 or δ / ρ, about as many as ρ says; each adapter has its own mask."""
    a = lora(tmp_path, "a", V)
    got = full(tmp_path, a, method="dare_linear", params={"density": 0.25})
    for name, value in deltas(a).items():
        ratio = got[name][value != 0] / value[value != 0]
        kept = np.abs(ratio - 4) < 0.01
        assert (kept | (np.abs(ratio) < 0.01)).all()
        assert 0.2 < kept.mean() < 0.3


def test_a_seed_is_another_draw(tmp_path: Path, pair: tuple) -> None:
    outs = [
        composed(
            tmp_path,
            *pair,
            name=f"o{n}",
            method="dare_linear",
            params={"density": 0.5},
            rule=("rank", 4),
            seed=seed,
        )
        for n, seed in enumerate((0, 0, 1))
    ]
    one, two, three = map(weights_of, outs)
    assert one == two != three


def test_dare_of_an_adapter_does_not_depend_on_the_others(tmp_path: Path) -> None:
    a, b = lora(tmp_path, "a", Q[:1]), lora(tmp_path, "b", V[:1])
    options: dict = {"method": "dare_linear", "params": {"density": 0.5}}
    alone = full(tmp_path, a, name="one", **options)
    both = full(tmp_path, b, a, name="two", **options)
    assert apart({f"{Q[0]}.weight": both[f"{Q[0]}.weight"]}, alone) < TINY


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (1.0, -0.5)])
def test_average_counts_adapters_without_the_module(
    tmp_path: Path, pair: tuple, weights: tuple
) -> None:
    got = full(tmp_path, *zip(pair, weights, strict=True), method="average")
    whole = sum(weights)
    assert apart(got, added(pair, weights[0] / whole, weights[1] / whole)) < TINY
    got = full(
        tmp_path, *zip(pair, weights, strict=True), name="b", method="mean",
        params={"base_weight": 2},
    )  # fmt: skip
    assert apart(got, added(pair, *(w / (whole + 2) for w in weights))) < TINY


@pytest.mark.parametrize(("t", "which"), [(0.0, (0.5, 0.0)), (1.0, (0.0, -2.0))])
def test_slerp_ends_are_the_weighted_adapters(
    tmp_path: Path, pair: tuple, t: float, which: tuple
) -> None:
    got = full(tmp_path, (pair[0], 0.5), (pair[1], -2.0), method="slerp", params={"t": t})
    wanted = added(pair, *which)
    for name in deltas(pair[1]):
        assert apart({name: got[name]}, {name: wanted[name]}) < TINY


def test_slerp_goes_along_the_arc(tmp_path: Path) -> None:
    a, b = lora(tmp_path, "a", V), lora(tmp_path, "b", V)
    got = full(tmp_path, a, b, method="slerp", params={"t": 0.25})
    x, y = deltas(a), deltas(b)
    for name, value in got.items():
        theta = np.arccos(cosine(x[name], y[name]))
        one, two = np.sin(0.75 * theta) / np.sin(theta), np.sin(0.25 * theta) / np.sin(theta)
        assert apart({name: value}, {name: one * x[name] + two * y[name]}) < TINY


def test_karcher_of_two_lies_halfway_with_the_mean_norm(tmp_path: Path) -> None:
    a, b = lora(tmp_path, "a", V), lora(tmp_path, "b", V, alpha=20)
    got, x, y = full(tmp_path, a, b, method="karcher"), deltas(a), deltas(b)
    for name, value in got.items():
        one, two = (np.linalg.norm(d[name]) for d in (x, y))
        assert cosine(value, x[name]) == pytest.approx(cosine(value, y[name]), abs=1e-5)
        assert np.linalg.norm(value) == pytest.approx((one + two) / 2, rel=1e-5)


@pytest.mark.parametrize("method", ["karcher", "multislerp", "average", "ties", "nuslerp", "slerp"])
def test_an_adapter_twice_is_its_own_mean(tmp_path: Path, method: str) -> None:
    a = lora(tmp_path)
    assert apart(full(tmp_path, a, a, method=method), deltas(a)) < TINY


def test_model_stock_shrinks_by_the_mean_cosine(tmp_path: Path, pair: tuple) -> None:
    got, (a, b) = full(tmp_path, *pair, method="model_stock"), map(deltas, pair)
    for name in b:
        c = cosine(a[name], b[name])
        wanted = max(0.0, 2 * c / (1 + c)) * (a[name] + b[name]) / 2
        assert apart({name: got[name]}, {name: wanted}) < 1e-5
    assert got[f"{SAMPLE[1]}.weight"].any()  # their cosine is positive here
    assert not got[ONLY_A].any()


def test_knots_with_a_linear_inner_method_is_the_sum(tmp_path: Path, pair: tuple) -> None:
    parts = list(zip(pair, (0.5, -2.0), strict=True))
    for n, method in enumerate(("knots", "core_space")):
        got = full(tmp_path, *parts, name=f"o{n}", method=method, params={"inner": "linear"})
        assert apart(got, added(pair, 0.5, -2.0)) < TINY


@pytest.mark.parametrize("method", ["tsv", "iso_c_lowrank", "knots", "core_space", "sce", "ram"])
def test_the_only_adapter_with_a_module(tmp_path: Path, pair: tuple, method: str) -> None:
    """Where b has nothing, what a does stays in place: the same direction, or all of it."""
    got, one = full(tmp_path, *pair, method=method)[ONLY_A], deltas(pair[0])[ONLY_A]
    if method == "iso_c_lowrank":
        sigma = np.linalg.svd(got, compute_uv=False)[:3]
        mean = np.linalg.svd(one, compute_uv=False)[:3].mean()
        np.testing.assert_allclose(sigma, mean, rtol=1e-5)
    else:
        assert apart({"x": got}, {"x": one}) < 1e-4


def test_tsv_of_orthogonal_tasks_is_their_sum(tmp_path: Path) -> None:
    """Tasks that share no row and no column need no turning."""
    from convert.sources import Source, llama_shape

    folders = []
    for seed, part in (("a", slice(0, 8)), ("b", slice(8, 16))):
        source = Source(config={"r": 2, "lora_alpha": 2, "target_modules": ["v_proj"]})
        out, in_ = llama_shape(V[0])
        rng = np.random.default_rng(part.start)
        down, up = np.zeros((2, in_)), np.zeros((out, 2))
        down[:, part], up[part] = rng.standard_normal((2, 8)), rng.standard_normal((8, 2))
        source.put(f"{V[0]}.lora_A.weight", down)
        source.put(f"{V[0]}.lora_B.weight", up)
        folders.append(source.write(tmp_path / seed))
    got = full(tmp_path, (folders[0], 1.0), (folders[1], 2.0), method="tsv")
    x, y = map(deltas, folders)
    assert apart(got, {name: x[name] + 2 * y[name] for name in x}) < TINY


def test_the_command_line_gives_the_same_bytes(tmp_path: Path, pair: tuple, run: Shell) -> None:
    out = composed(
        tmp_path, (pair[0], 0.5), pair[1],
        method="dare_ties", params={"density": 0.5}, rule=("energy", 0.9), seed=7,
    )  # fmt: skip
    run(
        *("compose", f"{pair[0]}=0.5", pair[1], "-o", tmp_path / "cli", "--method", "dare_ties"),
        *("--param", "density=0.5", "--energy", 0.9, "--seed", 7, "-j", 1),
    )
    assert weights_of(tmp_path / "cli") == weights_of(out)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "tise"}, "ties"),
        ({"method": "task_aritmetic"}, "task_arithmetic"),
        ({"method": "ties", "params": {"densty": 0.5}}, "density"),
        ({"compat": "peft", "method": "dare_linaer"}, "dare_linear"),
    ],
)
def test_near_misses(tmp_path: Path, options: dict, told: str) -> None:
    a = lora(tmp_path)
    with pytest.raises(AdapterError) as raised:
        composed(tmp_path, a, a, **options)
    assert f"did you mean {told!r}" in str(raised.value.hint)


@pytest.mark.parametrize("method", ["slerp_weights", "nearswap", "arcee_fusion"])
def test_methods_of_whole_weights_are_refused(tmp_path: Path, method: str) -> None:
    adapters = [lora(tmp_path)] * (2 if method == "slerp_weights" else 1)
    with pytest.raises(AdapterError, match="whole weights"):
        composed(tmp_path, *adapters, method=method)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("method", "count"), [("slerp", 3), ("slerp", 1), ("model_stock", 1)])
def test_count_of_adapters(tmp_path: Path, method: str, count: int) -> None:
    with pytest.raises(AdapterError, match="takes 2 adapters"):
        composed(tmp_path, *[lora(tmp_path)] * count, method=method)
