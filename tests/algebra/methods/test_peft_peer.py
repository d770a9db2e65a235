"""The peer itself: PEFT's merge functions on random factors, and its masks put in place of ours."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

from adaptertools.algebra.methods.registry import COMPAT, check_params, get_method
from adaptertools.algebra.terms import Term
from adaptertools.errors import AdapterError

from .draws import generator, matrix
from .golden import key_for, run, tensor

pytestmark = pytest.mark.peer
WEIGHTS = [0.7, -0.4, 1.3]
SCALES = [2.0, 0.5, 1.0]


def terms(seed: int, ranks: tuple[int, ...] = (3, 3, 3)) -> list[Term]:
    rng = generator(seed)
    return [
        Term(matrix(rng, 6, rank) * scale, matrix(rng, rank, 5), weight, scale)
        for weight, scale, rank in zip(WEIGHTS, SCALES, ranks, strict=True)
    ]


def peers(name: str, given: list[Term], params: dict[str, object]) -> torch.Tensor:
    """Return what PEFT's own functions make of the factors, as its LoRA model calls them."""
    merge_utils = pytest.importorskip("peft.utils.merge_utils")
    merge = getattr(merge_utils, "task_arithmetic" if name == "linear" else name)
    strengths = [t.weight * t.scale for t in given]
    signed = [(abs(c) ** 0.5) * (1 if c >= 0 else -1) for c in strengths]
    downs = merge([t.down for t in given], tensor(signed), **params)
    roots = tensor([abs(c) ** 0.5 for c in strengths])
    ups = merge([t.up / t.scale for t in given], roots, **params)
    result: torch.Tensor = ups @ downs
    return result


CASES = [
    ("linear", {}),
    ("magnitude_prune", {"density": 0.4}),
    ("magnitude_prune", {"density": 0.01}),
    ("ties", {"density": 0.6}),
    ("ties", {"density": 1.0, "majority_sign_method": "frequency"}),
]


@pytest.mark.filterwarnings("ignore:The density")
@pytest.mark.parametrize(("name", "params"), CASES)
@pytest.mark.parametrize("seed", range(5))
def test_methods_on_factors(name: str, params: dict[str, object], seed: int) -> None:
    given = terms(seed)
    got = run(name, given, params=params, compat="peft")
    torch.testing.assert_close(got, peers(name, given, params), rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings("ignore:The density")
@pytest.mark.parametrize(("name", "params"), CASES[1:])
def test_methods_on_changes(name: str, params: dict[str, object]) -> None:
    merge_utils = pytest.importorskip("peft.utils.merge_utils")
    given = terms(1)
    changes = [t.up @ t.down for t in given]
    wanted = getattr(merge_utils, name)(changes, tensor(WEIGHTS), **params)
    got = run(f"{name}_svd", given, params=params, compat="peft")
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("dense", [False, True])
def test_methods_with_masks(name: str, dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With our masks in the peer's hands, the results are the same."""
    pytest.importorskip("peft.utils.merge_utils")
    given, params, key = terms(2), {"density": 0.5}, key_for(3)
    drawn = [(i, part) for part in (("",) if dense else ("A", "B")) for i in range(3)]

    def mask(like: torch.Tensor) -> torch.Tensor:
        place, part = drawn.pop(0)
        uniforms = torch.from_numpy(key.uniforms(place, like.numel(), part))
        return (uniforms < 0.5).reshape(like.shape).to(like.dtype)

    method = f"{name}_svd" if dense else name
    got = run(method, given, params=params, compat="peft", key=key)
    monkeypatch.setattr(torch, "bernoulli", mask)
    if dense:
        from peft.utils import merge_utils

        changes = [t.up @ t.down for t in given]
        wanted = getattr(merge_utils, name)(changes, tensor(WEIGHTS), **params)
    else:
        wanted = peers(name, given, params)
    assert not drawn
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)


def test_svd_keeps_the_largest_rank() -> None:
    given = terms(3, (1, 2, 1))
    method = get_method("svd", "peft")
    up, down = method.run(given, check_params(method, {}), key_for(3))
    assert up.shape == (6, 2)
    eye = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(down @ down.T, eye)


@pytest.mark.parametrize("name", ["linear", "ties", "dare_linear", "magnitude_prune"])
def test_other_ranks_are_refused(name: str) -> None:
    with pytest.raises(AdapterError, match="equal ranks"):
        run(name, terms(3, (1, 2, 1)), compat="peft")


def test_all_that_pefts_model_takes() -> None:
    """Every combination type of add_weighted_adapter is here, and no other."""
    model = pytest.importorskip("peft.tuners.lora.model")
    text = inspect.getsource(model.LoraModel)
    named = set(re.findall(r'"(\w*(?:svd|linear|ties|prune|cat))"', text))
    assert named == COMPAT["peft"].keys()
