"""What is searched: names, bounds, and the candidates that come first."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptertools.errors import AdapterError
from adaptertools.searching.space import Point, make_space


@pytest.mark.parametrize(
    ("adapters", "text", "bounds"),
    [
        (["a", "b"], "", {"a": [0, 1.5], "b": [0, 1.5]}),
        (["a", "b"], "weight=0..1", {"a": [0, 1], "b": [0, 1]}),
        (["x/a", "y/b"], "a=-1..2", {"a": [-1, 2], "b": [0, 1.5]}),
        (["x/a", "y/a"], "y/a=0..2", {"x/a": [0, 1.5], "y/a": [0, 2]}),
        (["a", "b=0.4"], "", {"a": [0, 1.5], "b": [0.4, 0.4]}),
        (["a", "b=0.4"], "b=0..1", {"a": [0, 1.5], "b": [0, 1]}),
        (["a", ("b", 1.0)], " weight=0..2 , ", {"a": [0, 2], "b": [1, 1]}),
        ([Path("a")], "a=0.5,rank=4..8", {"a": [0.5, 0.5], "rank": [4, 8]}),
        (["./rank"], "density=0.2..0.9", {"rank": [0, 1.5], "density": [0.2, 0.9]}),
        (["./rank"], "./rank=0..1", {"rank": [0, 1]}),
    ],
)
def test_bounds(adapters: list, text: str, bounds: dict) -> None:
    assert make_space(adapters, text).to_json() == bounds


@pytest.mark.parametrize(
    ("adapters", "text", "told"),
    [
        (["a"], "c=0..1", "'c'"),
        (["x/a", "y/a"], "a=0..1", "'a'"),
        (["a"], "a", "NAME=LOW..HIGH"),
        (["a"], "a=1..0", "NAME=LOW..HIGH"),
        (["a"], "a=0..nan", "NAME=LOW..HIGH"),
        (["a"], "a=0..inf", "NAME=LOW..HIGH"),
        (["a"], "=0..1", "NAME=LOW..HIGH"),
        (["a"], "a=0..1,a=0..2", "twice"),
        (["a=1"], "", "nothing is left"),
        (["a"], "density=0.2..1.5", "density"),
        (["a"], "rank=0..4", "rank"),
        (["a"], "rank=1.5..4", "rank"),
    ],
)
def test_what_is_no_space(adapters: list, text: str, told: str) -> None:
    with pytest.raises(AdapterError) as caught:
        make_space(adapters, text)
    assert caught.value.code == "AT500"
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("adapters", "text", "first"),
    [
        (["a", "b", "c"], "", [(0.333333,) * 3, (1, 0, 0), (0, 1, 0), (0, 0, 1)]),
        (["a", "b=0.4", "c"], "", [(0.5, 0.4, 0.5), (1, 0.4, 0), (0, 0.4, 1)]),
        (["a"], "", [(1,)]),
        (["a", "b"], "a=0.6..2,b=0..0.7", [(0.6, 0.5), (1, 0), (0.6, 0.7)]),
    ],
)
def test_first(adapters: list, text: str, first: list) -> None:
    assert [point.weights for point in make_space(adapters, text).first()] == first


def test_first_has_the_largest_density_and_rank() -> None:
    space = make_space(["a", "b"], "rank=4..32,density=0.2..0.9")
    assert {(p.density, p.rank) for p in space.first()} == {(0.9, 32)}


def test_points_at_shares() -> None:
    space = make_space(["a", "b=0.4", "c"], "c=-1..1,rank=4..7,density=0..1")
    assert space.point([0, 0.75, 0.25, 0.5]) == Point((0, 0.4, 0.5), 0.25, 6)
    assert space.point([1 - 2**-53, 0, 0, 1 - 2**-53]) == Point((1.5, 0.4, -1), 0, 7)


def test_ranks_are_equally_likely() -> None:
    space = make_space(["a"], "rank=4..7")
    found = [space.point([0.5, (n + 0.5) / 400]).rank for n in range(400)]
    assert [found.count(rank) for rank in (4, 5, 6, 7)] == [100] * 4


def test_shares_of_a_point() -> None:
    space = make_space(["a", "b=0.4"], "rank=4..7,density=0.2..0.6")
    for point in (Point((0.7, 0.4), 0.3, 4), Point((1.5, 0.4), 0.6, 7)):
        assert space.point(space.shares(point)) == point
