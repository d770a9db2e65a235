"""The plot in text: where the samples and the best of them are."""

from __future__ import annotations

from adaptertools.searching.log import Trial
from adaptertools.searching.plot import ROWS, best_so_far, text_plot
from adaptertools.searching.space import Point

SCORES = [1.0, None, 3.0, 2.0, 5.0]
TRIALS = [Trial(k, Point((0.5,)), score, 0.1) for k, score in enumerate(SCORES)]


def test_best_so_far() -> None:
    assert best_so_far(TRIALS, minimize=False) == [1, 3, 3, 5]
    assert best_so_far(TRIALS, minimize=True) == [1, 1, 1, 1]


def test_text_plot() -> None:
    lines = list(text_plot(TRIALS, minimize=False))
    assert lines[0] == "  5 │    •"
    assert lines[4] == "    │  •─"
    assert lines[7] == "    │   ·"
    assert lines[9] == "  1 │•─"
    assert lines[10] == "    └───── 5 samples"
    assert len(lines) == ROWS + 1
    assert list(text_plot(TRIALS, minimize=True))[9] == "  1 │•────"


def test_text_plot_of_one_score() -> None:
    assert list(text_plot(TRIALS[:1], minimize=False)) == ["  1 │•", "    └─ 1 samples"]


def test_text_plot_of_many() -> None:
    many = [Trial(k, Point((0.5,)), float(k), 0.1) for k in range(1000)]
    lines = list(text_plot(many, minimize=False))
    assert max(map(len, lines)) <= 90
    assert len(lines) == ROWS + 1
