"""Control characters and regular expressions out of a file."""

from __future__ import annotations

import time

import numpy as np
import pytest
from builders import (
    tiny_ia3,
)

from adaptertools import AdapterError

from .arena import PREFIX, Arena, assert_sentence, cli, put, snapshot

SLOW = 10.0


EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\n\u202e\u2028evil"


@pytest.mark.parametrize("verb", ["merge", "inspect", "validate", "base"])
def test_control_characters_stay_in_the_file(arena: Arena, verb: str) -> None:
    """Keys with escape sequences are shown escaped, in words and in JSON (`cli` checks that)."""
    name = f"{PREFIX}model.layers.0.{EVIL}"
    arena.edit_weights(put(f"{name}.lora_A.weight", np.ones((4, 64))))
    arena.edit_weights(put(f"{name}.lora_B.weight", np.ones((64, 4))))
    arena.edit_model(put(f"model.{EVIL}", np.ones(2)))
    arguments: dict[str, tuple[object, ...]] = {
        "merge": ("merge", arena.base, arena.adapter, "-o", arena.out),
        "inspect": ("inspect", arena.adapter),
        "validate": ("validate", arena.adapter, "--base", arena.base),
        "base": ("inspect", arena.base),
    }
    told = cli(*arguments[verb])
    assert told.code in {0, 1}
    assert not any("\u202e" in text or "\u2028" in text for text in (told.out, told.err))
    lines = told.text.splitlines()
    assert not any(line.strip().startswith("evil") for line in lines), "a key began a line"
    asked = cli(*arguments[verb], "--json")
    assert asked.code == told.code
    if verb == "merge":
        assert told.code == 1
        assert "evil" in told.err


@pytest.mark.parametrize("field", ["base_model_name_or_path", "peft_version", "task_type"])
def test_control_characters_in_config(arena: Arena, field: str) -> None:
    """Strings of a config are shown escaped too."""
    arena.configure(**{field: EVIL})
    assert cli("inspect", arena.adapter).code in {0, 1}
    assert cli("merge", arena.base, arena.adapter, "-o", arena.out).code in {0, 1}


BOMBS = [
    r"(a+)+$",
    r"(([a-z0-9_.])+)+!",
    r"((.*)*)*!",
    r"(.*)*(.*)*(.*)*(.*)*(.*)*!",
    r"^(([a-z_]|[0-9.])+)+\d\d\d$",
    "(" * 5000 + "a" + ")" * 5000,
    "(a|b|c|d" * 3000,
    r"(?:a{1000}){1000}" * 3,
    r"[",
    r"(?P<a>x)(?P<a>y)",
    r"(?i)",
    r"\1",
    "*",
    "a" * 1_000_000,
    "\ud800",
    "\x00",
]


EXPONENTIAL = 5  # the first of them would run for years


def dry_run(arena: Arena) -> int:
    """Run a dry merge within the time bound, check what it says, and return the exit code."""
    before = snapshot(arena.root)
    start = time.monotonic()
    result = cli("merge", arena.base, arena.adapter, "-o", arena.out, "--dry-run")
    took = time.monotonic() - start
    assert took < SLOW, f"{took:.1f} s"
    assert result.code in {0, 1}
    assert len(result.err) < 4000, "the message repeats the bomb"
    assert snapshot(arena.root) == before
    return result.code


@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
@pytest.mark.parametrize("field", ["rank_pattern", "target_modules"])
def test_regex_bombs(arena: Arena, field: str, bomb: str) -> None:
    """No pattern from a config runs for long, whatever it is; the answer is right or a refusal."""
    arena.configure(**{field: {bomb: 4} if field == "rank_pattern" else bomb})
    if bomb in BOMBS[:EXPONENTIAL]:
        dry_run(arena)
        return
    start = time.monotonic()
    try:
        notes = arena.merge().plan.notes
    except AdapterError as error:
        assert_sentence(str(error))
        assert not arena.out.exists()
    else:
        arena.check()
        for note in notes:
            assert_sentence(str(note))
    assert time.monotonic() - start < SLOW


@pytest.mark.parametrize("field", ["alpha_pattern", "exclude_modules", "modules_to_save"])
def test_regex_bomb_elsewhere(arena: Arena, field: str) -> None:
    """Every field that holds patterns is bounded."""
    bomb = r"(([a-z0-9_.])+)+!"
    value = {"alpha_pattern": {bomb: 4}, "exclude_modules": bomb, "modules_to_save": [bomb]}[field]
    arena.configure(**{field: value})
    dry_run(arena)


def test_regex_bomb_in_ia3(arena: Arena) -> None:
    """The patterns of (IA)3 are bounded too."""
    bomb = r"(([a-z0-9_.])+)+!"
    arena.adapter = tiny_ia3(arena.root / "ia3", arena.base)
    arena.configure(feedforward_modules=bomb, target_modules=bomb)
    dry_run(arena)


def test_many_bombs(arena: Arena) -> None:
    """A thousand slow patterns are no way around the bound."""
    arena.configure(rank_pattern={rf"(([a-z0-9_.])+)+!{n}": 4 for n in range(1000)})
    dry_run(arena)
