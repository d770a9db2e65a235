"""`adaptertools extract`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from adaptertools.cli.convert import change_lines
from adaptertools.cli.options import PATH, examples, output_options, spec_option
from adaptertools.cli.output import SHOWN, Output, grouped, human_bytes, table
from adaptertools.cli.resize import rule_options, taken_rule
from adaptertools.composition.extract import ExtractionPlan, ExtractionResult
from adaptertools.composition.extracting import extraction
from adaptertools.store.threads import available_cores


@click.command(
    "extract",
    epilog=examples(
        "extract ./base ./tuned -o ./adapter",
        "extract ./base ./tuned -o ./adapter --energy 0.99 --rank 128",
        "extract ./base ./tuned -o ./adapter --embeddings skip --exclude 'vision_tower.*'",
    ),
)
@click.argument("base", type=PATH)
@click.argument("tuned", type=PATH)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Where to write.")
@rule_options
@click.option("--full-svd", is_flag=True, help="A full SVD of each weight: slow, for audits.")
@click.option(
    "--embeddings",
    type=click.Choice(["full", "lora", "skip"]),
    default="full",
    show_default=True,
    help="What becomes of embeddings and the output head that differ.",
)
@click.option(
    "--vocab",
    type=click.Choice(["refuse", "truncate", "extend"]),
    default="refuse",
    show_default=True,
    help="Of another vocabulary: take the rows that both have, or store the tuned one in full.",
)
@click.option("--include", multiple=True, metavar="GLOB", help="Only these tensors; repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Not these tensors; repeatable.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the range finder.")
@click.option("--split", type=click.Choice(["balanced", "up", "down"]), default="balanced")
@click.option("--to", metavar="FORMAT", default="peft-lora", show_default=True)
@click.option("--dtype", default="auto", show_default=True, help="auto (f32), bf16, f16, f32.")
@click.option("--lossy", is_flag=True, help="Leave out what the format cannot hold.")
@click.option("--dry-run", is_flag=True, help="Compare and print; write nothing.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Threads (default: the cores).")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
@spec_option
@output_options
def command(
    base: str,
    tuned: str,
    out: Path,
    to: str,
    lossy: bool,
    dry_run: bool,
    jobs: int | None,
    overwrite: bool,
    specs: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Find the adapter that makes TUNED of BASE, two checkpoints of one model.

    Weights that differ become LoRA, of rank 16 unless a rule says otherwise (--rank beside a rule
    is the most that it may take); norms and biases are stored in full, and so are embeddings by
    default. Tensors of equal bytes are left out. What a rank does not hold is told by tensor.
    """
    printer = Output(json=as_json, quiet=quiet)
    rule = taken_rule(options)
    job = extraction(Path(base), Path(tuned), out, rule=rule, **options)
    job.to, job.lossy, job.overwrite = to, lossy, overwrite
    job.jobs, job.specs = jobs or available_cores(), specs
    with printer.progress("comparing") as progress:
        job.progress = progress
        plan = job.plan()
    printer.findings(plan.notes)
    if dry_run:
        printer.result(plan.to_json(), plan_lines(plan))
        return
    with printer.progress("extracting") as progress:
        job.progress = progress
        result = job.run(plan)
    printer.findings(result.notes)
    printer.result(result.to_json(), result_lines(result), str(out))


def plan_lines(plan: ExtractionPlan) -> Iterator[str]:
    """Yield the human form of a plan."""
    rows = grouped((p.name, "×".join(map(str, p.tuned.shape)), p.how) for p in plan.pairs)
    head = ("  tensor", "", "shape", "becomes")
    yield from table([head, *((f"  {name}", *rest) for name, *rest in rows)])
    yield from _counts(plan)


def _counts(plan: ExtractionPlan) -> Iterator[str]:
    yield f"{len(plan.pairs)} tensors differ, {len(plan.equal)} are equal"
    if plan.left_out:
        more = ", …" if len(plan.left_out) > SHOWN else ""
        told = ", ".join(plan.left_out[:SHOWN]) + more
        yield f"  not compared  {len(plan.left_out)}: {told}"


def result_lines(result: ExtractionResult) -> Iterator[str]:
    """Yield the human summary of a finished extraction."""
    writing = result.writing
    yield f"{result.out}: {len(writing.updates)} targets, {writing.spec.id}, " + human_bytes(
        writing.bytes
    )
    alike: dict[str, list[Any]] = {}
    for tensor in result.tensors:
        shape = ".".join("*" if part.isdigit() else part for part in tensor.name.split("."))
        rank = "" if tensor.rank is None else str(tensor.rank)
        alike.setdefault(f"{shape} {tensor.how} {rank}", []).append(tensor)
    rows = grouped((t.name, t.how, "" if t.rank is None else str(t.rank)) for t in result.tensors)
    told = []
    for (name, *rest), group in zip(rows, alike.values(), strict=True):
        known = group[0].residual is not None
        lost = f"{max(t.residual for t in group):.3g}" if known else ""
        ratio = f"{max(t.ratio or 0.0 for t in group):.2g}" if known else ""
        told.append((f"  {name}", *rest, lost, ratio))
    head = ("  tensor", "", "becomes", "rank", "left out of ‖Δ‖²", "‖Δ‖/‖W‖")
    yield from table([head, *told])
    yield from (f"  {line.strip()}" for line in _counts(result.plan))
    share = result.residual
    yield f"  left out  {share:.3g} of Σ‖Δ‖², which is {share**0.5:.3g} of its norm"
    yield from change_lines(writing)
    exact = sum(one.exact for one in result.checked)
    yield f"  checked   read back: {len(result.checked)} targets, {exact} bit for bit"
