"""The judge itself is sharp: one rounding is one rounding, and near is not near enough."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("peft", reason="the peer library peft is not installed")

import torch

from . import oracle

pytestmark = pytest.mark.peer


def weights(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A stored tensor and what an fp64 merge makes of it."""
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(64, 48, generator=generator).to(dtype)
    delta = torch.randn(64, 48, generator=generator, dtype=torch.float64) * 0.1
    return base, base.double() + delta


@pytest.mark.parametrize("dtype", oracle.FORMATS)
def test_a_tie_is_decided_by_the_last_bit_of_fp64(dtype: torch.dtype) -> None:
    bits, _ = oracle.FORMATS[dtype]
    half = 2.0**-bits
    above = torch.tensor([1 + half + 2.0**-50], dtype=torch.float64)
    below = torch.tensor([1 + half - 2.0**-50], dtype=torch.float64)
    assert oracle.round_once(above, dtype).item() == 1 + 2 * half
    assert oracle.round_once(below, dtype).item() == 1


@pytest.mark.parametrize("dtype", oracle.FORMATS)
def test_every_stored_value_rounds_to_itself(dtype: torch.dtype) -> None:
    smallest = torch.finfo(dtype).smallest_normal
    values = torch.tensor([0.0, smallest, -smallest, smallest / 2, torch.finfo(dtype).max, -3.5])
    stored = values.to(dtype)
    assert oracle.same_bytes(oracle.round_once(stored.double(), dtype), stored)


def test_ulps_count_across_zero_and_binades() -> None:
    tiny = torch.finfo(torch.bfloat16).smallest_normal / 2**7
    left = torch.tensor([tiny, 1.0, 2.0, -0.0], dtype=torch.bfloat16)
    right = torch.tensor([-tiny, 1 - 2.0**-8, 2 + 2.0**-5, 0.0], dtype=torch.bfloat16)
    assert oracle.ulps(left, right).tolist() == [2, 1, 2, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fp32_arithmetic_passes_and_two_roundings_do_not(dtype: torch.dtype) -> None:
    base, exact = weights(dtype)
    delta = (exact - base.double()).float()
    once = (base.float() + delta).to(dtype)
    twice = base + delta.to(dtype)
    oracle.check_checkpoint({"w": once}, {"w": base}, {"w": exact})
    with pytest.raises(AssertionError, match="differ"):
        oracle.check_checkpoint({"w": twice}, {"w": base}, {"w": exact})


def test_an_untouched_tensor_must_keep_its_bytes() -> None:
    base, exact = weights(torch.float32)
    norm = torch.tensor([0.0, 1.0])
    got = {"w": oracle.round_once(exact, torch.float32), "n": torch.tensor([-0.0, 1.0])}
    with pytest.raises(AssertionError, match="leaves it as it is"):
        oracle.check_checkpoint(got, {"w": base, "n": norm}, {"w": exact, "n": norm.double()})


def test_a_forgotten_adapter_is_found() -> None:
    base, exact = weights(torch.bfloat16)
    with pytest.raises(AssertionError, match="ulps away"):
        oracle.check_checkpoint({"w": base}, {"w": base}, {"w": exact})
