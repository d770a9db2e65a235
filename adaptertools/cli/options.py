"""Options that mean the same in every command."""

from __future__ import annotations

from collections.abc import Callable
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


def examples(*lines: str) -> str:
    """Return an epilog that shows examples as they are typed."""
    return "\b\nExamples:\n" + "\n".join(f"  adaptertools {line}" for line in lines)
