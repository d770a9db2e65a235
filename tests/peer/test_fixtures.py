"""The committed fixtures are what the script makes, and say what our reader finds."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="the peer library transformers is not installed")
pytest.importorskip("peft", reason="the peer library peft is not installed")

import adaptertools

from . import make_fixtures

pytestmark = pytest.mark.peer

FOLDER = Path(__file__).parents[2] / "fixtures"


def manifest(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / name / "manifest.json").read_text())


@pytest.mark.parametrize("name", make_fixtures.FIXTURES)
def test_manifest_lists_every_file(name: str) -> None:
    files = {path.name: path for path in (FOLDER / name).iterdir() if path.name != "manifest.json"}
    hashes = {file: hashlib.sha256(path.read_bytes()).hexdigest() for file, path in files.items()}
    assert manifest(name)["files"] == hashes


def test_script_makes_the_same_bytes(tmp_path: Path) -> None:
    made_with = {
        manifest(name)["tool"]: manifest(name)["version"] for name in make_fixtures.FIXTURES
    }
    if made_with != {tool: version(tool) for tool in made_with}:
        pytest.skip(f"the fixtures were made with {made_with}")
    make_fixtures.make_all(tmp_path)
    for name in make_fixtures.FIXTURES:
        assert json.loads((tmp_path / name / "manifest.json").read_text()) == manifest(name)


@pytest.mark.parametrize("name", [n for n, f in make_fixtures.FIXTURES.items() if f.method])
def test_inspect_finds_what_the_manifest_says(name: str) -> None:
    report = adaptertools.inspect(FOLDER / name).to_json()
    expected = manifest(name)["expected"]
    assert report["format"] == expected["format"]
    assert report["method"] == expected["method"]
    assert len(report["targets"]) == expected["targets"]
