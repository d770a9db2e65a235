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
