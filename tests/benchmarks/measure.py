"""Time and peak memory of child processes; standard library only (see layout.py)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Run:
    """One child: wall and processor seconds, and its resident memory's high-water mark (bytes)."""

    seconds: float
    cpu: float
    peak: int


def run(command: Sequence[object]) -> Run:
    """Run a child to its end; its output is shown only if it fails."""
    start = time.perf_counter()
    child = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stdout.close()
    if child.returncode:
        sys.exit(f"{command}\nended with {child.returncode}:\n{output.decode(errors='replace')}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def tool(*arguments: object) -> list[object]:
    """Return the command line of the tool."""
    return [sys.executable, "-m", "adaptertools", *arguments]


def script(name: str, *arguments: object) -> list[object]:
    """Return the command line of a script beside this one."""
    return [sys.executable, HERE / name, *arguments]


def best(runs: Sequence[Run]) -> float:
    """Return the shortest time."""
    return min(run.seconds for run in runs)


def middle(runs: Sequence[Run]) -> float:
    """Return the median time."""
    return median(run.seconds for run in runs)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a markdown table."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
