"""What has no sum is refused with its place and leaves nothing on the disk; the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli.answers import Shell
from convert.catalogue import CASES
from convert.sources import Source

import adaptertools
from adaptertools import AdapterError

from .making import Q, composed, lora, meanings, numbers, vectors, weights_of


def head(seed: str) -> Any:
    def change(source: Source) -> None:
        source.config["modules_to_save"] = ["lm_head"]
        source.put("lm_head.weight", numbers(f"head{seed}", (80, 96)))

    return change


def narrow(place: Path) -> Path:
    source = Source(config={"r": 3, "lora_alpha": 6, "target_modules": ["q_proj"]})
    source.lora(Q[0], 128, 48, 3)
    return source.write(place)


REFUSED = {
    "AT270": lambda p: (lora(p, "a", change=head("a")), lora(p, "b", change=head("b"))),
    "AT270 weighted": lambda p: ((lora(p, "a", change=head("a")), 0.5),),
    "AT271": lambda p: (lora(p, "a", Q), narrow(p / "b")),
    "AT272": lambda p: (CASES["dora"]().write(p / "a"), lora(p, "b", Q)),
    "AT272 weighted": lambda p: ((CASES["dora"]().write(p / "a"), 0.5),),
    "AT273": lambda p: (CASES["ia3"]().write(p / "a"), CASES["plain"]().write(p / "b")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_no_sum(tmp_path: Path, name: str) -> None:
    adapters = REFUSED[name](tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(adaptertools.FindingsError) as raised:
        composed(tmp_path, *adapters)
    assert {finding.id for finding in raised.value.findings} == {name.split()[0]}
    assert all(finding.where.key for finding in raised.value.findings)
    assert sorted(tmp_path.iterdir()) == before


def test_every_place_is_told_at_once(tmp_path: Path) -> None:
    adapters = REFUSED["AT272"](tmp_path)
    with pytest.raises(adaptertools.FindingsError) as raised:
        composed(tmp_path, *adapters)
    assert len(raised.value.findings) == len(Q)


def test_last_wins_takes_the_last_full_value(tmp_path: Path) -> None:
    a, b = REFUSED["AT270"](tmp_path)
    for name, order in (("ab", (a, b)), ("ba", (b, a))):
        out = meanings(composed(tmp_path, *order, name=name, last_wins=True))
        wanted = meanings(order[1])["lm_head.weight value"].value
        assert (out["lm_head.weight value"].value == wanted).all()


def test_equal_full_values_are_one(tmp_path: Path) -> None:
    a, b = lora(tmp_path, "a", change=head("x")), lora(tmp_path, "b", change=head("x"))
    out = meanings(composed(tmp_path, a, b))["lm_head.weight value"]
    assert (out.value == meanings(a)["lm_head.weight value"].value).all()


def test_full_values_of_one_adapter_stay(tmp_path: Path) -> None:
    a, b = lora(tmp_path, "a", change=head("x")), lora(tmp_path, "b")
    assert "lm_head.weight value" in meanings(composed(tmp_path, (b, 0.3), a))


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf")])
def test_weights_are_finite(tmp_path: Path, weight: float) -> None:
    with pytest.raises(AdapterError, match="finite"):
        composed(tmp_path, (lora(tmp_path), weight))


# --- the command ---------------------------------------------------------------------------------


def test_dry_run_writes_nothing(tmp_path: Path, run: Shell) -> None:
    a, b = lora(tmp_path, "a"), lora(tmp_path, "b")
    before = sorted(tmp_path.iterdir())
    told = run("compose", a, f"{b}=-0.5", "-o", tmp_path / "out", "--dry-run", "--json").json
    assert sorted(tmp_path.iterdir()) == before
    assert [one["weight"] for one in told["adapters"]] == [1.0, -0.5]
    assert told["ranks"] == [6] and "out" not in told


def test_json_of_a_result(tmp_path: Path, run: Shell) -> None:
    a, b = lora(tmp_path, "a"), lora(tmp_path, "b")
    told = run("compose", a, b, "-o", tmp_path / "out", "--rank", 2, "--json").json
    assert told["out"] == str(tmp_path / "out")
    assert told["to"] == "peft-lora" and told["targets"] == 3 and told["ranks"] == [2]
    assert told["checked"] == 3 and told["exact"] <= 3 and told["largest_error"] < 1e-6
    lost = told["discarded"]
    assert lost["largest"] == max(lost["targets"].values()) > 0
    assert set(lost["targets"]) == set(meanings(a))


def test_the_plan_is_what_is_written(tmp_path: Path, run: Shell) -> None:
    a, b = lora(tmp_path, "a"), lora(tmp_path, "b")
    plan = run("compose", a, b, "-o", tmp_path / "out", "--rank", 2, "--dry-run", "--json").json
    told = run("compose", a, b, "-o", tmp_path / "out", "--rank", 2, "--json").json
    assert {key: told[key] for key in plan} == plan
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert set(plan["files"]) <= files


def test_people_are_told_weights_ranks_and_losses(tmp_path: Path, run: Shell) -> None:
    a, b = lora(tmp_path, "a"), lora(tmp_path, "b")
    told = run("compose", a, f"{b}=-0.5", "-o", tmp_path / "out", "--rank", 2).out
    for part in ("+1 ×", "-0.5 ×", "3 targets, rank 2", "discarded", "read back"):
        assert part in told, part


def test_weight_in_the_path_is_the_weight(tmp_path: Path, run: Shell) -> None:
    a = lora(tmp_path, "a")
    run("compose", f"{a}=-0.5", "-o", tmp_path / "cli")
    assert weights_of(tmp_path / "cli") == weights_of(composed(tmp_path, (a, -0.5)))


def test_other_bases_are_warned_about(tmp_path: Path, run: Shell) -> None:
    a = lora(tmp_path, "a", base_model_name_or_path="one/base")
    b = lora(tmp_path, "b", base_model_name_or_path="other/base")
    assert "one/base, other/base" in run("compose", a, b, "-o", tmp_path / "out").err
    assert (tmp_path / "out").is_dir()


def test_existing_output_stays_unless_told(tmp_path: Path, run: Shell) -> None:
    a, b = lora(tmp_path, "a"), lora(tmp_path, "b")
    out = composed(tmp_path, a)
    before = weights_of(out)
    with pytest.raises(AdapterError, match="exists already"):
        composed(tmp_path, a, b)
    assert weights_of(out) == before
    composed(tmp_path, a, b, overwrite=True)
    assert weights_of(out) != before


def test_a_failed_overwrite_leaves_the_old(tmp_path: Path) -> None:
    out = composed(tmp_path, lora(tmp_path, "a"))
    before = weights_of(out)
    with pytest.raises(AdapterError):
        composed(tmp_path, *REFUSED["AT273"](tmp_path), overwrite=True)
    assert weights_of(out) == before


def test_output_over_an_input_is_refused(tmp_path: Path) -> None:
    a = lora(tmp_path, "a")
    with pytest.raises(AdapterError):
        adaptertools.compose([a], a, overwrite=True)
    assert weights_of(a)


def test_usage(tmp_path: Path, run: Shell) -> None:
    a = lora(tmp_path, "a")
    out = ("-o", tmp_path / "out")
    assert "one rank rule" in run("compose", a, *out, "--rank", 2, "--energy", 0.9, code=2).err
    run("compose", a, *out, "--rank", 0, code=2)
    run("compose", *out, code=2)
    assert not (tmp_path / "out").exists()


def test_vectors_do_not_go_with_changes_elsewhere(tmp_path: Path) -> None:
    """No format holds both; nothing is dropped in silence."""
    a, b = vectors(tmp_path, "a"), lora(tmp_path, "b", Q)
    with pytest.raises(AdapterError):
        composed(tmp_path, a, b)
    assert not (tmp_path / "out").exists()
