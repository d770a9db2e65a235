"""Options that mean the same in every command."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
PATH = click.Path(path_type=str)


def output_options(function: F) -> F:
    """Add --json and -q/--quiet."""
    function = click.option("-q", "--quiet", is_flag=True, help="Print only the result.")(function)
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(
        function
    )


def spec_option(function: F) -> F:
    """Add --spec FILE."""
    return click.option(
        "--spec",
        "specs",
        multiple=True,
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="A format spec of your own (TOML); repeatable.",
    )(function)


def base_option(function: F) -> F:
    """Add --base REF, from which only the config is read."""
    return click.option(
        "--base",
        type=click.Path(path_type=Path),
        help="The base, its config.json, or its GGUF file: names and head counts come from it.",
    )(function)


def given_option(function: F) -> F:
    """Add --set FIELD=VALUE."""
    return click.option(
        "--set",
        "given",
        multiple=True,
        metavar="FIELD=VALUE",
        help="A config field that the source does not tell, e.g. lora_alpha=16; repeatable.",
    )(function)


def examples(*lines: str) -> str:
    """Return an epilog that shows examples as they are typed."""
    return "\b\nExamples:\n" + "\n".join(f"  adaptertools {line}" for line in lines)


def parse_given(pairs: Sequence[str]) -> dict[str, Any]:
    """Return the fields of `--set FIELD=VALUE`; a value is JSON, else text.

    >>> parse_given(["lora_alpha=16", "enable_lora=[true,false]"])
    {'lora_alpha': 16, 'enable_lora': [True, False]}
    """
    given = {}
    for pair in pairs:
        name, mark, text = pair.partition("=")
        if not name or not mark:
            raise click.BadParameter(f"{pair!r} is not FIELD=VALUE", param_hint="--set")
        try:
            given[name] = json.loads(text)
        except ValueError:
            given[name] = text
    return given
