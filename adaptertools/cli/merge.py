"""`adaptertools merge`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from adaptertools.base.engine import Interrupts
from adaptertools.base.merge import Merge
from adaptertools.base.options import as_pairs, make_options
from adaptertools.base.plan import MergePlan
from adaptertools.base.result import MergeResult
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
    "merge",
    epilog=examples(
        "merge ./base ./adapter -o ./merged",
        "merge ./base ./style=0.8 ./task -o ./merged --dry-run",
        "merge model.safetensors ./adapter -o merged.safetensors --dtype bf16",
        "merge base.Q4_K_M.gguf ./adapter -o merged.gguf --dtype bf16",
    ),
)
@click.argument("base", type=PATH)
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER[=WEIGHT]...")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Where to write.")
@click.option("--dry-run", is_flag=True, help="Plan and print; write nothing.")
@click.option(
    "--dtype",
    default="auto",
    show_default=True,
    help="Stored dtype: auto, bf16, f16, f32, f64; q8_0 for quantised tensors of a GGUF base.",
)
@click.option(
    "--compute-dtype",
    type=click.Choice(["auto", "f32", "f64"]),
    default="auto",
    show_default=True,
    help="auto: f32 for bf16, f64 for f16 and f32.",
)
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Threads (default: the cores).")
@click.option("--shard-size", metavar="SIZE", help="Reshard to at most this, e.g. 5GB.")
@click.option("--overwrite", is_flag=True, help="Replace OUT, or a merge left unfinished there.")
@click.option(
    "--residual-base", is_flag=True, help="BASE is the residual one of a PiSSA-like init."
)
@click.option("--with-code", is_flag=True, help="Copy *.py files of the base too.")
@click.option("--hash", "full_hash", is_flag=True, help="Record the full sha256 of the base files.")
@click.option("--sync", is_flag=True, help="fsync, so that a power cut costs nothing.")
@given_option
@spec_option
@output_options
def command(
    base: str,
    adapters: tuple[str, ...],
    out: Path,
    dry_run: bool,
    full_hash: bool,
    given: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Merge one or more adapters into BASE, in the order given, and write the result to OUT.

    BASE is a directory in Hugging Face's or Meta's layout, a .safetensors file, or a GGUF file or
    folder. A weight multiplies the change an adapter makes. Each weight tensor is computed wider
    than it is stored and rounded once; the rest is copied byte for byte.
    """
    printer = Output(json=as_json, quiet=quiet)
    job = Merge(
        Path(base),
        as_pairs(list(adapters)),
        out,
        make_options(hash=full_hash, given=parse_given(given), **options),
    )
    if dry_run:
        plan = job.plan()
        printer.findings(plan.notes)
        printer.result(plan.to_json(job.options.jobs), plan_lines(plan, job.options.jobs))
        return
    with Interrupts() as interrupts, printer.progress("merging") as progress:
        job.progress = progress
        job.preload()
        plan = job.plan()
        printer.findings(plan.notes)
        interrupts.check()
        result = job.run(plan)
    printer.result(result.to_json(), result_lines(result), str(out))


def plan_lines(plan: MergePlan, jobs: int) -> Iterator[str]:
    """Yield the human form of a plan."""
    rows = grouped(
        (tensor.name, "×".join(map(str, tensor.shape)), tensor.dtype, tensor.formula)
        for tensor in plan.touched
    )
    header = ("  tensor", "", "shape", "dtype", "new value")
    yield from table([header, *((f"  {name}", *rest) for name, *rest in rows)])
    yield f"{len(plan.touched)} of {len(plan.tensors)} tensors change, by {plan.targets} updates"
    yield f"  copied    {human_bytes(plan.copied_bytes)}"
    yield f"  computed  {human_bytes(plan.computed_bytes)}"
    files = len(plan.files) + len(plan.companions)
    yield f"  output    {human_bytes(plan.output_bytes)} in {files} files"
    yield f"  memory    {human_bytes(plan.peak_bytes(jobs))} over what torch takes"
    for name, value in plan.config_changes.items():
        yield f"  config    {name} = {value}"
    if plan.left_out:
        yield f"  left out  {', '.join(plan.left_out)}"


def result_lines(result: MergeResult) -> Iterator[str]:
    """Yield the human summary of a finished merge."""
    facts = result.to_json()
    yield (
        f"{result.out}: {facts['updates']} updates applied to {facts['touched']} tensors, "
        f"{facts['untouched']} copied untouched"
    )
    if facts["delta_ratio"]:
        low, high = facts["delta_ratio"]
        yield f"  ‖ΔW‖/‖W‖     {low:.3g} to {high:.3g}"
    if facts["changed_share"]:
        low, high = facts["changed_share"]
        yield f"  changed      {low:.1%} to {high:.1%} of a tensor's elements (sampled)"
    for name in facts["unchanged"]:
        yield f"  unchanged    {name}: the update is smaller than its dtype can show"
    speed = human_bytes(facts["bytes_per_second"])
    yield f"  time         {facts['seconds']:.2f} s, {human_bytes(facts['bytes'])}, {speed}/s"
    yield f"  peak memory  {human_bytes(facts['peak_rss'])}"
    if facts["resumed_tasks"]:
        yield f"  resumed      {facts['resumed_tasks']} pieces were done already"
