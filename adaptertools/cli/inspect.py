"""`adaptertools inspect`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from adaptertools.check.inspecting import AdapterInfo, BaseInfo, inspect
from adaptertools.cli.options import (
    PATH,
    base_option,
    examples,
    given_option,
    output_options,
    parse_given,
    spec_option,
)
from adaptertools.cli.output import Output, finding_lines, human_bytes, table


@click.command(
    "inspect",
    epilog=examples(
        "inspect ./adapter",
        "inspect ./base",
        "inspect ./adapter --json",
        "inspect ./adapter --spectrum --plot ranks.png",
    ),
)
@click.argument("ref", type=PATH)
@click.option("-v", "--verbose", is_flag=True, help="List every target.")
@click.option("--spectrum", is_flag=True, help="Show how much of its rank each target uses.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE.png",
    help="Draw the spectra too (needs matplotlib, the extra 'plot').",
)
@base_option
@given_option
@spec_option
@output_options
def command(
    ref: str,
    verbose: bool,
    spectrum: bool,
    plot: Path | None,
    base: Path | None,
    given: tuple[str, ...],
    specs: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Say what an adapter or a checkpoint is: format and evidence, method, targets, ranks, size.

    Only headers are read, but for --spectrum.
    """
    out = Output(json=as_json, quiet=quiet)
    info = inspect(ref, base=base, specs=specs, given=parse_given(given))
    if isinstance(info, BaseInfo):
        if spectrum or plot is not None:
            raise click.UsageError("--spectrum is for adapters; this is a base checkpoint")
        out.result(
            info.to_json(), base_lines(info), info.base.family.id if info.base.family else "base"
        )
        return
    document, lines = info.to_json(), list(adapter_lines(info, verbose))
    if (spectrum or plot is not None) and not info.adapter.errors:
        facts, more = _spectrum(info, ref, plot)
        document |= facts
        lines += more
    out.result(document, lines, info.adapter.format)
    if info.adapter.errors:
        sys.exit(1)


def _spectrum(info: AdapterInfo, ref: str, plot: Path | None) -> tuple[dict[str, Any], list[str]]:
    """Return what is told of the spectra, in JSON and in words; draw them at `plot`."""
    from adaptertools.check.spectrum import spectrum
    from adaptertools.cli.spectrum import check_picture, draw, spectrum_lines

    if plot is not None:
        check_picture(plot, ref)
    found = spectrum(info.adapter)
    if plot is not None:
        draw(found, plot, info.adapter.path)
    return {"spectrum": [target.to_json() for target in found]}, list(spectrum_lines(found))


def adapter_lines(info: AdapterInfo, verbose: bool) -> Iterator[str]:
    """Yield the human form of an adapter."""
    adapter = info.adapter
    yield f"{adapter.path}  {adapter.format}"
    yield f"  evidence  {'; '.join(adapter.evidence)}"
    yield f"  base      {adapter.base_model or 'not named'}"
    yield f"  targets   {len(info.targets)}: {_modules(info)}"
    if info.ranks:
        ranks = ", ".join(f"{rank} (×{count})" for rank, count in info.ranks.items())
        yield f"  rank      {next(iter(info.ranks)) if len(info.ranks) == 1 else ranks}"
        alphas = ", ".join(f"{alpha:g}" for alpha in info.alphas)
        yield f"  scale     {', '.join(f'{scale:.6g}' for scale in info.scales)}  (alpha {alphas})"
    dtypes = ", ".join(f"{name} ×{count}" for name, count in info.dtypes.items())
    yield f"  tensors   {adapter.keys}: {dtypes}, {human_bytes(info.bytes)}"
    if verbose:
        yield from _target_table(info)
    yield from finding_lines(adapter.findings)


def _modules(info: AdapterInfo) -> str:
    counts = Counter(
        target.name.removesuffix(".weight").rsplit(".", 1)[-1] for target in info.targets
    )
    return ", ".join(f"{name} ×{count}" for name, count in counts.items())


def _target_table(info: AdapterInfo) -> list[str]:
    rows = [("  target", "kind", "rank", "scale", "shape")]
    for target in info.targets:
        rank = "" if target.rank is None else str(target.rank)
        scale = "" if target.scale is None else f"{target.scale:.6g}"
        shape = "×".join(map(str, target.shape))
        rows.append((f"  {target.name}", target.kind, rank, scale, shape))
    return table(rows)


def base_lines(info: BaseInfo) -> Iterator[str]:
    """Yield the human form of a base checkpoint."""
    base = info.base
    family = base.family.title if base.family else base.config.get("model_type") or "unknown family"
    yield f"{base.root}  base checkpoint, {family}"
    if base.layout.kept:
        sliced = ", each file a slice of every tensor" if len(base.ranks) > 1 else ""
        yield f"  layout      {base.layout.title}{sliced}"
    yield f"  tensors     {len(base.slots)} in {len(base.shards)} file(s)"
    yield f"  parameters  {info.parameters:,}"
    dtypes = ", ".join(f"{name} ×{count}" for name, count in info.dtypes.items())
    yield f"  dtype       {dtypes}, {human_bytes(info.bytes)}"
    yield from finding_lines(info.findings)
