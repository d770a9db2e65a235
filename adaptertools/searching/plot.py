"""Plots of a search: a PNG where matplotlib is, else text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any

from adaptertools.searching.log import Trial
from adaptertools.searching.space import Space

ROWS, COLUMNS = 10, 64


def best_so_far(trials: Sequence[Trial], minimize: bool) -> list[float]:
    """Return the best score up to each of the trials that have one."""
    scores = [trial.score for trial in trials if trial.score is not None]
    return list(accumulate(scores, min if minimize else max))


def text_plot(trials: Sequence[Trial], minimize: bool) -> Iterator[str]:
    """Yield a plot of the scores (·) and of the best so far (─) over the samples."""
    scored = [trial for trial in trials if trial.score is not None]
    scores = [trial.score for trial in scored if trial.score is not None]
    best = best_so_far(trials, minimize)
    low, high = min(scores), max(scores)
    last = max(trial.k for trial in trials)
    wide = min(COLUMNS, last + 1)
    rows = ROWS if high > low else 1
    grid = [[" "] * wide for _ in range(rows)]

    def row(score: float) -> int:
        return round((high - score) / (high - low) * (rows - 1)) if high > low else 0

    places = [trial.k * (wide - 1) // max(1, last) for trial in scored]
    for number, start in enumerate(places):
        stop = places[number + 1] if number + 1 < len(places) else wide
        for column in range(start, max(stop, start + 1)):
            grid[row(best[number])][column] = "─"
    for column, score in zip(places, scores, strict=True):
        line = row(score)
        grid[line][column] = "·" if grid[line][column] == " " else "•"
    labels = {0: f"{high:.6g}", rows - 1: f"{low:.6g}"}
    margin = max(map(len, labels.values()))
    for number, cells in enumerate(grid):
        yield f"  {labels.get(number, '').rjust(margin)} │{''.join(cells).rstrip()}"
    yield f"  {' ' * margin} └{'─' * wide} {last + 1} samples"


def write_png(path: Path, trials: Sequence[Trial], space: Space, minimize: bool) -> bool:
    """Write the scores over the samples and over each dimension; False without matplotlib."""
    try:
        figures: Any = import_module("matplotlib.figure")
    except ImportError:
        return False
    scored = [trial for trial in trials if trial.score is not None]
    free = space.free
    figure = figures.Figure(figsize=(3.2 * (len(free) + 1), 3.2), layout="constrained")
    axes: Any = figure.subplots(1, len(free) + 1, sharey=True, squeeze=False)[0]
    numbers = [trial.k for trial in scored]
    scores = [trial.score for trial in scored]
    axes[0].plot(numbers, scores, ".", label="sample")
    axes[0].step(numbers, best_so_far(trials, minimize), where="post", label="best so far")
    axes[0].set(xlabel="sample", ylabel="score")
    axes[0].legend()
    for axis, dimension, values in zip(axes[1:], free, _values(scored, space), strict=True):
        axis.plot(values, scores, ".")
        axis.set(xlabel=dimension.name)
    beside = path.with_name(f".{path.name}.new")
    try:
        figure.savefig(beside, format="png", metadata={"Software": None})
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return True


def _values(trials: Sequence[Trial], space: Space) -> list[list[float]]:
    columns = []
    for number, dimension in enumerate(space.weights):
        if dimension.free:
            columns.append([trial.point.weights[number] for trial in trials])
    if space.density and space.density.free:
        columns.append([trial.point.density or 0.0 for trial in trials])
    if space.rank and space.rank.free:
        columns.append([float(trial.point.rank or 0) for trial in trials])
    return columns
