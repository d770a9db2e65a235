"""Key templates: reading inverts writing, faults are told, time is linear."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptertools.errors import SpecError
from adaptertools.formats.registry import shipped
from adaptertools.patterns.template import compile_template

SEGMENT = st.from_regex(r"[A-Za-z0-9_]{1,6}", fullmatch=True)
MODULE = st.lists(SEGMENT, min_size=1, max_size=5).map(".".join)
SHIPPED = sorted({t.text for spec in shipped() for _, _, r in spec.roles() for t in r.templates})
KEY = "base_model.model.{module}.lora_A[.{adapter}].weight"


@pytest.mark.parametrize("text", SHIPPED)
@settings(max_examples=20, deadline=None)
@given(MODULE, SEGMENT, SEGMENT, st.booleans())
def test_shipped_templates_round_trip(
    text: str, module: str, adapter: str, param: str, named: bool
) -> None:
    """What is written is read back, with and without the optional part."""
    template = compile_template(text)
    given_fields = {"module": module, "adapter": adapter, "param": param}
    fields = {name: given_fields[name] for name in template.fields}
    if not named and "[" in text:
        fields.pop("adapter", None)
    key = template.format(fields)
    found = template.match(key)
    assert found is not None
    assert template.format(found) == key
    assert found == fields


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**9 - 1), st.integers(0, 10**9 - 1), SEGMENT)
def test_indexes_are_decimal(i: int, j: int, name: str) -> None:
    """Index fields take digits only."""
    template = compile_template("h.{i}.x{j}.{param}")
    key = f"h.{i}.x{j}.{name}"
    assert template.match(key) == {"i": str(i), "j": str(j), "param": name}
    assert template.format({"i": i, "j": j, "param": name}) == key
    assert template.match(f"h.{name}y.x{j}.w") is None
    assert template.match(f"h.-{i}.x{j}.w") is None


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.a.lora_A.weight.x",
        "x.base_model.model.a.lora_A.weight",
        "base_model.model..lora_A.b.c.weight",
        "base_model.model.a.lora_Axweight",
        "base_modelxmodel.a.lora_A.weight",
        "base_model.model.a.lora_A.weight\n",
        "base_model.model.lora_A.weight",
        "",
    ],
)
def test_a_match_is_whole(key: str) -> None:
    """Literals are literal, both ends are anchored, a dot in a literal is a dot."""
    assert compile_template(KEY).match(key) is None


def test_a_segment_holds_no_dot() -> None:
    """An adapter name is one segment; a module is a whole path."""
    found = compile_template(KEY).match("base_model.model.a.b.c.lora_A.my-style.weight")
    assert found == {"module": "a.b.c", "adapter": "my-style"}
    assert compile_template(KEY).match("base_model.model.a.lora_A.x.y.weight") is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{module", "cannot read from '{module'"),
        ("a}b", "cannot read from '}b'"),
        ("{Module}.x", "cannot read from '{Module}.x'"),
        ("a[.{adapter}", "'[' is never closed"),
        ("a[.b[.{adapter}]]", "unexpected '['"),
        ("a]", "unexpected ']'"),
        ("a[]b", "unexpected ']'"),
        ("a[.b]", "an optional part needs a field"),
        ("{module}{adapter}", "two fields with nothing between"),
        ("{module}[{adapter}]", "two fields with nothing between"),
        ("{module}.{path}", "more than one path field"),
        ("{module}.x.{module}", "template '{module}.x.{module}'"),
    ],
)
def test_malformed_templates_are_rejected(text: str, told: str) -> None:
    """Each fault is an AT292 that re-tells the template."""
    with pytest.raises(SpecError) as caught:
        compile_template(text)
    assert caught.value.code == "AT292"
    assert told in str(caught.value)
    assert repr(text) in str(caught.value)


def test_a_template_that_does_not_invert_is_rejected() -> None:
    """An optional part that its neighbour swallows cannot be read back."""
    with pytest.raises(SpecError, match="reading does not invert writing"):
        compile_template("{module}[.x.{i}]")


def test_a_missing_field_is_told() -> None:
    """Formatting without a needed field names the template and the field."""
    with pytest.raises(SpecError, match=r"needs the field 'module'") as caught:
        compile_template(KEY).format({"adapter": "x"})
    assert caught.value.code == "AT292"


@pytest.mark.parametrize("text", SHIPPED)
def test_hostile_keys_take_linear_time(text: str) -> None:
    """Keys of 100,000 characters are answered at once, whatever they repeat."""
    template = compile_template(text)
    started = time.perf_counter()
    for piece in ("a", ".", "a.", ".lora_A", "lora_A.", ".base_layer.out_proj", ".weight", "\0"):
        template.match(piece * (100_000 // len(piece)))
        template.match("base_model.model." + piece * (100_000 // len(piece)) + ".weight")
    assert time.perf_counter() - started < 2
