"""`adaptertools formats`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from adaptertools.cli.options import examples, output_options, spec_option
from adaptertools.cli.output import Output, table
from adaptertools.formats.registry import all_formats, get_format
from adaptertools.formats.spec import FormatSpec


@click.command("formats", epilog=examples("formats", "formats peft-lora"))
@click.argument("name", required=False)
@spec_option
@output_options
def command(name: str | None, specs: tuple[Path, ...], as_json: bool, quiet: bool) -> None:
    """List the supported formats with what each can hold, or show one spec."""
    out = Output(json=as_json, quiet=quiet)
    if name is not None:
        spec = get_format(name, specs)
        out.result(document(spec), spec_lines(spec), spec.id)
        return
    known = all_formats(specs)
    out.result([document(s) for s in known], table(overview(known)), *(s.id for s in known))


COLUMNS = ("dora", "bias", "embeddings", "conv", "full_tensors")


def overview(known: Iterable[FormatSpec]) -> list[tuple[str, ...]]:
    """Return the table of formats: what each is, and what it can hold."""
    rows: list[tuple[str, ...]] = [("format", "use", "ranks", "scales", "also holds", "what")]
    for spec in known:
        limits = spec.limits
        low_rank = any(update.kind == "low_rank" for update in spec.updates)
        also = ", ".join(name.replace("_", " ") for name in COLUMNS if limits.get(name))
        rows.append(
            (
                spec.id,
                "read, write" if spec.write else "read",
                ("any" if limits.get("rank_per_module") else "one") if low_rank else "-",
                ("any" if limits.get("alpha_per_module") else "one") if low_rank else "-",
                also or "-",
                spec.title,
            )
        )
    return rows


def document(spec: FormatSpec) -> dict[str, Any]:
    """Return a spec as JSON-ready facts."""
    return {
        "id": spec.id,
        "title": spec.title,
        "method": spec.method,
        "files": list(spec.weights),
        "config": spec.config,
        "writes": spec.write.get("file"),
        "limits": dict(spec.limits),
        "tensors": [
            {
                "update": update.kind,
                "role": role.name,
                "keys": [template.text for template in role.templates],
                "dims": [dims.text for dims in role.dims],
            }
            for _, update, role in spec.roles()
        ],
        "refuses": {refusal.field: refusal.why for refusal in spec.refusals},
        "source": spec.source,
    }


def spec_lines(spec: FormatSpec) -> Iterator[str]:
    """Yield the human form of a spec."""
    yield f"{spec.id}: {spec.title}"
    yield f"  files    {', '.join(spec.weights)}" + (f" with {spec.config}" if spec.config else "")
    yield "  tensors"
    rows = [
        (
            f"    {update.kind}",
            role.name,
            role.templates[0].text,
            " | ".join(d.text for d in role.dims),
        )
        for _, update, role in spec.roles()
    ]
    yield from table(rows)
    held = [name for name, value in spec.limits.items() if value is True]
    yield f"  holds    {', '.join(held) or 'one rank and one scale for all modules'}"
    if modules := spec.limits.get("modules"):
        yield f"  modules  {', '.join(modules)}"
    if spec.write:
        beside = (
            ""
            if spec.write.get("inside")
            else "".join(f", {n}" for n in spec.write.get("files", {}))
        )
        yield f"  written  {spec.write['file']}{beside}"
    for refusal in spec.refusals:
        yield f"  refuses  {refusal.field}: {refusal.why}"
