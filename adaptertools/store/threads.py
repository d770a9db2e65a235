"""How many threads are worth starting."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Return the cores this process may use, at most 16: past that the disk is the limit."""
    return min(16, len(os.sched_getaffinity(0)))
