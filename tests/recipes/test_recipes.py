"""Recipes: checked before anything opens, planned whole, run step by step, the same bytes again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import adaptertools
from adaptertools.recipes.recipe import read_recipe
from adaptertools.recipes.running import Kitchen

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture
def kitchen(tmp_path: Path) -> Path:
    """Return a folder with a base and two adapters."""
    for name in ("tiny-llama", "tiny-llama-lora", "tiny-llama-ia3"):
        shutil.copytree(FIXTURES / name, tmp_path / name)
    return tmp_path


def recipe(place: Path, steps: list[dict[str, Any]], **more: Any) -> Path:
    """Write a recipe and return its path."""
    path = place / "recipe.yaml"
    path.write_text(yaml.safe_dump({"schema": 1, "steps": steps, **more}))
    return path


def cook(path: Path, **options: Any) -> list[Any]:
    """Run a recipe with variables."""
    given = options.pop("given", None)
    read = read_recipe(path, given)
    return Kitchen(read.folder, **options).cook(read)


STEPS: list[dict[str, Any]] = [
    {
        "compose": {
            "adapters": [{"path": "tiny-llama-lora", "weight": "${strength}"}],
            "rule": {"rank": 2},
            "out": "small",
        }
    },
    {"convert": {"ref": "small", "for": "llama.cpp", "base": "tiny-llama", "out": "small.gguf"}},
    {"merge": {"base": "tiny-llama", "adapters": ["tiny-llama-ia3", "small"], "out": "merged"}},
]


def test_steps_follow_each_other(kitchen: Path) -> None:
    """What a step writes is the next one's input, as if typed by hand."""
    done = cook(recipe(kitchen, STEPS, vars={"strength": 0.5}))
    assert [step.verb for step in done] == ["compose", "convert", "merge"]
    lora = (kitchen / "tiny-llama-lora", 0.5)
    adaptertools.compose([lora], kitchen / "by-hand", rule=("rank", 2))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (kitchen / "small" / name).read_bytes() == (kitchen / "by-hand" / name).read_bytes()
    pair = [kitchen / "tiny-llama-ia3", kitchen / "by-hand"]
    adaptertools.merge(kitchen / "tiny-llama", pair, kitchen / "hand-merged")
    one, two = (kitchen / name / "model.safetensors" for name in ("merged", "hand-merged"))
    assert one.read_bytes() == two.read_bytes()
    assert (kitchen / "small.gguf").is_file()


def test_dry_run_plans_every_step_and_writes_nothing(kitchen: Path) -> None:
    """A step whose input is not there yet says which it waits for."""
    path = recipe(kitchen, STEPS, vars={"strength": 0.5})
    before = sorted(kitchen.iterdir())
    done = cook(path, dry_run=True)
    assert sorted(kitchen.iterdir()) == before
    assert [step.waits for step in done] == [None, "small", "small"]
    assert all(step.planned for step in done)


def test_a_variable_is_replaced(kitchen: Path) -> None:
    """--set gives a variable another value; one that is not there is refused."""
    path = recipe(kitchen, STEPS[:1], vars={"strength": 0.5})
    cook(path, given={"strength": 2.0}, out=kitchen / "two")
    adaptertools.compose([(kitchen / "tiny-llama-lora", 2.0)], kitchen / "hand", rule=("rank", 2))
    one, two = (kitchen / name / "adapter_model.safetensors" for name in ("two", "hand"))
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(adaptertools.AdapterError, match="no variable 'strenght'"):
        read_recipe(path, {"strenght": 1})
    with pytest.raises(adaptertools.AdapterError, match="'strength' has no value"):
        read_recipe(recipe(kitchen, STEPS[:1]))


def test_what_compose_leaves_makes_the_same_bytes(kitchen: Path) -> None:
    """The recipe beside a composition is the composition."""
    adapters = [(kitchen / "tiny-llama-lora", 0.75), (kitchen / "tiny-llama-lora", -0.5)]
    adaptertools.compose(adapters, kitchen / "one", rule=("energy", 0.9), weights="layers.0-0=2")
    cook(kitchen / "one" / "recipe.yaml", out=kitchen / "two")
    for file in (kitchen / "one").iterdir():
        assert file.read_bytes() == (kitchen / "two" / file.name).read_bytes(), file.name


def test_a_receipt_is_a_recipe(kitchen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The receipt of a merge runs it again."""
    monkeypatch.chdir(kitchen)
    adaptertools.merge("tiny-llama", [("tiny-llama-lora", 0.5)], "merged")
    cook(Path("merged/adaptertools.json"), out=Path("again"))
    one, two = (kitchen / name / "model.safetensors" for name in ("merged", "again"))
    assert one.read_bytes() == two.read_bytes()


WRONG: list[tuple[str, Any]] = [
    ("$", {"steps": STEPS}),
    ("$.schema", {"schema": 2, "steps": STEPS}),
    ("$.steps", {"schema": 1, "steps": []}),
    ("$.steps[0]", {"schema": 1, "steps": [{"fuse": {}}]}),
    ("$.steps[0].merge", {"schema": 1, "steps": [{"merge": {"base": "x"}}]}),
    ("$.steps[0].convert", {"schema": 1, "steps": [{"convert": {"ref": "x", "out": "y"}}]}),
    (
        "$.steps[0].compose.rule",
        {"schema": 1, "steps": [{"compose": {"adapters": ["a"], "rule": {"rnak": 2}}}]},
    ),
]


@pytest.mark.parametrize(("place", "document"), WRONG, ids=[place for place, _ in WRONG])
def test_a_mistake_is_told_by_its_path(place: str, document: Any, tmp_path: Path) -> None:
    """The schema is asked before anything opens."""
    path = tmp_path / "r.json"
    path.write_text(json.dumps(document))
    with pytest.raises(adaptertools.FindingsError) as caught:
        read_recipe(path)
    assert {finding.id for finding in caught.value.findings} == {"AT281"}
    assert any(str(finding.where.key).startswith(place) for finding in caught.value.findings)


def test_the_first_error_ends_the_run(kitchen: Path) -> None:
    """What was done before stays, what follows is not begun."""
    steps = [STEPS[0], {"convert": {"ref": "gone", "to": "mlx-lora", "out": "mlx"}}, STEPS[2]]
    with pytest.raises(adaptertools.AdapterError, match="no such file or folder"):
        cook(recipe(kitchen, steps, vars={"strength": 1.0}))
    assert (kitchen / "small").is_dir()
    assert not (kitchen / "merged").exists()


def test_a_step_without_an_out_asks_for_one(kitchen: Path) -> None:
    """Only the last step's OUT may come from the command line."""
    steps = [{"compose": {"adapters": ["tiny-llama-lora"]}}]
    with pytest.raises(adaptertools.AdapterError, match="says no out"):
        cook(recipe(kitchen, steps))
