"""Dims patterns: solved from shapes, inverted by einsum, faults told with pattern and shape."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptertools.errors import FormatError, SpecError
from adaptertools.formats.registry import shipped
from adaptertools.patterns.dims import compile_dims, evaluate

NAMES = ("rank", "in", "out", "experts")


@st.composite
def patterns(draw: st.DrawFn) -> tuple[str, list[list[str]], dict[str, int]]:
    """Draw a pattern as text, as axes, and the sizes of its names; ones may stand between."""
    names = draw(st.permutations(NAMES))[: draw(st.integers(1, 4))]
    axes: list[list[str]] = []
    for name in names:
        joins = axes and len(axes[-1]) < 3 and "1" not in axes[-1] and draw(st.booleans())
        axes[-1].append(name) if joins else axes.append([name])
        if draw(st.booleans()):
            axes.append(["1"])
    text = " ".join(a[0] if len(a) == 1 else f"({' '.join(a)})" for a in axes)
    return text, axes, {name: draw(st.integers(1, 5)) for name in names}


def shape_of(axes: list[list[str]], sizes: dict[str, int]) -> tuple[int, ...]:
    """Return the stored shape."""
    return tuple(prod(1 if n == "1" else sizes[n] for n in axis) for axis in axes)


@settings(max_examples=200, deadline=None)
@given(patterns(), st.randoms())
def test_to_canonical_is_einsum(
    pattern: tuple[str, list[list[str]], dict[str, int]], random
) -> None:
    """Splitting the axes and ordering them equals numpy's own reshape and einsum."""
    text, axes, sizes = pattern
    stored = np.arange(prod(sizes.values())).reshape(shape_of(axes, sizes))
    names = [n for axis in axes for n in axis if n != "1"]
    order = random.sample(names, len(names))
    letters = {name: chr(ord("a") + k) for k, name in enumerate(names)}
    spread = stored.reshape([sizes[n] for n in names])
    told = "".join(letters[n] for n in names) + "->" + "".join(letters[n] for n in order)
    wanted = np.einsum(told, spread)
    dims = compile_dims(text)
    assert np.array_equal(dims.to_canonical(stored, order, sizes), wanted)
    got = dims.to_canonical(torch.from_numpy(stored), order, sizes)
    assert np.array_equal(got.numpy(), wanted)


@settings(max_examples=200, deadline=None)
@given(patterns())
def test_solve_finds_every_size(pattern: tuple[str, list[list[str]], dict[str, int]]) -> None:
    """Sizes are found when each axis has one unknown, given the others."""
    text, axes, sizes = pattern
    known = {n: sizes[n] for axis in axes for n in axis[1:] if n != "1"}
    dims = compile_dims(text)
    assert dims.solve(shape_of(axes, sizes), known) == sizes
    assert dims.fits(shape_of(axes, sizes), sizes)
    wrong = list(shape_of(axes, sizes))
    wrong[-1] += 1
    assert not dims.fits(wrong, sizes)
    assert not dims.fits([*shape_of(axes, sizes), 1], sizes)


@pytest.mark.parametrize(
    ("text", "shape", "known", "told"),
    [
        ("out rank", (3,), {}, "it needs 2 dimensions"),
        ("out rank *1", (3,), {}, "it needs 2 or more dimensions"),
        ("out 1", (3, 2), {}, "axis 1 of size 2"),
        ("out rank *1", (3, 2, 1, 2), {}, "the trailing axes must be 1"),
        ("(experts rank) in", (7, 5), {"experts": 2}, "experts=2"),
        ("(experts rank) in", (8, 5), {}, "(experts rank) of size 8"),
        ("out in", (4, 5), {"in": 6}, "in=6"),
    ],
)
def test_a_misfit_is_told(text: str, shape: tuple[int, ...], known: dict, told: str) -> None:
    """AT220 re-tells the pattern, the shape and the axis at odds."""
    with pytest.raises(FormatError) as caught:
        compile_dims(text).solve(shape, known)
    assert caught.value.code == "AT220"
    for part in (told, f"'{text}'", str(list(shape))):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("(a b", "a)", "()", "a (b (c))", "*k a", "a *k *1", "a a", "(a b) b", "a-b", "[q:a"),
        *("[q:(a]", "a:", "[(a b)]", "a *2", "{a}", "a,b"),
    ],
)
def test_malformed_dims_are_rejected(text: str) -> None:
    """AT293 re-tells the pattern."""
    with pytest.raises(SpecError) as caught:
        compile_dims(text)
    assert caught.value.code == "AT293"
    assert repr(text) in str(caught.value)


def test_kernel_axes_stay_behind() -> None:
    """`*k` keeps any number of kernel axes as they are, `*1` drops ones."""
    stored = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    dims = compile_dims("rank in *k")
    assert dims.solve(stored.shape) == {"rank": 2, "in": 3, "k": 20}
    got = dims.to_canonical(stored, ("in", "rank"), {"rank": 2, "in": 3})
    assert np.array_equal(got, stored.transpose(1, 0, 2, 3))
    assert compile_dims("out rank *1").solve((3, 2, 1, 1, 1)) == {"out": 3, "rank": 2}
    assert compile_dims("out rank *1").solve((3, 2)) == {"out": 3, "rank": 2}


def test_the_stored_form_inverts_the_canonical_one() -> None:
    """`to_stored` after `to_canonical` is the tensor itself, ones and products included."""
    sizes = {"experts": 3, "rank": 2, "in": 5}
    for text, shape in (("(experts rank) in", (6, 5)), ("in (rank experts)", (5, 6))):
        stored, axes = np.arange(30).reshape(shape), ("experts", "rank", "in")
        dims = compile_dims(text)
        canonical = dims.to_canonical(stored, axes, sizes)
        assert np.array_equal(dims.to_stored(canonical, axes, sizes), stored)
    flat = compile_dims("1 out 1").to_stored(np.arange(4), ("out",), {"out": 4})
    assert flat.shape == (1, 4, 1)


def test_shipped_dims_tell_themselves() -> None:
    """Every shipped pattern compiles to axes that print as the pattern."""
    for spec in shipped():
        for _, _, role in spec.roles():
            for dims in role.dims:
                told = " ".join(map(str, dims.axes)) + (f" *{dims.tail}" if dims.tail else "")
                assert told == dims.text


@pytest.mark.parametrize(
    ("text", "values", "wanted"),
    [
        ("hidden", {"hidden": 64}, 64),
        ("hidden/heads", {"hidden": 64, "heads": 8}, 8),
        ("2*inter", {"inter": 5}, 10),
        ("heads*dim/2", {"heads": 3, "dim": 4}, 6),
        ("text.hidden * 2", {"text.hidden": 3}, 6),
        ("hidden/heads", {"hidden": 64}, None),
        ("hidden if grouped", {"hidden": 64, "grouped": True}, 64),
        ("hidden if grouped", {"hidden": 64, "grouped": False}, None),
        ("hidden if not grouped", {"hidden": 64, "grouped": False}, 64),
        ("hidden if not grouped", {"hidden": 64, "grouped": True}, None),
        ("hidden", {"hidden": None}, None),
        ("hidden", {"hidden": "64"}, None),
        ("hidden", {"hidden": 64.0}, None),
        ("hidden", {"hidden": True}, None),
        ("hidden", {"hidden": 0}, None),
        ("hidden", {"hidden": -2}, None),
        ("hidden/heads", {"hidden": 64, "heads": 0}, None),
    ],
)
def test_evaluate(text: str, values: dict, wanted: int | None) -> None:
    """A size is a product of positive integers, or unknown."""
    assert evaluate(text, values) == wanted


@pytest.mark.parametrize(
    "text",
    ["", "a+b", "a b", "2a", "*", "a*", "*a", "/a", "(a)", "a**b", "a-1", "__import__('os')"],
)
def test_evaluate_runs_no_code(text: str) -> None:
    """Anything but names and numbers joined by * or / is AT293."""
    with pytest.raises(SpecError) as caught:
        evaluate(text, {"a": 1, "b": 1})
    assert caught.value.code == "AT293"
