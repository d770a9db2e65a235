"""Weights, options and arguments on the command line."""

from __future__ import annotations

import pytest
from builders import (
    read_checkpoint,
    tiny_lora,
)

from .arena import Arena, cli, snapshot


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "NaN", "infinity", "1e999"])
def test_weight_that_is_not_finite(arena: Arena, weight: str) -> None:
    """A weight must be finite: a usage error."""
    arguments = ("merge", arena.base, f"{arena.adapter}={weight}", "-o", arena.out)
    arena.refuses_cli(code=2, arguments=arguments)


@pytest.mark.parametrize("weight", ["", "abc", "1,5", "0x10", "--1", "1=2"])
def test_weight_that_is_no_number(arena: Arena, weight: str) -> None:
    """What is no number is no weight: then no such path exists, or usage is explained."""
    before = snapshot(arena.root)
    result = cli("merge", arena.base, f"{arena.adapter}={weight}", "-o", arena.out)
    assert result.code in {1, 2}
    assert snapshot(arena.root) == before


def test_weight_zero(arena: Arena) -> None:
    """A weight of zero changes nothing, which is an error."""
    arguments = ("merge", arena.base, f"{arena.adapter}=0", "-o", arena.out)
    result = cli(*arguments)
    assert result.code in {1, 2}
    assert not arena.out.exists()


def test_adapters_that_cancel_out(arena: Arena) -> None:
    """The same adapter with weights 1 and -1 leaves every byte of the base, or is refused."""
    twin = tiny_lora(arena.root / "twin", arena.base)
    result = cli("merge", arena.base, arena.adapter, f"{twin}=-1", "-o", arena.out)
    if result.code == 0:
        assert read_checkpoint(arena.out) == read_checkpoint(arena.base)
    else:
        assert result.code == 1
        assert not arena.out.exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--jobs", "0"),
        ("--jobs", "-1"),
        ("--jobs", "x"),
        ("--dtype", "f33"),
        ("--compute-dtype", "i8"),
        ("--shard-size", "0"),
        ("--shard-size", "-5GB"),
        ("--shard-size", "many"),
        ("--no-such-option",),
    ],
    ids=" ".join,
)
def test_options_out_of_range(arena: Arena, options: tuple[str, ...]) -> None:
    """An impossible option is a usage error, in words and in JSON."""
    arguments = ("merge", arena.base, arena.adapter, "-o", arena.out, *options)
    arena.refuses_cli(code=2, arguments=arguments)


@pytest.mark.parametrize("arguments", [(), ("@base",), ("@base", "@adapter"), ("-o", "@out")])
def test_arguments_that_are_missing(arena: Arena, arguments: tuple[str, ...]) -> None:
    """A missing argument is a usage error."""
    values = [str(arena.root / text[1:]) if text[0] == "@" else text for text in arguments]
    arena.refuses_cli(code=2, arguments=("merge", *values))


def test_unknown_verb() -> None:
    """An unknown verb is a usage error."""
    assert cli("smelt").code == 2
