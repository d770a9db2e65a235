"""What a search found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptertools.searching.log import Trial
from adaptertools.searching.space import Space


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The winner at `out`, and the files beside it; `plot` is None without matplotlib."""

    out: Path
    best: Trial
    trials: Sequence[Trial]
    space: Space
    minimize: bool
    recipe: Path
    log: Path
    plot: Path | None
    ended: str
    resumed: int = 0

    @property
    def failed(self) -> int:
        return sum(trial.score is None for trial in self.trials)

    def to_json(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            "best": self.best.to_json(),
            "adapters": [dimension.name for dimension in self.space.weights],
            "samples": len(self.trials),
            "failed": self.failed,
            "resumed": self.resumed,
            "minimize": self.minimize,
            "ended": self.ended,
            "recipe": str(self.recipe),
            "log": str(self.log),
            "plot": None if self.plot is None else str(self.plot),
            "trials": [trial.to_json() for trial in self.trials],
        }
