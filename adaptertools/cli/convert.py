"""`adaptertools convert`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from adaptertools.base.relayout import LAYOUTS, Relayout
from adaptertools.check.repairing import fit_server
from adaptertools.cli.options import (
    PATH,
    base_option,
    examples,
    given_option,
    output_options,
    parse_given,
    spec_option,
)
from adaptertools.cli.output import SHOWN, Output, human_bytes
from adaptertools.conversion.convert import Conversion, ConversionResult
from adaptertools.conversion.prepare import ConversionPlan
from adaptertools.conversion.report import Change
from adaptertools.store.dtypes import storage_word
from adaptertools.store.threads import available_cores


@click.command(
    "convert",
    epilog=examples(
        "convert ./adapter --to gguf-lora --base ./base -o adapter.gguf",
        "convert adapter.gguf --to peft-lora --base ./base -o ./adapter",
        "convert ./adapter --to mlx-lora -o ./mlx --dry-run",
        "convert ./adapter --for vllm -o ./served",
    ),
)
@click.argument("ref", type=PATH)
@click.option("--to", metavar="FORMAT", help="See 'adaptertools formats'; for a base: hf, meta.")
@click.option(
    "--for",
    "server",
    metavar="SERVER",
    help="Repair what is exact for this server, and choose its format.",
)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Where to write.")
@base_option
@click.option("--lossy", is_flag=True, help="Leave out what the format cannot hold.")
@click.option(
    "--dtype", default="auto", show_default=True, help="auto, bf16, f16, f32; q8_0 for GGUF."
)
@given_option
@click.option("--check/--no-check", default=True, help="Read back and compare (the default).")
@click.option("--dry-run", is_flag=True, help="Plan and print; write nothing.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Threads (default: the cores).")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
@click.option("--parts", default=1, show_default=True, help="Of --to meta: the number of files.")
@spec_option
@output_options
def command(
    ref: str,
    to: str | None,
    server: str | None,
    out: Path,
    base: Path | None,
    lossy: bool,
    dtype: str,
    given: tuple[str, ...],
    check: bool,
    dry_run: bool,
    jobs: int | None,
    overwrite: bool,
    parts: int,
    specs: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Convert an adapter to another format; OUT is a folder, or the weight file itself.

    What is written is read back and compared with the source, target by target. Scales that the
    format cannot say are multiplied into the weights; what it cannot hold is refused by name.

    A Llama base goes from the Hugging Face layout to Meta's and back by --to meta and --to hf.
    """
    printer = Output(json=as_json, quiet=quiet)
    job = Conversion(
        Path(ref),
        to or "",
        out,
        base,
        lossy,
        storage_word(dtype),
        overwrite,
        check,
        jobs or available_cores(),
        specs,
        parse_given(given),
    )
    if to is None and server is None:
        raise click.UsageError("give --to FORMAT, or --for SERVER")
    if to in LAYOUTS:
        _base(Relayout(Path(ref), to, out, parts, overwrite), printer, dry_run=dry_run)
        return
    if server is not None:
        fit_server(job, server)
    plan = job.plan()
    printer.findings(f for f in plan.source.findings if f.severity != "info")
    if dry_run:
        printer.result(plan.to_json(), plan_lines(plan))
        return
    with printer.progress("converting") as progress:
        job.progress = progress
        result = job.run(plan)
    printer.result(result.to_json(), result_lines(result), str(out))


def _base(job: Relayout, printer: Output, *, dry_run: bool) -> None:
    """Convert a base checkpoint to another layout."""
    plan = job.plan()
    facts = plan.to_json()
    size = f"{facts['tensors']} tensors, {human_bytes(plan.bytes)}"
    lines = [f"{job.ref} → {job.to}: {size}, in {len(plan.files)} file(s)"]
    lines += [f"  left out  {name}: computed on loading" for name in plan.left_out[:SHOWN]]
    if not dry_run:
        with printer.progress("converting") as progress:
            job.progress = progress
            job.run(plan)
    printer.result({"out": str(job.out), **facts}, lines, str(job.out))


def plan_lines(plan: ConversionPlan) -> Iterator[str]:
    """Yield the human form of a plan."""
    facts = plan.to_json()
    yield f"{plan.source.path}  {plan.source.format} → {plan.spec.id}"
    dtypes = ", ".join(f"{name} ×{count}" for name, count in facts["dtypes"].items())
    yield f"  targets  {facts['targets']}"
    yield f"  tensors  {facts['tensors']}: {dtypes}, {human_bytes(plan.bytes)}"
    yield f"  files    {', '.join(facts['files'])}"
    yield from change_lines(plan)


def change_lines(plan: ConversionPlan) -> Iterator[str]:
    """Yield what is done beside the layout."""
    alike: dict[tuple[str, str], list[Change]] = {}
    for change in plan.changes:
        key = change.title if not change.targets else _shape(change.title)
        alike.setdefault((change.kind, key), []).append(change)
    for (kind, title), changes in alike.items():
        targets = [target for change in changes for target in change.targets]
        alike_names = list(dict.fromkeys(_shape(t.removesuffix(".weight")) for t in targets))
        shown = ", ".join(alike_names[:SHOWN]) + (", …" if len(alike_names) > SHOWN else "")
        yield f"  {kind:<8} {title}" + (f": ×{len(targets)} ({shown})" if targets else "")
    for name, value in plan.told.items():
        yield f"  note     the format does not say {name}; the reader must be told {value}"


def _shape(title: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in title.split("."))


def result_lines(result: ConversionResult) -> Iterator[str]:
    """Yield the human summary of a finished conversion."""
    plan: Any = result.plan
    yield (
        f"{result.out}: {len(plan.updates)} targets, {plan.source.format} → {plan.spec.id}, "
        f"{human_bytes(plan.bytes)}"
    )
    yield from change_lines(plan)
    if not result.checked:
        yield "  checked  no: it was not read back"
    else:
        count = sum(one.exact for one in result.checked)
        told = "bit for bit" if result.exact else f"{count} bit for bit"
        rest = "" if result.exact else f", the rest within {result.error:.2g} of their size"
        yield f"  checked  read back: {len(result.checked)} targets mean the same, {told}{rest}"
