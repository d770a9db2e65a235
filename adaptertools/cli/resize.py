"""`adaptertools resize`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from adaptertools.cli.compose import RULE_HELP
from adaptertools.cli.convert import change_lines
from adaptertools.cli.options import (
    PATH,
    base_option,
    examples,
    given_option,
    output_options,
    parse_given,
    spec_option,
)
from adaptertools.cli.output import Output, grouped, human_bytes, table
from adaptertools.composition.composing import RULES
from adaptertools.composition.resizing import (
    PEER_RULES,
    Resizing,
    chosen,
    plan_resize,
    resizing,
    run_resize,
)
from adaptertools.store.threads import available_cores


def rule_options(function: Any) -> Any:
    """Add the rank rules, under sd-scripts' names too."""
    peers = {ours: theirs for theirs, ours in PEER_RULES.items()}
    for name in reversed(RULES):
        words = [f"--{word.replace('_', '-')}" for word in (name, peers.get(name)) if word]
        kind: Any = click.IntRange(min=1) if name == "rank" else float
        function = click.option(*words, name, type=kind, help=RULE_HELP[name])(function)
    return function


def taken_rule(options: dict[str, Any]) -> tuple[tuple[str, float], int | None] | None:
    """Take the rank rules out of the options; return the one given, and the rank beside it."""
    taken = {name: options.pop(name) for name in RULES}
    given = {name: value for name, value in taken.items() if value is not None}
    return chosen(given) if given else None


@click.command(
    "resize",
    epilog=examples(
        "resize ./adapter --rank 8 -o ./small",
        "resize ./adapter --energy 0.99 --rank 16 -o ./small",
        "resize style.safetensors --sv-fro 0.95 -o small.safetensors --dry-run",
    ),
)
@click.argument("ref", type=PATH)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Where to write.")
@rule_options
@click.option(
    "--alpha",
    type=click.Choice(["one", "keep"]),
    default="one",
    show_default=True,
    help="Scale 1 (alpha = rank), or the adapter's own scale.",
)
@click.option(
    "--split",
    type=click.Choice(["balanced", "up", "down"]),
    default="balanced",
    show_default=True,
    help="Where the singular values go: √σ on both sides, or all on one.",
)
@click.option("--to", metavar="FORMAT", help="Default: the adapter's own.")
@base_option
@click.option("--dtype", default="auto", show_default=True, help="auto (as it is), bf16, f16, f32.")
@click.option("--lossy", is_flag=True, help="Leave out what the format cannot hold.")
@given_option
@click.option("--dry-run", is_flag=True, help="Compute and print; write nothing.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Threads (default: the cores).")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
@spec_option
@output_options
def command(
    ref: str,
    out: Path,
    alpha: str,
    split: str,
    to: str | None,
    base: Path | None,
    dtype: str,
    lossy: bool,
    given: tuple[str, ...],
    dry_run: bool,
    jobs: int | None,
    overwrite: bool,
    specs: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Write an adapter again with smaller ranks, and tell what of it that loses.

    One rule chooses the rank of each target; --rank beside another rule is the most that it may
    keep. A rank is never enlarged, and full values beside the ranks stay as they are.
    """
    printer = Output(json=as_json, quiet=quiet)
    rule = taken_rule(options)
    if rule is None:
        raise click.UsageError("give a rank rule, e.g. --rank 8 or --energy 0.99")
    job = resizing(Path(ref), out, *rule, split=split, alpha=alpha, dtype=dtype)
    job.to, job.base, job.lossy, job.overwrite = to or "", base, lossy, overwrite
    job.jobs, job.specs, job.given = jobs or available_cores(), specs, parse_given(given)
    planned = plan_resize(job)
    if not dry_run:
        with printer.progress("resizing") as progress:
            job.progress = progress
            planned = run_resize(job, planned)
    printer.result(planned.to_json(), result_lines(planned), str(out))


def result_lines(planned: Resizing) -> Iterator[str]:
    """Yield the human form of a planned or finished resize."""
    writing = planned.plan.writing
    sizes = f"{human_bytes(planned.bytes_before)} → {human_bytes(writing.bytes)}"
    count = f"{len(planned.targets)} targets"
    yield f"{planned.out}: {count}, {planned.source.format} → {writing.spec.id}, {sizes}"
    alike: dict[str, list[float]] = {}
    rows = [(t.target, f"{t.before} → {t.after}") for t in planned.targets]
    shapes = [".".join("*" if p.isdigit() else p for p in name.split(".")) for name, _ in rows]
    for (_, ranks), shape, target in zip(rows, shapes, planned.targets, strict=True):
        alike.setdefault(f"{shape} {ranks}", []).append(target.discarded)
    lost = [f"{max(values):.3g}" for values in alike.values()]
    told = [(f"  {name}", *rest) for name, *rest in grouped(rows)]
    head = ("  target", "", "rank", "discarded (at most)")
    yield from table([head, *((*row, one) for row, one in zip(told, lost, strict=True))])
    share = planned.discarded
    yield f"  discarded {share:.3g} of Σ‖ΔW‖², which is {share**0.5:.3g} of its norm"
    yield from change_lines(writing)
    if planned.result is not None:
        worst = max((one.error for one in planned.result.checked), default=0.0)
        exact = sum(one.exact for one in planned.result.checked)
        yield (
            f"  checked  read back: {len(planned.result.checked)} targets, {exact} bit for bit, "
            f"the largest difference {worst:.2g}"
        )
