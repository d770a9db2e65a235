"""The spectra of `inspect --spectrum`: text bars, and a picture.

| code | condition |
|---|---|
| AT633 | a picture needs matplotlib, which is missing |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from adaptertools.check.spectrum import TargetSpectrum
from adaptertools.cli.output import table
from adaptertools.errors import AdapterError, OutputError
from adaptertools.store.place import check_place, hidden_sibling, publish

WIDTH = 32
LEGEND = "  spectrum  rank used: █ by 90 % of the energy, ▒ by 99 %, · by the rest"
PICTURES = (".png", ".svg", ".pdf")


def spectrum_lines(found: Sequence[TargetSpectrum]) -> Iterator[str]:
    """Yield a table per kind of module, with a bar per layer."""
    if not found:
        yield "  spectrum  none: the adapter has no low-rank change"
        return
    yield LEGEND
    kinds = dict.fromkeys(target.module for target in found)
    for kind in kinds:
        targets = [target for target in found if target.module == kind]
        ranks = sorted({target.rank for target in targets})
        yield f"  {kind}  rank {', '.join(map(str, ranks))}"
        head = ("    layer", "σ₁", "90 %", "99 %", "stable", "")
        yield from table([head, *(_row(target, ranks[-1]) for target in targets)])


def _row(target: TargetSpectrum, largest: int) -> tuple[str, ...]:
    where = "-" if target.layer is None else str(target.layer)
    expert = target.name.partition("[")[2]
    label = f"    {where}{f' [{expert}' if expert else ''}"
    found = target.spectrum
    if found is None:
        return (label, "", "", "", "", "holds NaN or infinity")
    if not found.values:
        return (label, "0", "0", "0", "", "changes nothing")
    k90, k99 = found.energy_rank(0.90), found.energy_rank(0.99)
    drawn = bar(k90, k99, target.rank, largest)
    return (label, f"{found.top:.3g}", str(k90), str(k99), f"{found.stable_rank:.1f}", drawn)


def bar(k90: int, k99: int, rank: int, largest: int) -> str:
    """Return a bar of the ranks used; `largest` is the rank that fills it.

    >>> bar(2, 3, 8, 8)
    '██▒·····'
    """
    width = min(WIDTH, largest)
    first, second, whole = (-(-k * width // largest) for k in (k90, k99, rank))
    return "█" * first + "▒" * (second - first) + "·" * (whole - second)


# --- the picture ---------------------------------------------------------------------------------


def check_picture(out: Path, ref: str) -> None:
    """Raise `OutputError` for a place that cannot take the picture, AT633 without matplotlib."""
    if out.suffix not in PICTURES:
        hint = f"end it in {', '.join(PICTURES)}"
        raise OutputError("AT503", "is no name of a picture", file=out, hint=hint)
    if out.exists():
        raise OutputError("AT501", "exists already", file=out, hint="give another name")
    check_place(out, [Path(ref)], is_file=None, overwrite=False)
    _figure()


def _figure() -> Any:
    try:
        figure = import_module("matplotlib.figure")
    except ImportError:
        hint = "pip install 'adaptertools[plot]'"
        raise AdapterError("AT633", "a picture needs matplotlib", hint=hint) from None
    return figure.Figure(figsize=(12, 5), layout="constrained")


def draw(found: Sequence[TargetSpectrum], out: Path, title: str) -> None:
    """Draw every spectrum, and the rank that 90 % of the energy takes, by layer and module."""
    figure = _figure()
    figure.suptitle(title)
    curves, ranks = figure.subplots(1, 2)
    kinds = list(dict.fromkeys(target.module for target in found))
    for number, kind in enumerate(kinds):
        label = kind
        for target in found:
            if target.module == kind and target.spectrum is not None and target.spectrum.values:
                values = target.spectrum.values
                steps = range(1, len(values) + 1)
                shares = [value / values[0] for value in values]
                curves.semilogy(steps, shares, color=f"C{number}", alpha=0.5, label=label)
                label = "_"
    curves.xaxis.get_major_locator().set_params(integer=True)
    curves.set(xlabel="i", ylabel="σᵢ / σ₁", title="singular values of ΔW")
    if kinds:
        curves.legend()
        _draw_ranks(ranks, found, kinds)
    hidden = hidden_sibling(out, "new")
    try:
        figure.savefig(hidden, format=out.suffix[1:])
        publish(hidden, out)
    finally:
        hidden.unlink(missing_ok=True)


def _draw_ranks(axes: Any, found: Sequence[TargetSpectrum], kinds: Sequence[str]) -> None:
    layers = sorted({-1 if t.layer is None else t.layer for t in found})
    cells = [[float("nan")] * len(layers) for _ in kinds]
    for target in found:
        if target.spectrum is not None:
            column = layers.index(-1 if target.layer is None else target.layer)
            used = target.spectrum.energy_rank(0.90) / target.rank
            cells[kinds.index(target.module)][column] = used
    image = axes.imshow(cells, aspect="auto", vmin=0, vmax=1)
    axes.set_yticks(range(len(kinds)), labels=kinds)
    axes.set_xticks(range(len(layers)), labels=["-" if n < 0 else str(n) for n in layers])
    axes.set(xlabel="layer", title="part of the rank that 90 % of the energy takes")
    axes.figure.colorbar(image, ax=axes)
