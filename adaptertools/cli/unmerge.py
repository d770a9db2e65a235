"""`adaptertools unmerge`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from adaptertools.base.options import as_pairs, make_options
from adaptertools.base.unmerging import Unmerge, Unmerging, plan_unmerge, run_unmerge
from adaptertools.cli.options import (
    PATH,
    examples,
    given_option,
    output_options,
    parse_given,
    spec_option,
)
from adaptertools.cli.output import Output, grouped, human_bytes, table


@click.command(
    "unmerge",
    epilog=examples(
        "unmerge ./merged ./adapter -o ./base-again",
        "unmerge ./merged ./style=0.8 ./task -o ./back --dry-run",
        "unmerge ./merged ./adapter -o ./back --base ./base",
    ),
)
@click.argument("merged", type=PATH)
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER[=WEIGHT]...")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Where to write.")
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="The base that it was merged into: what is lost is measured, not estimated.",
)
@click.option(
    "--max-loss",
    type=float,
    metavar="X",
    help="Accept ‖error‖/‖W‖ up to X in each tensor (default: what one rounding to its dtype can "
    "be: bf16 0.0039, f16 0.00049, f32 6e-8).",
)
@click.option("--dry-run", is_flag=True, help="Tell what would be lost; write nothing.")
@click.option(
    "--compute-dtype",
    type=click.Choice(["auto", "f32", "f64"]),
    default="auto",
    show_default=True,
    help="As the merge had it.",
)
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Threads (default: the cores).")
@click.option("--shard-size", metavar="SIZE", help="Reshard to at most this, e.g. 5GB.")
@click.option("--overwrite", is_flag=True, help="Replace OUT, or an unmerge left unfinished there.")
@click.option("--with-code", is_flag=True, help="Copy *.py files of the merged model too.")
@click.option("--sync", is_flag=True, help="fsync, so that a power cut costs nothing.")
@given_option
@spec_option
@output_options
def command(
    merged: str,
    adapters: tuple[str, ...],
    out: Path,
    base: Path | None,
    max_loss: float | None,
    dry_run: bool,
    given: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Take adapters out of MERGED, given as they were merged, and write the base again to OUT.

    LoRA is subtracted, (IA)³ divided by; DoRA, full values and token rows need the base and are
    refused. The merge rounded, so not every element comes back bit for bit: how many do is told,
    and where a tensor lost more than the bound, nothing is written.
    """
    printer = Output(json=as_json, quiet=quiet)
    told = make_options(given=parse_given(given), **options)
    job = Unmerge(Path(merged), as_pairs(list(adapters)), out, told)
    with printer.progress("reading") as progress:
        job.progress = progress
        planned = plan_unmerge(job, base, max_loss)
    printer.findings((*planned.plan.notes, *planned.notes))
    if not dry_run:
        with printer.progress("unmerging") as progress:
            job.progress = progress
            planned = run_unmerge(job, planned)
    printer.result(planned.to_json(), result_lines(planned), str(out))


def result_lines(planned: Unmerging) -> Iterator[str]:
    """Yield the human form of a planned or finished unmerge."""
    word = "are" if planned.measured else "come back as"
    size = human_bytes(planned.plan.output_bytes)
    untouched = len(planned.plan.tensors) - len(planned.losses)
    yield f"{planned.out}: {len(planned.losses)} tensors, {untouched} untouched, {size}"
    rows = [(loss.name, loss.dtype) for loss in planned.losses]
    alike: dict[tuple[str, str], list[float]] = {}
    exact: dict[tuple[str, str], list[float]] = {}
    for loss in planned.losses:
        name = ".".join("*" if part.isdigit() else part for part in loss.name.split("."))
        alike.setdefault((name, loss.dtype), []).append(loss.error)
        exact.setdefault((name, loss.dtype), []).append(1 - loss.share)
    told = [
        (f"  {name}", count, dtype, f"{min(shares):.2%}", f"{max(errors):.2g}")
        for (name, count, dtype), errors, shares in zip(
            grouped(rows), alike.values(), exact.values(), strict=True
        )
    ]
    yield from table([("  tensor", "", "dtype", "bit for bit", "‖error‖/‖W‖"), *told])
    how = "measured against the base" if planned.measured else "estimated"
    yield f"  {planned.exact_share:.2%} of the elements {word} the base's bits, {how}"
