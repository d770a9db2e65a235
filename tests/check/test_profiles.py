"""The profiles are data: each fits its schema, and its words fit what the code knows."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import adaptertools
from adaptertools import schemas
from adaptertools.check import serving
from adaptertools.check.profile import (
    EFFECTS,
    REPAIRS,
    Rule,
    check_profile,
    load_profile,
    profile_names,
    profiles,
)
from adaptertools.errors import SpecError

FOLDER = schemas.root() / "profiles"
FILES = sorted(FOLDER.glob("*.toml"))
RULES = [(profile, rule) for profile in profiles() for rule in profile.rules]
IDS = [f"{profile.id}-{n}-{rule.when}" for n, (profile, rule) in enumerate(RULES)]
SCHEMA: dict[str, Any] = schemas.json_schema("profile")["$defs"]["rule"]["properties"]


def test_the_servers() -> None:
    """The six that the command line promises."""
    assert set(profile_names()) == {"vllm", "sglang", "tgi", "llama.cpp", "mlx", "trt-llm"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_profile_fits_its_schema(path: Path) -> None:
    """Every file is valid, is called as its id says, and tells which versions were read."""
    profile = check_profile(path)
    assert profile.id == path.stem
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize(("profile", "rule"), RULES, ids=IDS)
def test_a_rule_is_known_and_in_words(profile: Any, rule: Rule) -> None:
    """The predicate exists, the sentence starts with the server's name, the formats exist."""
    assert rule.when in serving.PREDICATES
    assert rule.says.startswith((f"{profile.title} ", f"{profile.title}'s "))
    formats = {path.stem for path in (schemas.root() / "formats").glob("*.toml")}
    named = {*rule.only_for, *rule.params.get("formats", ()), *([rule.to] if rule.to else [])}
    assert named <= formats
    if rule.until:
        assert f"up to {rule.until}" in rule.says


def test_the_closed_lists_are_the_same_everywhere() -> None:
    """Predicates, effects, repairs: the schema has what the code has; no id is used twice."""
    assert set(SCHEMA["when"]["enum"]) == set(serving.PREDICATES)
    assert set(SCHEMA["does"]["enum"]) == set(EFFECTS)
    assert set(SCHEMA["repair"]["enum"]) == set(REPAIRS)
    ids = [number for number, _ in serving.PREDICATES.values()]
    assert ids == [f"AT{n}" for n in range(700, 700 + len(ids))]
    assert {rule.when for _, rule in RULES} == set(serving.PREDICATES)
    assert {rule.repair for _, rule in RULES} == set(REPAIRS)
    assert {rule.does for _, rule in RULES} == set(EFFECTS)
    names = set(get_type_hints(Rule)) - {"params"} | {"with"}
    assert set(SCHEMA) == names


@pytest.mark.parametrize(("profile", "rule"), RULES, ids=IDS)
def test_a_severity_follows_from_what_the_server_does(profile: Any, rule: Rule) -> None:
    """Refusing and being wrong are errors, unless a newer version is right."""
    severe = rule.does in ("refuse", "wrong") and rule.until is None
    assert rule.severity == ("error" if severe else "warning")


GOOD = """schema = 1
id = "x"
title = "X"
checked = "1.0"
[[rule]]
when = "dora"
does = "refuse"
says = "X refuses DoRA"
repair = "none"
source = "here"
"""
FAULTS = {
    "no rule": GOOD.split("[[rule]]")[0],
    "unknown predicate": GOOD.replace('"dora"', '"doro"'),
    "unknown effect": GOOD.replace('"refuse"', '"dislike"'),
    "unknown repair": GOOD.replace('"none"', '"pray"'),
    "no source": GOOD.replace('source = "here"\n', ""),
    "convert to nothing": GOOD.replace('"none"', '"convert"'),
    "a format without convert": GOOD + 'to = "peft-lora"\n',
    "a parameter of another predicate": GOOD + "with = { max = 8 }\n",
    "a parameter of none": GOOD.replace('"dora"', '"ia3"') + "with = { experts = true }\n",
    "no maximum": GOOD.replace('"dora"', '"rank_over"') + "with = { upto = 8 }\n",
    "rank 0": GOOD.replace('"dora"', '"rank_over"') + "with = { max = 0 }\n",
    "no parameters": GOOD.replace('"dora"', '"variant"'),
    "another side": GOOD.replace('"dora"', '"tied"') + 'with = { side = "left" }\n',
    "a version in words": GOOD + 'until = "the last"\n',
    "an unknown field": GOOD + 'severity = "error"\n',
    "not TOML": GOOD + "[[",
}


def test_the_pattern_of_the_faults_is_good(tmp_path: Path) -> None:
    """The profile that each fault below spoils is itself valid."""
    (tmp_path / "x.toml").write_text(GOOD)
    assert check_profile(tmp_path / "x.toml").rules_for("dora")[0].says == "X refuses DoRA"
    assert check_profile(tmp_path / "x.toml").rules_for("ia3") == ()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_profile_is_refused(tmp_path: Path, fault: str) -> None:
    """Each fault is found by the schema (AT297) or the reader of TOML (AT291)."""
    path = tmp_path / "x.toml"
    path.write_text(FAULTS[fault])
    with pytest.raises(SpecError) as caught:
        check_profile(path)
    assert caught.value.code == ("AT291" if fault == "not TOML" else "AT297")
    assert caught.value.where.file == str(path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("vlm", "'vllm'"), ("VLLM", "'vllm'"), ("llamacpp", "'llama.cpp'"), ("zzzz", "known: llama")],
)
def test_an_unknown_server(tmp_path: Path, name: str, hint: str) -> None:
    """AT500 with the nearest name, before anything is read."""
    with pytest.raises(adaptertools.AdapterError) as caught:
        load_profile(name)
    assert caught.value.code == "AT500"
    assert hint in caught.value.hint
    with pytest.raises(adaptertools.AdapterError, match="no serving profile"):
        adaptertools.validate(tmp_path / "nowhere", profile=name)


def test_no_server_is_named_in_code() -> None:
    """All that is known of a server stands in its file: no string of the code is a server's id."""
    package = Path(adaptertools.__file__).parent
    names = set(profile_names())
    for path in [*(package / "check").glob("*.py"), package / "cli" / "validate.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant):
                assert node.value not in names, f"{path}:{node.lineno}"
