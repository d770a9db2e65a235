"""Time compose and diff of two 7B-shaped adapters, against `cp -r` and PEFT's svd of one tensor.

    python compose.py --rank 16 --repeat 3

Wall times are those of whole commands, start-up and the check of what was written included.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import layout
from measure import ROOT, Run, best, run, script, table, tool
from merge import fresh, read_once

ONE_TENSOR = """
import time, torch
from adaptertools.algebra.recompress import recompress, split, truncated
m, n, r = 4096, 4096, {rank}
torch.manual_seed(0)
ups = [torch.randn(m, r, dtype=torch.float64) for _ in range(2)]
downs = [torch.randn(r, n, dtype=torch.float64) for _ in range(2)]
def ours():
    return split(truncated(recompress(ups, downs, [0.7, 0.3]), r))
def peft():
    delta = 0.7 * ups[0].float() @ downs[0].float() + 0.3 * ups[1].float() @ downs[1].float()
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    return (u[:, :r] * s[:r]) @ v[:r]
def least(f, times):
    found = []
    for _ in range(times):
        start = time.perf_counter(); f(); found.append(time.perf_counter() - start)
    return min(found)
a, b = least(ours, 5), least(peft, 1)
print(f"one tensor of 4096 x 4096: {{a * 1e3:.1f}} ms, an svd {{b:.2f}} s: {{b / a:.0f}} x")
"""


def commands(work: Path, rank: int) -> dict[str, list[object]]:
    """Return the commands to time."""
    one, two, out = work / "one", work / "two", work / "out"
    pair = (f"{one}=0.7", f"{two}=0.3")
    return {
        "cp -r": ["cp", "-r", one, out],
        "compose, exact": tool("compose", *pair, "-o", out, "-q"),
        f"compose --rank {rank}": tool("compose", *pair, "-o", out, "-q", "--rank", rank),
        "diff": tool("diff", one, one, "-q"),
    }


def main() -> int:
    """Make the adapters, run every command some times, print a table of minima."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", choices=sorted(layout.ITEM_SIZES), default="F32")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one-tensor", action="store_true", help="time one tensor against an svd")
    parser.add_argument("--work", type=Path, help="where to put the files (default: temporary)")
    options = parser.parse_args()
    if options.one_tensor:
        code = ONE_TENSOR.format(rank=options.rank)
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        run(script("make_base.py", work / "base", "--layers", options.layers, "--sparse"))
        for seed, name in enumerate(("one", "two")):
            line = ("--rank", options.rank, "--dtype", options.dtype, "--seed", seed)
            run(script("make_adapter.py", work / "base", work / name, *line))
        size = read_once(work / "one") + read_once(work / "two")
        runs: dict[str, list[Run]] = {}
        for _ in range(options.repeat):
            for name, command in commands(work, options.rank).items():
                fresh(work / "out", size)
                runs.setdefault(name, []).append(run(command))
        head = ("command", "seconds", "peak MB")
        rows = [
            (name, f"{best(found):.2f}", f"{min(one.peak for one in found) / 1e6:.0f}")
            for name, found in runs.items()
        ]
        print(f"two adapters of {size / 2e6:.0f} MB, rank {options.rank}, {options.dtype}")
        print(table(head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
