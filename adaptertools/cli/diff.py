"""`adaptertools diff`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from adaptertools.check.difference import Difference, DiffReport
from adaptertools.check.differing import diff
from adaptertools.cli.options import (
    PATH,
    base_option,
    examples,
    given_option,
    output_options,
    parse_given,
    spec_option,
)
from adaptertools.cli.output import Output, grouped, table

WORDS = {"only-a": "only in A", "only-b": "only in B", "void": "changes nothing"}


@click.command(
    "diff",
    epilog=examples(
        "diff ./adapter ./other",
        "diff ./adapter adapter.gguf --base ./base",
        "diff ./base ./tuned -v",
        "diff ./adapter ./other --tol 1e-3 -q",
    ),
)
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option(
    "--tol",
    type=float,
    metavar="NUMBER",
    help="Relative difference that counts as the same; 0 asks for the same bits."
    "  [default: the rounding of what is stored]",
)
@click.option("-v", "--verbose", is_flag=True, help="List every target.")
@base_option
@given_option
@spec_option
@output_options
def command(
    a: str,
    b: str,
    tol: float | None,
    verbose: bool,
    base: Path | None,
    given: tuple[str, ...],
    specs: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare two adapters, in any two formats, or two checkpoints; exit 1 when they differ.

    Of a low-rank change ΔW the distance ‖ΔA − ΔB‖ (in units of the larger norm), the cosine, how
    far the outputs and inputs span the same directions, and the share of opposite signs are told.
    """
    out = Output(json=as_json, quiet=quiet)
    with out.progress("comparing") as progress:
        found = diff(
            a, b, base=base, tol=tol, given=parse_given(given), specs=specs, progress=progress
        )
    out.result(found.to_json(), lines(found, verbose), "same" if found.same else "different")
    if found.apart and base is None:
        out.note("they have no target in common; --base matches names by the model's own")
    if not found.same:
        sys.exit(1)


def lines(found: DiffReport, verbose: bool) -> Iterator[str]:
    """Yield the human form of a diff."""
    yield f"A  {found.a}  {found.formats[0]}"
    yield f"B  {found.b}  {found.formats[1]}"
    shown = [item for item in found.items if verbose or item.status != "identical"]
    if shown:
        header = ADAPTER_COLUMNS if found.kind == "adapters" else TENSOR_COLUMNS
        cells = adapter_cells if found.kind == "adapters" else tensor_cells
        yield from table([("  target", *header), *_rows(shown, cells, verbose)])
    yield _counts(found)
    if (total := found.total) is not None:
        yield f"  ‖ΔA‖      {total.norms[0]:.4g}"
        yield f"  ‖ΔB‖      {total.norms[1]:.4g}"
        yield f"  ‖ΔA−ΔB‖   {total.distance:.4g}, {total.relative:.3g} of the larger"
        if total.cosine is not None:
            yield f"  cosine    {total.cosine:.4f}"
    yield from _sampled(found.items)
    yield _verdict(found)


# --- the table -----------------------------------------------------------------------------------

ADAPTER_COLUMNS = ("", "kind", "", "relative", "cosine", "out / in shared", "signs", "")
TENSOR_COLUMNS = ("", "", "relative", "equal", "")


def _rows(items: Sequence[Difference], cells: object, verbose: bool) -> list[tuple[str, ...]]:
    """Return a row for each group of targets alike in every layer, or for every target."""
    assert callable(cells)
    if verbose:
        return [(f"  {item.name}", "", *cells([item])) for item in items]
    groups: dict[tuple[str, ...], list[Difference]] = {}
    for item in items:
        key = (_wild(item.name), item.kind, item.status, item.detail)
        groups.setdefault(key, []).append(item)
    made = [(item.name, *cells(group)) for group in groups.values() for item in group]
    return [(f"  {name}", *rest) for name, *rest in grouped(made)]


def _wild(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def adapter_cells(group: Sequence[Difference]) -> tuple[str, ...]:
    """Return the cells of targets of one kind and status."""
    first = group[0]
    shared = [
        _range([100 * side.share for side in sides if side is not None], "{:.0f}", "%")
        for sides in ([i.output for i in group], [i.input for i in group])
    ]
    signs = [100 * item.conflict.share for item in group if item.conflict is not None]
    return (
        first.kind,
        WORDS.get(first.status, first.status),
        _range([item.relative for item in group], "{:.2g}"),
        _range([item.cosine for item in group], "{:.3f}"),
        " / ".join(shared) if all(shared) else "",
        _range(signs, "{:.0f}", "%"),
        "" if first.status == "void" else first.detail,
    )


def tensor_cells(group: Sequence[Difference]) -> tuple[str, ...]:
    """Return the cells of tensors of one status."""
    first = group[0]
    equal = [100 * i.equal / i.elements for i in group if i.equal is not None and i.elements]
    changed = [f"{a} and {b}" for a, b in {i.dtypes for i in group} if a and b and a != b]
    if first.status == "reshaped":
        shapes = {tuple(_shape(s) for s in item.shapes) for item in group}
        changed = [f"{a} and {b}" for a, b in sorted(shapes)]
    return (
        WORDS.get(first.status, first.status),
        _range([item.relative for item in group], "{:.2g}"),
        _range(equal, "{:.1f}", "%"),
        "; ".join([*sorted(changed), *([first.detail] if first.detail else [])]),
    )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "×".join(map(str, shape or ())) or "a number"


def _range(values: Sequence[float | None], style: str, unit: str = "") -> str:
    """Return the least and the largest value, as one where they look alike."""
    found = sorted(value for value in values if value is not None)
    if not found:
        return ""
    low, high = style.format(found[0]), style.format(found[-1])
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


# --- the summary ---------------------------------------------------------------------------------


def _counts(found: DiffReport) -> str:
    what = "targets" if found.kind == "adapters" else "tensors"
    words = {"identical": "bit for bit the same", "same": "the same", "differs": "differ", **WORDS}
    told = [f"{count} {words.get(status, status)}" for status, count in found.counts.items()]
    return f"{len(found.items)} {what}: {', '.join(told)}"


def _sampled(items: Sequence[Difference]) -> Iterator[str]:
    found = [c for item in items if (c := item.conflict) is not None and c.sampled < c.rows]
    if found:
        margin = 100 * max(conflict.margin for conflict in found)
        least = min(conflict.sampled for conflict in found)
        yield f"  signs     of large targets from {least} rows or more, ±{margin:.1f}%"


def _verdict(found: DiffReport) -> str:
    worst = found.worst
    if found.identical:
        return "the same, bit for bit"
    if found.same:
        far = worst.relative if worst is not None and worst.relative else 0.0
        return f"the same, within {far:.2g}"
    return f"different{_reason(worst)}"


def _reason(worst: Difference | None) -> str:
    if worst is None or worst.status != "differs":
        return ""
    far = "is not finite" if worst.relative == float("inf") else f"is off by {worst.relative:.2g}"
    told = f": {worst.name} {far}, the tolerance is {worst.tol:.2g}"
    one, other = worst.dtypes
    return told + (f" (it is {one} in A, {other} in B)" if one != other else "")
