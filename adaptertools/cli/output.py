"""One output object: results on stdout, everything else on stderr, in words or as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

from adaptertools.errors import AdapterError, Finding, printable

_UNITS = ("B", "kB", "MB", "GB", "TB")
LINE_EVERY = 30.0
SHOWN = 3


def human_bytes(size: float) -> str:
    """Return a size in decimal units.

    >>> human_bytes(84_000_000)
    '84.0 MB'
    """
    for unit in _UNITS[:-1]:
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} {_UNITS[-1]}"


class Output:
    """Prints for one command; `json` gives one document on stdout, `quiet` only the result."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json, self.quiet = json, quiet

    def result(self, document: Any, lines: Iterable[str], *brief: str) -> None:
        """Print the result: the document with --json, `brief` with --quiet, else the lines."""
        if self.json:
            print(json.dumps(document, indent=2))
        elif self.quiet:
            for line in brief:
                print(printable(line))
        else:
            for line in lines:
                print(printable(line))

    def note(self, text: str) -> None:
        """Print a remark for people on stderr."""
        if not self.quiet and not self.json:
            print(printable(text), file=sys.stderr)

    def findings(self, findings: Iterable[Finding]) -> None:
        """Print findings as remarks on stderr."""
        for line in finding_lines(findings):
            self.note(line)

    def error(self, error: AdapterError) -> None:
        """Print an error: on stdout with --json, else on stderr in one sentence and a hint."""
        if self.json:
            print(json.dumps({"error": error.to_json()}, indent=2))
            return
        print(f"error {error.code}: {error}", file=sys.stderr)
        others = [f for f in getattr(error, "findings", ()) if f.severity == "error"][1:]
        for finding in others[:SHOWN]:
            print(f"  also {finding.id}: {finding}", file=sys.stderr)
        if len(others) > SHOWN:
            print(f"  … and {len(others) - SHOWN} more; 'validate' lists them", file=sys.stderr)
        if error.hint:
            print(f"  hint: {printable(error.hint)}", file=sys.stderr)

    @contextmanager
    def progress(self, what: str) -> Any:
        """Yield a callable (done, total): a bar on a terminal, else a line every 30 seconds."""
        if self.quiet or self.json:
            yield lambda done, total: None
        elif sys.stderr.isatty():
            with _bar(what) as update:
                yield update
        else:
            yield _lines(what)


@contextmanager
def _bar(what: str) -> Any:
    from tqdm import tqdm

    with tqdm(desc=what, unit="B", unit_scale=True, leave=False, delay=1.0) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


def _lines(what: str) -> Callable[[int, int], None]:
    last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_EVERY:
            last = now
            print(f"{what}: {human_bytes(done)} of {human_bytes(total)}", file=sys.stderr)

    return update


def finding_lines(findings: Iterable[Finding]) -> list[str]:
    """Return findings as lines, each with its next step; of many alike, a few and their number."""
    alike: dict[tuple[str, str | None], list[Finding]] = {}
    for finding in findings:
        alike.setdefault((finding.id, finding.where.file), []).append(finding)
    lines = []
    for group in alike.values():
        for finding in group[:SHOWN]:
            lines.append(f"{finding.severity:<7} {finding.id}  {finding}")
            lines += [f"        fix: {finding.hint}"] if finding.hint else []
        if len(group) > SHOWN:
            lines.append(f"        … and {len(group) - SHOWN} more {group[0].id}; --json lists all")
    return lines


def grouped(rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return rows with those alike in every layer put together; the second cell is their number.

    >>> grouped([("layers.0.up", "F32"), ("layers.1.up", "F32")])
    [('layers.*.up', '×2', 'F32')]
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, *rest in rows:
        key = (".".join("*" if part.isdigit() else part for part in name.split(".")), *rest)
        alike.setdefault(key, []).append(name)
    return [
        (names[0] if len(names) == 1 else key[0], f"×{len(names)}", *key[1:])
        for key, names in alike.items()
    ]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with padded columns."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))] if rows else []
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
