"""Compare layout-only conversions with `cp -r` of the adapter, in one interleaved run.

    python convert.py --rank 64 --repeat 3

The adapter is 7B-shaped with every linear; it is in the page cache before anything is timed. Wall
times are those of whole commands, start-up and the check of what was written included.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import layout
from measure import Run, best, run, script, table, tool
from merge import fresh, read_once

FORMATS = ("mlx-lora", "gguf-lora", "torchtune", "litgpt")


def commands(work: Path, formats: list[str]) -> dict[str, list[object]]:
    """Return the competing commands, all writing to the same place."""
    base, adapter, out = work / "base", work / "adapter", work / "out"
    found: dict[str, list[object]] = {"cp -r": ["cp", "-r", adapter, out]}
    for name in formats:
        line = tool("convert", adapter, "--to", name, "--base", base, "-o", out, "-q")
        found[name] = line
        found[f"{name}, no check"] = [*line, "--no-check"]
    return found


def main() -> int:
    """Make the adapter, run every command some times, print a table of minima."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--dtype", choices=sorted(layout.ITEM_SIZES), default="F32")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--formats", nargs="*", default=list(FORMATS))
    parser.add_argument("--work", type=Path, help="where to put the files (default: temporary)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        run(script("make_base.py", work / "base", "--layers", options.layers, "--sparse"))
        adapter = work / "adapter"
        line = ("--rank", options.rank, "--dtype", options.dtype)
        run(script("make_adapter.py", work / "base", adapter, *line))
        size = read_once(adapter)
        runs: dict[str, list[Run]] = {}
        for _ in range(options.repeat):
            for name, command in commands(work, options.formats).items():
                fresh(work / "out", size)
                runs.setdefault(name, []).append(run(command))
        floor = best(runs["cp -r"])
        head = ("command", "seconds", "rate of cp", "peak MB")
        rows = []
        for name, found in runs.items():
            share = f"{floor / best(found):.0%}"
            peak = f"{min(one.peak for one in found) / 1e6:.0f}"
            rows.append((name, f"{best(found):.2f}", share, peak))
        print(f"{size / 1e6:.0f} MB, rank {options.rank}, {options.dtype}")
        print(table(head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
