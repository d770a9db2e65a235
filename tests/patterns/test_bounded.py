"""Regular expressions from a file: PEFT's rule, bounded time, no child for plain names."""

from __future__ import annotations

import re
import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptertools.errors import FormatError
from adaptertools.patterns import bounded
from adaptertools.patterns.bounded import match_table

WRAP = r"(.*\.)?({})$"
PLAIN = ["q_proj", "self_attn.q_proj", r"layers\.0\.q-proj", r"layers.\d.q"]


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make starting a child an error."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a child was started")

    monkeypatch.setattr(subprocess, "run", refuse)


@pytest.mark.usefixtures("no_child")
@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(PLAIN), min_size=1),
    st.lists(st.from_regex(r"(layers\.[0-9]\.)?[a-z_]{0,3}(q_proj|q)", fullmatch=True)),
)
def test_plain_patterns_are_matched_here_as_re_does(patterns: list[str], texts: list[str]) -> None:
    """Names, dots and digits need no child, and the answer is re's."""
    wanted = [[bool(re.match(WRAP.replace("{}", p), t)) for t in texts] for p in patterns]
    assert match_table(WRAP, patterns, texts) == wanted


@pytest.mark.usefixtures("no_child")
def test_plain_patterns_are_fast_on_hostile_names() -> None:
    """What counts as plain takes linear time on a long name."""
    started = time.perf_counter()
    for pattern in [*PLAIN, "a" * 50, "." * 50]:
        match_table(WRAP, [pattern], ["a" * 50_000, "a." * 25_000])
    assert time.perf_counter() - started < 2


def test_other_patterns_are_matched_in_a_child() -> None:
    """Alternation, classes and groups give re's answers too."""
    patterns = ["(q|v)_proj", r"layers\.[0-3]\..*proj", "k_proj|up", "x{2}"]
    texts = ["layers.0.q_proj", "layers.5.v_proj", "layers.1.k_proj", "a.up", "group.up.x", "a.xx"]
    wanted = [[bool(re.match(WRAP.replace("{}", p), t)) for t in texts] for p in patterns]
    assert match_table(WRAP, patterns, texts) == wanted
    assert any(map(any, wanted))


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", "(.*a){25}b"])
def test_a_catastrophe_is_ended(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern that backtracks for years ends in AT212 within six seconds."""
    assert bounded.SECONDS < 5
    if pattern != "(a+)+b":
        monkeypatch.setattr(bounded, "SECONDS", 0.5)
    started = time.perf_counter()
    with pytest.raises(FormatError) as caught:
        match_table(WRAP, [pattern], ["a" * 60 + "c"])
    assert caught.value.code == "AT212"
    assert time.perf_counter() - started < 6
    assert pattern in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    "pattern", ["(", "*a", "[z-a]", "a{99999999999}", "(?P<x>a)(?P<x>b)", "\\"]
)
def test_what_is_no_pattern_is_told(pattern: str) -> None:
    """What re cannot compile is AT212, at once, with the pattern."""
    with pytest.raises(FormatError) as caught:
        match_table(WRAP, ["q_proj", pattern], ["a"])
    assert caught.value.code == "AT212"
    assert repr(pattern) in str(caught.value)


def test_a_pattern_is_not_code_or_options() -> None:
    """A pattern is data to the child: braces, quotes and newlines stay what they are."""
    patterns = ["a{}b|c", "'; import os, sys; sys.exit{1}|x", "(?:y\n)|z", "{wrap}(1)?"]
    texts = ["c", "x", "z", "a{}b"]
    rows = match_table(WRAP, patterns, texts)
    assert rows == [[bool(re.match(WRAP.replace("{}", p), t)) for t in texts] for p in patterns]


def test_the_bound_is_the_module_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is SECONDS, and is told."""
    monkeypatch.setattr(bounded, "SECONDS", 0.5)
    started = time.perf_counter()
    with pytest.raises(FormatError, match=r"more than 0.5 s"):
        match_table(WRAP, ["(b+)+c"], ["b" * 60])
    assert time.perf_counter() - started < 2.5
