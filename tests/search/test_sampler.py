"""Samplers: what candidate k depends on, how well the cube is filled, and who finds a minimum."""

from __future__ import annotations

import math
import sys

import pytest

from adaptertools.errors import AdapterError
from adaptertools.searching.sampler import Cma, Random, Sobol, make_sampler

FREE = ("random", "sobol")


@pytest.mark.parametrize("name", FREE)
def test_candidate_depends_on_seed_and_number_only(name: str) -> None:
    one, other = (make_sampler(name, 3, 7, []) for _ in range(2))
    forwards = [one.ask(k) for k in range(6)]
    one.tell(0, 3.5)
    assert [other.ask(k) for k in (5, 0, 3)] == [forwards[k] for k in (5, 0, 3)]
    assert one.ask(6) == other.ask(6)
    assert len({tuple(point) for point in forwards}) == 6
    assert make_sampler(name, 3, 8, []).ask(0) != forwards[0]


def test_random_numbers_are_pinned() -> None:
    """The same on every machine, and not to be changed: logs hold them."""
    assert Random(2, 0).ask(0) == [0.07646652051726122, 0.7603096463009761]


@pytest.mark.parametrize("name", FREE)
def test_points_lie_in_the_cube(name: str) -> None:
    sampler = make_sampler(name, 4, 1, [])
    values = [v for k in range(64) for v in sampler.ask(k)]
    assert all(0 <= v < 1 for v in values)
    assert abs(sum(values) / len(values) - 0.5) < 0.1


def test_sobol_fills_every_sixteenth_once() -> None:
    sampler = Sobol(3, 5)
    points = [sampler.ask(k) for k in range(16)]
    for axis in range(3):
        assert sorted(math.floor(16 * point[axis]) for point in points) == list(range(16))


def minimum(seed: int, samples: int, offset: float = 0.0) -> tuple[float, list[list[float]]]:
    """Let CMA search the least of a quadratic; a third of the samples fail where offset is ∞."""
    sampler = Cma(3, seed, [[0.5] * 3, [0.9, 0.1, 0.1]])
    sampler.tell(-2, 1.0)
    sampler.tell(-1, 0.5)
    asked, losses = [], []
    for k in range(samples):
        assert sampler.ready(k)
        asked.append(sampler.ask(k))
        loss = sum((v - w) ** 2 for v, w in zip(asked[-1], (0.7, 0.2, 0.4), strict=True))
        losses.append(loss)
        sampler.tell(k, loss + (offset if k % 3 == 0 else 0.0))
    return min(losses), asked


@pytest.mark.parametrize(("offset", "near"), [(0.0, 1e-4), (math.inf, 1e-3)])
def test_cma_finds_a_minimum(offset: float, near: float) -> None:
    """Nearer than as many random points come, which is 0.01 or so."""
    pytest.importorskip("cmaes")
    assert minimum(0, 150, offset)[0] < near


def test_cma_depends_on_seed_and_scores() -> None:
    pytest.importorskip("cmaes")
    first, again, other = minimum(3, 30)[1], minimum(3, 30)[1], minimum(4, 30)[1]
    assert first == again
    assert first[0] != other[0]
    misled = minimum(3, 30, math.inf)[1]
    assert misled[:7] == first[:7]
    assert misled[7:] != first[7:]


def test_cma_waits_for_a_generation() -> None:
    pytest.importorskip("cmaes")
    sampler = Cma(2, 0, [[0.5, 0.5]])
    assert sampler.ready(-1)
    assert not sampler.ready(0)
    sampler.tell(-1, math.inf)
    assert sampler.ready(0)
    assert sampler.ready(sampler.size - 1)
    assert not sampler.ready(sampler.size)
    asked = [sampler.ask(k) for k in range(sampler.size)]
    for k, point in enumerate(asked):
        assert not sampler.ready(sampler.size)
        sampler.tell(k, sum(point))
    assert sampler.ready(sampler.size)


def test_cma_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(AdapterError, match="cmaes") as caught:
        make_sampler("cma", 2, 0, [[0.5, 0.5]])
    assert "adaptertools[search]" in caught.value.hint
    make_sampler("sobol", 2, 0, [])


@pytest.mark.parametrize(("name", "seed"), [("grid", 0), ("random", -1), ("random", 2**32)])
def test_what_is_no_sampler(name: str, seed: int) -> None:
    with pytest.raises(AdapterError) as caught:
        make_sampler(name, 2, seed, [])
    assert caught.value.code == "AT500"
