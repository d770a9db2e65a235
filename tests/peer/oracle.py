"""What PEFT computes, in fp64, and how near to it a stored tensor must be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import peft
import torch
from torch import nn

# significant bits and least exponent of each storage type
FORMATS = {
    torch.bfloat16: (8, -126),
    torch.float16: (11, -14),
    torch.float32: (24, -126),
}
INTEGERS = {2: torch.int16, 4: torch.int32}
# an element whose terms cancel this far holds mostly their rounding errors
CANCELLED = 2.0**-8
CANCELLED_ERROR = 2.0**-14


def load_adapter(model: nn.Module, adapter: Path, weight: float = 1.0) -> peft.PeftModel:
    """Put an adapter on an fp64 model with PEFT, and make sure that nothing narrower remains."""
    wrapped = peft.PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
    wrapped.double().eval()
    narrow = [name for name, p in wrapped.named_parameters() if p.dtype != torch.float64]
    assert not narrow, f"not fp64: {narrow}"
    if weight != 1:
        scale_adapter(wrapped, weight)
    return wrapped


def scale_adapter(wrapped: peft.PeftModel, weight: float) -> None:
    scaled = [m for m in wrapped.modules() if isinstance(getattr(m, "scaling", None), dict)]
    assert scaled, "this adapter has no scale to weigh"
    for module in scaled:
        module.scaling["default"] *= weight


def merge(model: nn.Module, adapters: Iterable[tuple[Path, float]]) -> nn.Module:
    """PEFT's own merge of each adapter in turn, never leaving fp64."""
    for adapter, weight in adapters:
        model = load_adapter(model, adapter, weight).merge_and_unload()
    return model


def round_once(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round fp64 to nearest even in one step (torch's own cast goes through fp32)."""
    if dtype == torch.float64:
        return exact
    bits, least = FORMATS[dtype]
    values = exact.contiguous().numpy()
    exponent = np.maximum(np.frexp(values)[1] - 1, least)
    step = np.ldexp(1.0, exponent - (bits - 1))
    rounded = torch.from_numpy(np.rint(values / step) * step)
    return rounded.to(torch.float32).to(dtype)


def ulps(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Count the representable values between two tensors of one dtype, element by element."""

    def ordered(tensor: torch.Tensor) -> torch.Tensor:
        integer = INTEGERS[tensor.element_size()]
        bits = tensor.contiguous().view(integer).to(torch.int64)
        return torch.where(bits < 0, torch.iinfo(integer).min - bits, bits)

    return (ordered(left) - ordered(right)).abs()


def same_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(left.flatten().view(torch.uint8), right.flatten().view(torch.uint8))


def check_touched(
    name: str, got: torch.Tensor, exact: torch.Tensor, before: torch.Tensor | None
) -> int:
    """Assert that a merged tensor is the fp64 one rounded once; return how many elements differ."""
    assert got.shape == exact.shape, f"{name}: shape {got.shape}, PEFT has {exact.shape}"
    wanted = round_once(exact, got.dtype)
    assert torch.isfinite(got).all(), f"{name}: not finite"
    start = exact if before is None or before.shape != exact.shape else before.double()
    terms = start.abs() + (exact - start).abs()
    cancelled = exact.abs() <= CANCELLED * terms
    steps = ulps(got, wanted)
    worst = int(steps[~cancelled].max()) if (~cancelled).any() else 0
    different = int((steps > 0).sum())
    assert worst <= 1, f"{name}: {worst} ulps away; {different} of {steps.numel()} differ"
    error = (got.double() - wanted.double()).abs()[cancelled]
    assert (error <= CANCELLED_ERROR * terms[cancelled]).all(), f"{name}: wrong after cancelling"
    return different


def check_checkpoint(
    got: dict[str, torch.Tensor],
    base: dict[str, torch.Tensor],
    exact: dict[str, torch.Tensor],
    rename: Callable[[str], str] | None = None,
    base_only: str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Assert that a checkpoint holds PEFT's merge in `dtype`, and all else byte for byte."""
    exact = {(rename or str)(name): tensor for name, tensor in exact.items()}
    kept = {name for name in base if base_only and re.fullmatch(base_only, name)}
    assert set(got) == set(exact) | kept
    elements = different = 0
    for name, tensor in got.items():
        before = base.get(name)
        wanted = exact.get(name)
        if wanted is None or (before is not None and torch.equal(before.double(), wanted)):
            kept_as = before if dtype is None else round_once(before.double(), dtype)
            assert same_bytes(tensor, kept_as), f"{name}: PEFT leaves it as it is"
            continue
        stored = dtype or (tensor.dtype if before is None else before.dtype)
        assert tensor.dtype == stored, f"{name}: stored as {tensor.dtype}, not {stored}"
        elements += tensor.numel()
        different += check_touched(name, tensor, wanted, before)
    assert elements, "PEFT's merge changes nothing: this adapter tests nothing"
    assert different <= max(1, 0.001 * elements), f"{different} of {elements} elements differ"
