"""Random bits depend on the seed, the adapter's id, the tensor's name and the place: no more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptertools.algebra.randomness import Key

from .draws import examples, generator, matrix
from .golden import key_for, run

KEY = Key(5, "a.weight", ("one", "two"))


@examples(60)
@given(st.integers(0, 4000), st.integers(0, 100))
def test_a_block_is_a_slice_of_the_whole(start: int, count: int) -> None:
    whole = KEY.uniforms(0, 4100)
    got = replace(KEY, start=start).uniforms(0, count)
    assert np.array_equal(got, whole[start : start + count])


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, seed=6),
        replace(KEY, tensor="b.weight"),
        replace(KEY, adapters=("three", "two")),
        replace(KEY, start=4),
    ],
    ids=["seed", "tensor", "adapter", "place"],
)
def test_what_the_bits_depend_on(other: Key) -> None:
    assert not (KEY.uniforms(0, 64) == other.uniforms(0, 64)).any()
    assert (KEY.uniforms(0, 64) == KEY.uniforms(0, 64)).all()
    assert not (KEY.uniforms(0, 64) == KEY.uniforms(0, 64, "A")).any()


def test_another_adapter_changes_no_bit() -> None:
    alone = Key(5, "a.weight", ("two",))
    assert np.array_equal(KEY.uniforms(1, 64), alone.uniforms(0, 64))


def test_uniforms_are_uniform() -> None:
    drawn = KEY.uniforms(0, 200_000)
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = np.histogram(drawn, 20, (0, 1))[0]
    assert abs(counts - 10_000).max() < 500


@pytest.mark.parametrize(
    ("name", "params"),
    [("dare_linear", {"density": 0.3}), ("della_linear", {"density": 0.4, "epsilon": 0.25})],
)
def test_dropping_is_unbiased(name: str, params: dict[str, object]) -> None:
    """The mean over seeds is the change itself, element by element, to four standard errors."""
    change = matrix(generator(2), 4, 6)
    runs = [run(name, [change], [1.0], params, key=key_for(1, seed)) for seed in range(2000)]
    drawn = torch.stack(runs)
    error = (drawn.mean(0) - change).abs()
    assert (error <= 4.5 * drawn.std(0) / 2000**0.5).all()
    kept = (drawn != 0).double().mean()
    assert abs(float(kept) - float(str(params["density"]))) < 0.01


@pytest.mark.parametrize("way", ["l1", "l2"])
def test_a_norm_is_kept(way: str) -> None:
    change = matrix(generator(2), 9, 6)
    got = run("dare_linear", [change], [1.0], {"density": 0.4, "rescale": way})
    order = {"l1": 1, "l2": 2}[way]
    torch.testing.assert_close(
        torch.linalg.vector_norm(got, order), torch.linalg.vector_norm(change, order)
    )
    plain = run("dare_linear", [change], [1.0], {"density": 0.4, "rescale": "none"})
    assert bool((plain[plain != 0] == change[plain != 0]).all()) and not torch.equal(got, plain)


def test_a_sketch_is_of_its_tensor() -> None:
    assert np.array_equal(KEY.normals(7, 3), KEY.normals(7, 3))
    assert not (KEY.normals(7, 3) == replace(KEY, tensor="b").normals(7, 3)).any()
    turned = replace(KEY, adapters=KEY.adapters[::-1])
    assert np.array_equal(KEY.normals(7, 3), turned.normals(7, 3))
    assert KEY.normals(7, 3).dtype == np.float32
