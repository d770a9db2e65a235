"""schemas/format.schema.json: every shipped spec validates, usual mistakes fail with their path."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from adaptertools import schemas
from adaptertools.errors import SpecError
from adaptertools.formats.spec import check_spec, load_spec

SHIPPED = sorted((schemas.root() / "formats").glob("*.toml"))
SCHEMA = schemas.json_schema("format")
LORA = schemas.read_toml(schemas.root() / "formats" / "peft-lora.toml")
Edit = Callable[[dict[str, Any]], object]


def errors(document: dict[str, Any]) -> dict[str, str]:
    """Return JSON path → message."""
    validator = jsonschema.Draft202012Validator(SCHEMA)
    return {error.json_path: error.message for error in validator.iter_errors(document)}


def test_the_schema_is_a_schema() -> None:
    """It is valid itself, and closed: every object of fixed fields refuses others."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"].endswith("2020-12/schema")
    for place in walk(SCHEMA):
        if "properties" in place and place.get("type") == "object" and "allOf" not in place:
            assert "additionalProperties" in place, json.dumps(place)[:120]


def walk(value: Any) -> list[dict[str, Any]]:
    """Return every object of a JSON value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return ([value] if isinstance(value, dict) else []) + [d for v in inner for d in walk(v)]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_specs_validate(path: Path) -> None:
    """Each shipped spec fits the schema, loads, and is named by its id."""
    check_spec(path)
    assert load_spec(path).id == path.stem


MISTAKES: list[tuple[str, Edit]] = [
    ("$", lambda d: d.pop("title")),
    ("$", lambda d: d.pop("update")),
    ("$", lambda d: d.pop("scale")),
    ("$", lambda d: d.update(updates=[])),
    ("$.schema", lambda d: d.update(schema=2)),
    ("$.id", lambda d: d.update(id="Peft LoRA")),
    ("$.files", lambda d: d["files"].pop("weights")),
    ("$.files", lambda d: d["files"].update(weight="x")),
    ("$.files.weights", lambda d: d["files"].update(weights=[])),
    ("$.files.weights", lambda d: d["files"].update(weights="adapter.safetensors")),
    ("$.files.weights[0]", lambda d: d["files"].update(weights=["../adapter.safetensors"])),
    ("$.files.config", lambda d: d["files"].update(config="/etc/passwd")),
    ("$.files.config_schema", lambda d: d["files"].update(config_schema="mine")),
    ("$.detect.keys", lambda d: d["detect"].update(keys="a.*")),
    ("$.detect.config.peft_type", lambda d: d["detect"]["config"].update(peft_type="LORA")),
    ("$.detect", lambda d: d["detect"].update(metadata={})),
    ("$.fields", lambda d: d["fields"].update(base="x")),
    ("$.scale", lambda d: d["scale"].pop("rule")),
    ("$.scale.rule", lambda d: d["scale"].update(rule="alpha*rank")),
    ("$.scale.case[0]", lambda d: d["scale"]["case"][0].pop("field")),
    ("$.scale.case[0].rule", lambda d: d["scale"]["case"][0].update(rule="alpha*rank")),
    ("$.scale.alpha.config", lambda d: d["scale"]["alpha"].update(config=[])),
    ("$.write", lambda d: d["write"].pop("container")),
    ("$.write.container", lambda d: d["write"].update(container="zip")),
    ("$.limits.bias", lambda d: d["limits"].update(bias="no")),
    ("$.scale.alpha.default", lambda d: d["scale"]["alpha"].update(default="8")),
    ("$.scale.quirk[0].factor", lambda d: d["scale"]["quirk"][0].update(factor="2")),
    ("$.update[0]", lambda d: d["update"][0].pop("kind")),
    ("$.update[0].kind", lambda d: d["update"][0].update(kind="lowrank")),
    ("$.update[0]", lambda d: d["update"][0].pop("up")),
    ("$.update[0]", lambda d: d["update"][0].pop("weight")),
    ("$.update[0]", lambda d: d["update"][0].update(vector={"key": ".l", "dims": ["out"]})),
    ("$.update[0].prefix[0]", lambda d: d["update"][0].update(prefix=["base_model."])),
    ("$.update[0].down", lambda d: d["update"][0]["down"].pop("dims")),
    ("$.update[0].down.dims", lambda d: d["update"][0]["down"].update(dims="rank in")),
    ("$.update[0].down.dims[0]", lambda d: d["update"][0]["down"].update(dims=["rank, in"])),
    ("$.update[0].up.key", lambda d: d["update"][0]["up"].update(key=7)),
    ("$.update[0].up", lambda d: d["update"][0]["up"].update(shape=["out rank"])),
    ("$.update[0].stacked", lambda d: d["update"][0]["stacked"].pop("wrapper")),
    (
        "$.update[0].stacked.orientation.default",
        lambda d: d["update"][0]["stacked"]["orientation"].update(default="never"),
    ),
    ("$.update[2]", lambda d: d["update"][2].pop("index")),
    ("$.update[3].value", lambda d: d["update"][3]["value"].update(dims=["out"])),
    ("$.update[5].fallback", lambda d: d["update"][5].update(fallback="yes")),
    ("$.refuse[0]", lambda d: d["refuse"][0].pop("why")),
    ("$.refuse[0].unless", lambda d: d["refuse"][0].update(unless="force")),
    ("$.limits.dora", lambda d: d["limits"].update(dora=1)),
    ("$.limits", lambda d: d["limits"].update(doora=True)),
]


@pytest.mark.parametrize(("path", "edit"), MISTAKES)
def test_a_mistake_fails_at_its_path(path: str, edit: Edit) -> None:
    """One slip in the LoRA spec is an error at that place."""
    document = copy.deepcopy(LORA)
    assert errors(document) == {}
    edit(document)
    assert path in errors(document), errors(document)


def test_the_loader_tells_file_and_path(tmp_path: Path) -> None:
    """check_spec raises AT295 with the file and the JSON path."""
    place = tmp_path / "mine.toml"
    place.write_text('schema = 1\nid = "mine"\n')
    with pytest.raises(SpecError) as caught:
        check_spec(place)
    assert (caught.value.code, caught.value.where.key) == ("AT295", "$")
    assert str(place) in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("schema = 1", "schema = = 1", "AT291"),
        ('".lora_A[.{adapter}].weight"', '".lora_A[.{adapter}.weight"', "AT292"),
        ('dims = ["rank in *k"]', 'dims = ["rank (in *k"]', "AT293"),
        ('".lora_B[.{adapter}].weight"', '".lora_A[.{adapter}].weight"', "AT292"),
        ('title = "PEFT LoRA, rsLoRA, DoRA"', "", "AT295"),
    ],
)
def test_a_spec_that_cannot_work_is_refused(tmp_path: Path, old: str, new: str, code: str) -> None:
    """Bad TOML, templates, dims, ambiguous keys and missing fields, each with the file."""
    text = (schemas.root() / "formats" / "peft-lora.toml").read_text()
    assert text.count(old) == 1
    place = tmp_path / "mine.toml"
    place.write_text(text.replace(old, new))
    with pytest.raises(SpecError) as caught:
        load_spec(place)
    assert caught.value.code == code
    assert str(place) in str(caught.value)
