"""`adaptertools run`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from adaptertools.cli.options import examples, output_options, parse_given
from adaptertools.cli.output import Output, human_bytes
from adaptertools.recipes.recipe import read_recipe
from adaptertools.recipes.running import Kitchen, StepResult


@click.command(
    "run", epilog=examples("run recipe.yaml", "run recipe.yaml --set strength=0.7 --dry-run")
)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The last step's OUT.")
@click.option("--set", "given", multiple=True, metavar="NAME=VALUE", help="A variable; repeatable.")
@click.option("--dry-run", is_flag=True, help="Plan and print every step; write nothing.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Threads (default: the cores).")
@click.option("--overwrite", is_flag=True, help="Replace what stands at an OUT.")
@output_options
def command(
    recipe: Path,
    out: Path | None,
    given: tuple[str, ...],
    dry_run: bool,
    jobs: int | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run the steps of a recipe (YAML or JSON), or those of a merge's receipt again.

    Relative paths begin at the recipe's folder; what compose and merge leave beside their results
    has absolute ones.
    """
    printer = Output(json=as_json, quiet=quiet)
    read = read_recipe(recipe, parse_given(given))
    with printer.progress("running") as progress:
        kitchen = Kitchen(read.folder, out, overwrite, dry_run, jobs or 0, progress)
        done = kitchen.cook(read)
    document = {"recipe": str(recipe), "steps": [step.to_json() for step in done]}
    printer.result(document, step_lines(done), done[-1].out)


def step_lines(steps: list[StepResult]) -> Iterator[str]:
    """Yield a line for every step."""
    for number, step in enumerate(steps, 1):
        size = step.facts.get("bytes") or step.facts.get("output_bytes") or 0
        what = f"{step.facts.get('targets', '?')} targets, {human_bytes(size)}"
        if step.waits:
            what = f"after the step that makes {step.waits}"
        would = "would write " if step.planned else ""
        yield f"{number}. {step.verb:<8} {would}{step.out}: {what}"
