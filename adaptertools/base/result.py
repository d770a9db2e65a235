"""The result of a merge: where it is, its receipt, and what this run cost."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptertools.base.plan import MergePlan


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a merge did: where, and its receipt; `seconds` and `peak_rss` are of this run."""

    out: Path
    plan: MergePlan
    receipt: dict[str, Any]
    seconds: float
    peak_rss: int
    resumed: int = 0

    @property
    def touched(self) -> list[dict[str, Any]]:
        return list(self.receipt["tensors"].values())

    def to_json(self) -> dict[str, Any]:
        ratios = [t["delta_norm"] / t["weight_norm"] for t in self.touched if t["weight_norm"]]
        shares = [t["changed_share"] for t in self.touched if t["changed_share"] is not None]
        return {
            "out": str(self.out),
            **self.receipt["summary"],
            "delta_ratio": [min(ratios), max(ratios)] if ratios else None,
            "changed_share": [min(shares), max(shares)] if shares else None,
            "unchanged": [n for n, t in self.receipt["tensors"].items() if not t["changed"]],
            "bytes": self.plan.output_bytes,
            "seconds": round(self.seconds, 3),
            "bytes_per_second": round(self.plan.output_bytes / max(self.seconds, 1e-9)),
            "peak_rss": self.peak_rss,
            "resumed_tasks": self.resumed,
            "notes": [note.to_json() for note in self.plan.notes],
        }


def peak_rss() -> int:
    """Return the most memory this process has held, in bytes.

    Linux tells it in /proc; `getrusage` there starts from what the parent process held.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
