"""The JSON documents the program writes follow their published schemas."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

import adaptertools
from adaptertools import schemas

FIXTURES = Path(__file__).parent.parent / "fixtures"


def check(document: object, schema: str) -> None:
    validator = jsonschema.Draft202012Validator(schemas.json_schema(schema))
    assert [e.message for e in validator.iter_errors(document)] == []


@pytest.mark.parametrize("adapter", ["tiny-llama-lora", "tiny-llama-dora", "tiny-llama-ia3"])
def test_receipt(adapter: str, tmp_path: Path) -> None:
    adaptertools.merge(FIXTURES / "tiny-llama", FIXTURES / adapter, tmp_path / "out", hash=True)
    check(json.loads((tmp_path / "out" / "adaptertools.json").read_text()), "receipt")


def test_receipt_schema_refuses_a_wrong_hash(tmp_path: Path) -> None:
    adaptertools.merge(
        FIXTURES / "tiny-llama", FIXTURES / "tiny-llama-lora", tmp_path / "out", jobs=1
    )
    receipt = json.loads((tmp_path / "out" / "adaptertools.json").read_text())
    receipt["inputs"]["adapters"][0]["adapter_model.safetensors"]["sha256"] = "00"
    with pytest.raises(AssertionError):
        check(receipt, "receipt")


@pytest.mark.parametrize("base", [None, "tiny-gpt2"])
def test_report(base: str | None) -> None:
    report = adaptertools.validate(FIXTURES / "tiny-llama-lora", base and FIXTURES / base)
    assert report.ok == (base is None)
    check(report.to_json(), "report")


def test_a_config_alone_is_enough_to_check_names_and_sizes(tmp_path: Path) -> None:
    config = json.loads((FIXTURES / "tiny-llama" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert adaptertools.validate(FIXTURES / "tiny-llama-lora", tmp_path).ok
    config["num_key_value_heads"] = 4
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = adaptertools.validate(FIXTURES / "tiny-llama-lora", tmp_path).findings
    assert {f.id for f in found} == {"AT403"}
    assert {(f.where.key or "").split(".")[-2] for f in found} == {"k_proj", "v_proj"}
