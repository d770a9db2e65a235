"""`adaptertools validate`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from adaptertools.check.profile import profile_names
from adaptertools.check.validating import validate
from adaptertools.cli.options import PATH, examples, output_options, spec_option
from adaptertools.cli.output import Output, finding_lines


@click.command(
    "validate",
    epilog=examples(
        "validate ./adapter", "validate ./adapter --base ./base", "validate ./adapter --for vllm"
    ),
)
@click.argument("ref", type=PATH)
@click.option(
    "--base",
    type=PATH,
    help="Check that it fits this base too; a folder with only a config.json will do.",
)
@click.option(
    "--for",
    "profile",
    metavar="SERVER",
    help=f"Say what this server would do with it too: {', '.join(profile_names())}.",
)
@click.option(
    "--residual-base", is_flag=True, help="The base is the residual one of a PiSSA-like init."
)
@spec_option
@output_options
def command(
    ref: str,
    base: str | None,
    profile: str | None,
    residual_base: bool,
    specs: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Report everything that is wrong with an adapter; exit 1 when there are errors.

    Keys, shapes, ranks, config types, NaN and Inf; with --base also names and sizes; with --for
    what a server would refuse, leave out or load wrong. Nothing stops at the first fault.
    """
    out = Output(json=as_json, quiet=quiet)
    report = validate(ref, base, profile=profile, residual_base=residual_base, specs=specs)
    lines = finding_lines(report.findings)
    counts = ", ".join(
        f"{n} {severity}{'s' if n != 1 else ''}"
        for severity in ("error", "warning")
        if (n := report.count(severity))
    )
    told = ", ".join(part for part in (report.format, profile and f"for {profile}") if part)
    lines.append(f"{ref}: {counts or 'no faults found'}" + (f"  ({told})" if told else ""))
    out.result(report.to_json(), lines, "ok" if report.ok else "failed")
    if not report.ok:
        sys.exit(1)
