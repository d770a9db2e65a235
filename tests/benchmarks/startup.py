"""Median wall time of the commands that must feel immediate, and of an empty Python.

python startup.py --repeat 10
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import layout
from measure import best, middle, run, script, table, tool


def prepare(work: Path) -> None:
    """Make sparse 70B-shaped bases of 15 and 30 shards and a rank 16 adapter."""
    llama = [*layout.flags(layout.LLAMA_70B), "--sparse"]
    for shards in (15, 30):
        run(script("make_base.py", work / f"base-{shards}", *llama, "--shards", shards))
    run(script("make_adapter.py", work / "base-15", work / "adapter", "--sparse"))


def commands(work: Path) -> dict[str, list[object]]:
    """Return what is timed, by the name it has in the table."""
    base, adapter = work / "base-15", work / "adapter"
    dry = tool("merge", base, adapter, "-o", work / "out", "--dry-run")
    return {
        "`python -c pass`": [sys.executable, "-c", "pass"],
        "`--help`": tool("--help"),
        "`inspect` an adapter of 1120 tensors": tool("inspect", adapter),
        "`inspect` a 70B base in 30 shards": tool("inspect", work / "base-30"),
        "`merge --dry-run` a 70B base in 15 shards": dry,
    }


def main() -> int:
    """Time every command and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--dir", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="adaptertools-bench-", dir=options.dir) as work:
        prepare(Path(work))
        rows = []
        for name, command in commands(Path(work)).items():
            run(command)
            runs = [run(command) for _ in range(options.repeat)]
            peak = f"{max(one.peak for one in runs) / 2**20:.0f}"
            rows.append([name, f"{middle(runs) * 1000:.0f}", f"{best(runs) * 1000:.0f}", peak])
    print(table(["", "median ms", "min ms", "peak MiB"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
