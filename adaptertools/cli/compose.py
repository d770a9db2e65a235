"""`adaptertools compose`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from adaptertools.base.options import as_pairs
from adaptertools.cli.convert import change_lines
from adaptertools.cli.options import (
    base_option,
    examples,
    given_option,
    output_options,
    parse_given,
    spec_option,
)
from adaptertools.cli.output import Output, human_bytes
from adaptertools.composition.compose import CompositionPlan, CompositionResult
from adaptertools.composition.composing import RULES, composition
from adaptertools.store.threads import available_cores

RULE_HELP = {
    "rank": "At most this rank.",
    "energy": "Keep this share of ‖ΔW‖².",
    "fro": "Keep this share of ‖ΔW‖ (sd-scripts' sv_fro).",
    "sum": "Keep this share of Σσ (sv_cumulative).",
    "ratio": "Keep σ > σ₁ / this (sv_ratio).",
    "sv_min": "Keep σ > this.",
    "max_error": "Lose at most this share of ‖ΔW‖.",
}


def rule_options(function: Any) -> Any:
    """Add the rank rules, of which one may be given."""
    for name in reversed(RULES):
        kind: Any = click.IntRange(min=1) if name == "rank" else float
        option = click.option(f"--{name.replace('_', '-')}", name, type=kind, help=RULE_HELP[name])
        function = option(function)
    return function


def chosen_rule(options: dict[str, Any]) -> tuple[str, float] | None:
    """Take the rank rules out of the options and return the one that was given."""
    given = {name: options.pop(name) for name in RULES}
    found = [(name, float(value)) for name, value in given.items() if value is not None]
    if len(found) > 1:
        raise click.UsageError(f"give one rank rule, not {len(found)}")
    return found[0] if found else None


def _list_methods(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print every method with its formula, its parameters and where it is from, and end."""
    if not wanted or ctx.resilient_parsing:
        return
    from adaptertools.algebra.methods.registry import REGISTRY

    needs = {"low_rank": "low rank", "dense": "dense ΔW", "base": "whole weights"}
    for method in REGISTRY.values():
        params = ", ".join(f"{p.name}={p.default}" for p in method.params) or "no parameters"
        click.echo(f"{method.name}  ({needs[method.kind]})  {method.formula}")
        click.echo(f"    {params}; {method.paper}")
    ctx.exit()


@click.command(
    "compose",
    epilog=examples(
        "compose ./style=0.8 ./task -o ./both",
        "compose ./a ./b ./c -o ./abc --method ties --param density=0.5 --rank 16",
        "compose ./a ./b -o ./both --weights 'layers.0-7=0.2,*.mlp.*=1.3' --energy 0.99",
    ),
)
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER[=WEIGHT]...")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Where to write.")
@click.option("--method", help="exact (the default without a rank rule), or see --list-methods.")
@click.option(
    "--list-methods",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_methods,
    help="Say what the methods are, and their parameters.",
)
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="Of the method.")
@rule_options
@click.option("--weights", default="", metavar="PATTERN=FACTOR,...", help="By layer and module.")
@click.option(
    "--vectors",
    type=click.Choice(["linear", "product"]),
    default="linear",
    show_default=True,
    help="How (IA)³ vectors are composed: 1 + Σ w(l - 1), or ∏ l^w.",
)
@click.option("--last-wins", is_flag=True, help="Of full values, take the last adapter's.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of methods that draw.")
@click.option("--split", type=click.Choice(["balanced", "up", "down"]), default="balanced")
@click.option("--compat", type=click.Choice(["peft"]), help="PEFT's own results, on factors.")
@click.option("--to", metavar="FORMAT", help="Default: the first adapter's.")
@base_option
@click.option("--dtype", default="auto", show_default=True, help="auto, bf16, f16, f32.")
@click.option("--lossy", is_flag=True, help="Leave out what the format cannot hold.")
@given_option
@click.option("--dry-run", is_flag=True, help="Plan and print; write nothing.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Threads (default: the cores).")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
@spec_option
@output_options
def command(
    adapters: tuple[str, ...],
    out: Path,
    params: tuple[str, ...],
    to: str | None,
    base: Path | None,
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
    """Compose adapters into one adapter, on what they do to the weights (ΔW = Σ w s B A).

    By default the sum is exact: ranks are concatenated. A rank rule brings it back to a small rank
    and tells what that costs; a method combines the changes otherwise.
    """
    printer = Output(json=as_json, quiet=quiet)
    rule = chosen_rule(options)
    job = composition(
        as_pairs(list(adapters)), out, rule=rule, params=parse_given(params), **options
    )
    job.to, job.base, job.lossy, job.overwrite = to or "", base, lossy, overwrite
    job.jobs, job.specs, job.given = jobs or available_cores(), specs, parse_given(given)
    plan = job.plan()
    printer.findings(plan.notes)
    if dry_run:
        printer.result(plan.to_json(), plan_lines(plan))
        return
    with printer.progress("composing") as progress:
        job.progress = progress
        result = job.run(plan)
    printer.result(result.to_json(), result_lines(result), str(out))


def plan_lines(plan: CompositionPlan) -> Iterator[str]:
    """Yield the human form of a plan."""
    writing = plan.writing
    for adapter, weight in plan.adapters:
        yield f"  {weight:+g} × {adapter.path}  {adapter.format}, {len(adapter.updates)} targets"
    ranks = ", ".join(map(str, plan.ranks))
    yield f"  → {writing.spec.id}: {len(writing.updates)} targets" + (
        f", rank {ranks}" if ranks else ""
    )
    if plan.discarded:
        worst = max(plan.discarded, key=lambda name: plan.discarded[name])
        mean = sum(plan.discarded.values()) / len(plan.discarded)
        yield (
            f"  discarded {mean:.3g} of the energy on average, {plan.discarded[worst]:.3g} at most "
            f"({worst})"
        )
    yield from change_lines(writing)


def result_lines(result: CompositionResult) -> Iterator[str]:
    """Yield the human summary of a finished composition."""
    yield f"{result.out}: {human_bytes(result.plan.writing.bytes)}"
    yield from plan_lines(result.plan)
    facts = result.to_json()
    if result.checked:
        yield (
            f"  checked  read back: {facts['checked']} targets, {facts['exact']} bit for bit, the "
            f"largest difference {facts['largest_error']:.2g}"
        )
