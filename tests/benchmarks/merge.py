"""Compare one merge with `cp -r` of the same base (and with PEFT), in one interleaved run.

    python merge.py --size 3.8 --repeat 3 --peft

The base is in the page cache before anything is timed, and every run writes to a fresh place on
the same disk. Between runs, untimed, what is dirty is written back and as much memory as the
output takes is touched and freed: a virtual machine's free memory costs several times as much to
use for the first time, whoever uses it.
Wall times are those of whole commands, start-up of Python and torch included.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import layout
from measure import Run, best, middle, run, script, table, tool

PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""


def read_once(directory: Path) -> int:
    """Read every file of a directory, to have it in the page cache, and return its size."""
    size = 0
    for path in sorted(directory.iterdir()):
        with path.open("rb", buffering=0) as file:
            buffer = bytearray(1 << 20)
            while count := file.readinto(buffer):
                size += count
    return size


def fresh(out: Path, size: int) -> None:
    """Remove an earlier result, write back what is dirty and touch memory for the next."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    spare = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") - 2 * 10**9
    run([sys.executable, "-c", f"b'x' * {max(1, min(int(1.1 * size), spare))}"])


def commands(work: Path, options: argparse.Namespace) -> dict[str, list[object]]:
    """Return the competing commands, all writing to the same place."""
    base, adapter, out = work / "base", work / "adapter", work / "out"
    ours = tool("merge", base, adapter, "-o", out, "-q", *options.option)
    found: dict[str, list[object]] = {"cp -r": ["cp", "-r", base, out], "adaptertools": ours}
    if options.peft:
        found["PEFT"] = [sys.executable, "-c", PEFT, base, adapter, out]
    return found


def compete(work: Path, size: int, options: argparse.Namespace) -> dict[str, list[Run]]:
    """Run every command in turn, `--repeat` times."""
    found = commands(work, options)
    runs: dict[str, list[Run]] = {name: [] for name in found}
    for _ in range(options.repeat):
        for name, command in found.items():
            fresh(work / "out", size)
            runs[name].append(run(command))
    return runs


def report(runs: dict[str, list[Run]], size: int, torch_peak: int) -> str:
    """Return the markdown table of times, ratios to `cp -r` and memory."""
    copy = runs["cp -r"]
    rows = []
    for name, group in runs.items():
        peak = max(run.peak for run in group)
        beyond = "–" if name == "cp -r" else f"{(peak - torch_peak) / 2**20:.0f}"
        ratios = [f"{best(group) / best(copy):.2f}", f"{middle(group) / middle(copy):.2f}"]
        times = [f"{best(group):.2f}", f"{middle(group):.2f}", f"{size / 1e9 / best(group):.2f}"]
        times.append(f"{min(run.cpu for run in group):.2f}")
        rows.append([name, *times, *ratios, f"{peak / 2**20:.0f}", beyond])
    head = [
        "",
        "min s",
        "median s",
        "GB/s",
        "CPU s",
        "× cp (min)",
        "× cp (median)",
        "peak MiB",
        "− torch",
    ]
    return table(head, rows)


def prepare(work: Path, options: argparse.Namespace) -> int:
    """Make base and adapter under `work` and return the size of the base on disk."""
    llama = layout.SIZES[options.size]
    run(script("make_base.py", work / "base", *layout.flags(llama), "--shards", options.shards))
    adapter = [work / "base", work / "adapter", "--rank", options.rank]
    run(script("make_adapter.py", *adapter, "--dtype", options.adapter_dtype))
    return read_once(work / "base")


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=layout.SIZES, default="3.8", help="GB of the base")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--adapter-dtype", choices=("F32", "BF16"), default="F32")
    parser.add_argument("--peft", action="store_true", help="time PEFT too")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("option", nargs="*", help="after --: more options of merge")
    return parser.parse_args()


def main() -> int:
    """Check the disk, make the inputs, compete, print, clean up."""
    options = parse()
    need = 2.2e9 * float(options.size) + 1e9
    free = shutil.disk_usage(options.dir).free
    if free < need:
        sys.exit(f"{options.dir}: {need / 1e9:.0f} GB needed, {free / 1e9:.0f} GB free")
    work = Path(tempfile.mkdtemp(prefix="adaptertools-bench-", dir=options.dir))
    try:
        size = prepare(work, options)
        torch_peak = run([sys.executable, "-c", "import torch"]).peak
        runs = compete(work, size, options)
        what = f"base {size / 1e9:.2f} GB, LoRA rank {options.rank} {options.adapter_dtype}"
        print(f"{what}, {options.repeat} runs, {os.cpu_count()} cores")
        print(f"`import torch` alone: {torch_peak / 2**20:.0f} MiB\n")
        print(report(runs, size, torch_peak))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
