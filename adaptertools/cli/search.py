"""`adaptertools search`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from adaptertools.cli.compose import chosen_rule, rule_options
from adaptertools.cli.options import PATH, examples, given_option, output_options, parse_given
from adaptertools.cli.output import Output
from adaptertools.searching.log import Trial
from adaptertools.searching.loop import TIMEOUT
from adaptertools.searching.plot import text_plot
from adaptertools.searching.result import SearchResult
from adaptertools.searching.sampler import SAMPLERS
from adaptertools.searching.search import prepared
from adaptertools.searching.space import Space, described


@click.command(
    "search",
    epilog=examples(
        "search ./base ./style ./task -o ./best --score 'python eval.py' --samples 32",
        "search ./base ./a ./b -o ./best --score evals:loss --samples 64 --minimize --method cma",
        "search ./base ./a ./b -o ./ab --compose --combine ties --space 'density=0.2..0.9,a=0..2' "
        "--score 'python eval.py {} dev' --samples 32",
    ),
)
@click.argument("base", type=PATH)
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER[=WEIGHT]...")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The winner.")
@click.option(
    "--score",
    required=True,
    metavar="CMD|MODULE:FUNCTION",
    help="Gets the path (last, or for {}); the last number on stdout, or the answer, is the score.",
)
@click.option("--samples", required=True, type=click.IntRange(min=1), help="How many to try.")
@click.option(
    "--space",
    default="",
    metavar="NAME=LOW..HIGH,...",
    help="weight (of all, default 0..1.5), an adapter's name, density, rank.",
)
@click.option("--method", "sampler", type=click.Choice(SAMPLERS), default="random")
@click.option("--seed", type=int, default=0, show_default=True, help="Of samples and methods.")
@click.option("--minimize/--maximize", default=False, help="Default: more is better.")
@click.option("--compose", is_flag=True, help="Make and score adapters, not merged models.")
@click.option("--combine", metavar="METHOD", help="How adapters are added: a method of compose.")
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="Of that method.")
@rule_options
@click.option("--to", metavar="FORMAT", help="With --compose; default: the first adapter's.")
@click.option("--dtype", default="auto", show_default=True, help="Stored dtype, as in merge.")
@click.option("--lossy", is_flag=True, help="Leave out what the format cannot hold.")
@click.option("--seconds", type=float, help="Start no sample after this time.")
@click.option("--patience", type=click.IntRange(min=1), help="End after so many without a better.")
@click.option("--timeout", type=float, default=TIMEOUT, show_default=True, help="Of one scoring.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), default=1, help="Samples at a time.")
@click.option("--resume", is_flag=True, help="Go on from the log beside OUT.")
@click.option("--overwrite", is_flag=True, help="Replace OUT, and without --resume its log.")
@given_option
@output_options
def command(
    base: str,
    adapters: tuple[str, ...],
    out: Path,
    params: tuple[str, ...],
    given: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Search the best weights: sample, merge into BASE, score, keep the best (best of K).

    The first samples are the uniform mix and each adapter alone. A weight given beside an adapter
    is fixed. A sample whose scorer fails is lost, the search goes on. Beside OUT are left
    OUT.recipe.yaml, which makes the winner again, OUT.search.jsonl, the log, and OUT.search.png
    where matplotlib is. With --compose the samples are adapters, and BASE is only asked for names;
    with --combine, a rank or a density, but without --compose, what was merged is OUT.adapter.
    """
    printer = Output(json=as_json, quiet=quiet)
    rule = chosen_rule(options)
    job = prepared(
        base,
        list(adapters),
        out,
        params=parse_given(params),
        rule=rule,
        given=parse_given(given),
        **options,
    )
    job.told = lambda trial, better: printer.note(trial_line(trial, job.space, better))
    with redirect_stdout(sys.stderr):  # what a function prints is no part of the result
        result = job.run()
    printer.result(result.to_json(), result_lines(result), str(out))


def trial_line(trial: Trial, space: Space, better: bool) -> str:
    """Return a sample in one line."""
    told = described(space, trial.point.to_json())
    if trial.score is None:
        return f"{trial.k:>4}  failed: {trial.reason}  ({told})"
    return f"{trial.k:>4}  {trial.score:<12.6g} {told}{'  best' if better else ''}"


def result_lines(result: SearchResult) -> Iterator[str]:
    """Yield the human summary of a finished search."""
    best = result.best
    yield f"{result.out}: {best.score:.6g}  {described(result.space, best.point.to_json())}"
    lost = f", {result.failed} failed" if result.failed else ""
    kept = f", {result.resumed} of them from the log" if result.resumed else ""
    yield f"  samples  {len(result.trials)}{lost}{kept}; the best is number {best.k}"
    if result.ended != "samples":
        yield f"  ended    by --{result.ended}"
    yield f"  recipe   {result.recipe}"
    yield f"  log      {result.log}"
    if result.plot is not None:
        yield f"  plot     {result.plot}"
    else:
        yield from text_plot(result.trials, result.minimize)
