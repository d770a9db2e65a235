"""`adaptertools verify`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from adaptertools.base.verify import FINE, Verification, verify
from adaptertools.cli.options import (
    PATH,
    examples,
    given_option,
    output_options,
    parse_given,
    spec_option,
)
from adaptertools.cli.output import Output, finding_lines, grouped, table


@click.command(
    "verify",
    epilog=examples(
        "verify ./merged", "verify ./merged --base ./base --adapter ./style=0.8 --adapter ./task"
    ),
)
@click.argument("out", type=PATH)
@click.option("--base", type=PATH, help="The base it was merged into.")
@click.option(
    "--adapter", "adapters", multiple=True, metavar="ADAPTER[=WEIGHT]", help="Repeatable, in order."
)
@given_option
@spec_option
@output_options
def command(
    out: str,
    base: str | None,
    adapters: tuple[str, ...],
    given: tuple[str, ...],
    specs: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Check that OUT holds this merge, tensor by tensor; exit 1 when it does not.

    By default the inputs are those of the receipt in OUT. With --base and --adapter it judges a
    merge made by any tool.
    """
    printer = Output(json=as_json, quiet=quiet)
    found = verify(out, base, list(adapters), specs=specs, given=parse_given(given))
    printer.result(found.to_json(), lines(found), "ok" if found.ok else "failed")
    if not found.ok:
        sys.exit(1)


def lines(found: Verification) -> Iterator[str]:
    """Yield the human form of a verification."""
    rows = [
        (verdict.name, verdict.verdict, verdict.detail)
        for verdict in (*found.targets, *found.others)
        if verdict.verdict not in FINE
    ]
    yield from table([(kind, name, n, why) for name, n, kind, why in grouped(rows)])
    yield from finding_lines(found.findings)
    kinds = dict.fromkeys(v.verdict for v in (*found.targets, *found.others))
    counts = ", ".join(f"{found.count(kind)} {kind}" for kind in kinds)
    yield f"{found.out}: {counts}"
    yield "verified" if found.ok else "not verified"
