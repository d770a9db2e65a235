"""Faults that were found in compose, each now mended."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert.catalogue import CASES
from convert.sources import Source

import adaptertools
from adaptertools import AdapterError

from .making import (
    UP,
    Q,
    V,
    assert_sum,
    composed,
    config_of,
    deltas,
    lora,
    meanings,
    numbers,
    vectors,
    weights_of,
)


@pytest.mark.parametrize(("value", "power"), [(-1.0, 0.5), (0.0, -1.0)])
def test_powers_that_are_no_numbers_are_refused(tmp_path: Path, value: float, power: float) -> None:
    source = CASES["ia3-out"]()
    key = next(iter(source.tensors)).removeprefix("base_model.model.")
    source.put(key, np.full((32, 1), value))
    with pytest.raises(AdapterError):
        composed(tmp_path, (source.write(tmp_path / "a"), power), vectors="product")


def test_a_bias_is_not_rounded_to_sixteen_bits(tmp_path: Path) -> None:
    def change(source: Source) -> None:
        source.base["attention_bias"] = True
        for module in Q:
            source.put(f"{module}.lora_B.bias", numbers(module, (128,)), "BF16")

    a = lora(tmp_path, "a", Q, dtypes=["BF16"], change=change, lora_bias=True)
    b = lora(tmp_path, "b", Q, dtypes=["BF16"], change=change, lora_bias=True)
    parts = [(a, 0.3), (b, 0.7)]
    assert_sum(composed(tmp_path, *parts), parts)


@pytest.mark.parametrize("weight", [2.0**-22, 2.0**20])
def test_half_precision_widens_where_it_is_too_narrow(tmp_path: Path, weight: float) -> None:
    a, b = lora(tmp_path, "a", Q, dtypes=["F16"]), lora(tmp_path, "b", V, dtypes=["F16"])
    c = lora(tmp_path, "c", [*Q, *V], dtypes=["F16"])
    parts = [(a, 1.0), (b, 1.0), (c, weight)]
    assert_sum(composed(tmp_path, *parts), parts)


def test_a_tiny_first_weight(tmp_path: Path) -> None:
    parts = [(lora(tmp_path, "a", Q), 1e-30), (lora(tmp_path, "b", Q), 1e12)]
    assert_sum(composed(tmp_path, *parts), parts)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della"])
def test_order_of_adapters_changes_no_byte(tmp_path: Path, method: str) -> None:
    parts = [lora(tmp_path, seed, Q[:1]) for seed in "abc"]
    outs = {
        weights_of(composed(tmp_path, *order, name=f"o{n}", method=method, params={"density": 0.5}))
        for n, order in enumerate(itertools.permutations(parts))
    }
    assert len(outs) == 1


def test_dora_beside_other_targets_is_refused_in_the_plan(tmp_path: Path) -> None:
    dora = CASES["sparse-dora"]().write(tmp_path / "a")
    with pytest.raises(AdapterError) as raised:
        composed(tmp_path, dora, lora(tmp_path, "b", UP))
    assert "read back" not in str(raised.value)


def test_unknown_compat_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError):
        composed(tmp_path, lora(tmp_path), compat="kohya")


def test_exact_as_peft_is_not_its_linear(tmp_path: Path) -> None:
    parts = [(lora(tmp_path, "a"), 1.0), (lora(tmp_path, "b"), 0.5)]
    try:
        out = composed(tmp_path, *parts, method="exact", compat="peft")
    except AdapterError:
        return
    assert_sum(out, parts, 1e-5)


def test_peft_linear_of_disjoint_targets(tmp_path: Path) -> None:
    a, b = lora(tmp_path, "a", Q), lora(tmp_path, "b", V)
    out = composed(tmp_path, a, b, compat="peft", method="linear")
    got, wanted = deltas(out), {**deltas(a), **deltas(b)}
    assert max(np.abs(got[n] - wanted[n]).max() for n in wanted) < 1e-5


def test_vectors_as_peft(tmp_path: Path) -> None:
    a, b = vectors(tmp_path, "a"), vectors(tmp_path, "b")
    try:
        out = composed(tmp_path, (a, 0.7), (b, 0.4), compat="peft", method="linear")
    except AdapterError:
        return
    x, y, z = meanings(a), meanings(b), meanings(out)
    for name in z:
        np.testing.assert_allclose(z[name].value, 0.7 * x[name].value + 0.4 * y[name].value, 1e-6)


@pytest.mark.parametrize("options", [{"rule": ("rank", -5)}, {"method": "ties"}])
def test_a_reduction_of_vectors_alone_is_refused(tmp_path: Path, options: dict) -> None:
    with pytest.raises(AdapterError):
        composed(tmp_path, vectors(tmp_path, "a"), vectors(tmp_path, "b"), **options)


@pytest.mark.parametrize("jobs", [0, -1])
def test_jobs_are_at_least_one(tmp_path: Path, jobs: int) -> None:
    with pytest.raises(AdapterError):
        composed(tmp_path, lora(tmp_path), jobs=jobs, rule=("rank", 1))


def test_a_rank_is_a_whole_number(tmp_path: Path) -> None:
    with pytest.raises(AdapterError):
        composed(tmp_path, lora(tmp_path), rule=("rank", 2.5))


def test_weights_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError):
        composed(tmp_path, (lora(tmp_path), 1e308))


def test_base_and_revision_are_of_one_adapter(tmp_path: Path) -> None:
    a = lora(tmp_path, "a", revision="of-no-base")
    b = lora(tmp_path, "b", base_model_name_or_path="me/base", revision="v2")
    config = config_of(composed(tmp_path, a, b))
    assert (config["base_model_name_or_path"], config["revision"]) == ("me/base", "v2")


def test_discarded_is_told_in_the_order_of_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever thread is done first: here that of the first target is the last."""
    from adaptertools.composition import combine

    usual = combine.reduced

    def late(parts: dict, *rest: Any) -> Any:
        if next(iter(parts.values())).update.target.module == Q[0]:
            time.sleep(0.3)
        return usual(parts, *rest)

    monkeypatch.setattr(combine, "reduced", late)
    result = adaptertools.compose(
        [lora(tmp_path, "a", Q)], tmp_path / "o", rule=("rank", 2), jobs=2
    )
    assert list(result.plan.discarded) == [f"{module}.weight" for module in Q]


def test_the_threads_of_torch_are_given_back(tmp_path: Path) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        composed(tmp_path, lora(tmp_path), rule=("rank", 1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_json_tells_of_other_bases(tmp_path: Path) -> None:
    a = lora(tmp_path, "a", base_model_name_or_path="one/base")
    b = lora(tmp_path, "b", base_model_name_or_path="other/base")
    told = adaptertools.compose([a, b], tmp_path / "out", jobs=1).to_json()
    assert "one/base" in str(told["notes"])


def test_the_option_that_help_names_exists() -> None:
    from adaptertools.cli.compose import command

    named = {option for param in command.params for option in param.opts}
    assert all("--list-methods" not in (getattr(p, "help", "") or "") for p in command.params) or (
        "--list-methods" in named
    )


def test_a_rank_that_dora_cannot_take_is_told(tmp_path: Path) -> None:
    dora = CASES["dora"]().write(tmp_path / "a")
    try:
        out = composed(tmp_path, dora, rule=("rank", 1))
    except AdapterError:
        return
    assert config_of(out)["r"] == 1


def test_an_average_averages_biases(tmp_path: Path) -> None:
    def change(source: Source) -> None:
        source.base["attention_bias"] = True
        for module in Q:
            source.put(f"{module}.lora_B.bias", numbers(module, (128,)))

    a = lora(tmp_path, "a", Q, change=change, lora_bias=True)
    try:
        out = composed(tmp_path, a, a, method="average")
    except AdapterError:
        return
    assert_sum(out, [(a, 1.0)], 1e-6)
