"""Judging one tensor of a merge made by any tool, against what the merge should have made."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from adaptertools.algebra.blocks import blocks
from adaptertools.base.compute import QUANTISERS, BlockReader, Program, as_stored, load_program
from adaptertools.base.plan import TensorPlan
from adaptertools.base.verify import Verdict
from adaptertools.store.dtypes import dtype_of
from adaptertools.store.read import read_tensor, same_bytes
from adaptertools.store.slot import Slot

ENOUGH = 0.999


@dataclass(slots=True)
class Tallies:
    """Counts over a whole tensor: elements equal to each candidate, and the fit of a strength."""

    elements: int = 0
    exact: int = 0
    twice: int = 0
    base: int = 0
    silent: int = 0
    ulps: int = 0
    ulps_twice: int = 0
    across: float = 0.0
    square: float = 0.0


def judge_one(tensor: TensorPlan, made: Slot | None, compute_word: str) -> Verdict:
    """Return the verdict on one planned tensor, given what OUT holds under its name."""
    torch.set_num_threads(1)
    if made is None:
        return Verdict(tensor.name, "missing", detail="the merge writes it, OUT lacks it")
    if made.shape != tensor.shape:
        detail = f"shape {list(made.shape)}, the merge gives {list(tensor.shape)}"
        return Verdict(tensor.name, "changed", detail=detail)
    if not tensor.steps:
        return judge_untouched(tensor, made)
    kind = dtype_of(made.dtype)
    floating = kind.floating or made.dtype in QUANTISERS
    if kind.block and not floating:
        detail = f"stored as {made.dtype}, of which nothing can be told"
        return Verdict(tensor.name, "changed", detail=detail)
    if floating != bool(dtype_of(tensor.dtype).floating or dtype_of(tensor.dtype).block):
        return Verdict(tensor.name, "changed", detail=f"stored as {made.dtype}")
    if not floating:
        return judge_integers(tensor, made)
    return judge(replace(tensor, dtype=made.dtype), made, compute_word)


def judge(tensor: TensorPlan, made: Slot, compute_word: str) -> Verdict:
    """Return the verdict on a touched tensor; `tensor` carries the dtype that OUT stores."""
    with torch.inference_mode():
        program = load_program(tensor, compute_word)
        seen = _compare(program, made)
        if verdict := _plain_verdict(tensor.name, seen):
            return verdict
        strength = seen.across / seen.square if seen.square else 0.0
        for digits in (1, 2, 3):
            tried = float(f"{strength:.{digits}g}")
            share = _share_at(program, made, tried)
            if share >= 0.99:
                asked = tensor.steps[0].weight if len(tensor.steps) == 1 else 1.0
                detail = f"applied at {tried:g} times the weight given"
                return Verdict(
                    tensor.name, "other-strength", share, strength=tried * asked, detail=detail
                )
    return Verdict(
        tensor.name,
        "changed",
        seen.exact / seen.elements,
        seen.ulps,
        detail=f"no strength explains it (the nearest is {strength:.3g})",
    )


def _plain_verdict(name: str, seen: Tallies) -> Verdict | None:
    if not seen.elements:
        return Verdict(name, "exact", 1.0, 0)
    share, twice = seen.exact / seen.elements, seen.twice / seen.elements
    if seen.silent == seen.elements:
        same = seen.exact == seen.elements
        detail = "the stored dtype cannot show so small a change"
        return Verdict(name, "undecidable" if same else "changed", share, seen.ulps, detail=detail)
    if seen.base == seen.elements:
        return Verdict(name, "not-applied", share, seen.ulps, detail="equal to the base")
    if seen.exact == seen.elements or (share >= ENOUGH and seen.ulps <= 1):
        return Verdict(name, "exact", share, seen.ulps)
    if twice >= ENOUGH and seen.ulps_twice <= 1:
        return Verdict(name, "two-roundings", share, seen.ulps)
    return None


def _compare(program: Program, made: Slot) -> Tallies:
    """Stream a tensor once, comparing OUT with the exact, twice rounded and unmerged values."""
    tensor, seen = program.tensor, Tallies()
    rows, columns = tensor.matrix
    target = replace(tensor, source=made, steps=())
    with BlockReader(tensor) as reader, BlockReader(target) as reader_made:
        for start, stop in blocks(0, rows, columns):
            found = reader_made.read(start, stop)
            stored = reader.read(start, stop)
            block = torch.empty(stored.shape, dtype=program.compute)
            program.apply(block, stored, start)
            _count(seen, block, stored.to(block.dtype), found, tensor.dtype)
    return seen


def _count(
    seen: Tallies, block: torch.Tensor, base: torch.Tensor, found: torch.Tensor, dtype: str
) -> None:
    delta = block - base
    exact, plain, rounded = (as_stored(values, dtype) for values in (block, base, delta))
    twice = as_stored(base + rounded.to(base.dtype), dtype)
    seen.elements += found.numel()
    seen.exact += int((found == exact).sum())
    seen.twice += int((found == twice).sum())
    seen.base += int((found == plain).sum())
    seen.silent += int((exact == plain).sum())
    size = torch.maximum(base.abs(), delta.abs())
    seen.ulps = max(seen.ulps, _ulps(found, exact, size))
    seen.ulps_twice = max(seen.ulps_twice, _ulps(found, twice, size))
    moved = found.double() - base.double()
    seen.across += float((moved * delta.double()).sum())
    seen.square += float(delta.double().square().sum())


def _ulps(found: torch.Tensor, wanted: torch.Tensor, size: torch.Tensor) -> int:
    """Return the largest distance in units in the last place of `size`, the largest term.

    Measuring by the result itself would call any rounding of two numbers that nearly cancel large.
    """
    if torch.equal(found, wanted):
        return 0
    apart = (found.double() - wanted.double()).abs()
    exponent = torch.frexp(torch.maximum(size, wanted.to(size.dtype).abs()).double()).exponent
    unit = torch.finfo(found.dtype).eps * torch.exp2((exponent - 1).double())
    units = torch.where(apart == 0, 0, (apart / unit).ceil())
    return int(units.nan_to_num(nan=2**31, posinf=2**31).max())


def _share_at(program: Program, made: Slot, strength: float) -> float:
    """Return the share of elements within one ulp of W + strength·ΔW."""
    tensor = program.tensor
    rows, columns = tensor.matrix
    near = total = 0
    with BlockReader(tensor) as reader, BlockReader(replace(tensor, source=made)) as reader_made:
        for start, stop in blocks(0, rows, columns):
            found, stored = reader_made.read(start, stop), reader.read(start, stop)
            block = torch.empty(stored.shape, dtype=program.compute)
            program.apply(block, stored, start)
            base = stored.to(block.dtype)
            wanted = as_stored(base + strength * (block - base), tensor.dtype)
            step = torch.finfo(found.dtype).eps * wanted.double().abs()
            near += int(((found.double() - wanted.double()).abs() <= step).sum())
            total += found.numel()
    return near / max(1, total)


def judge_integers(tensor: TensorPlan, made: Slot) -> Verdict:
    """Return the verdict on a tensor of integers or truth values, which is only ever replaced."""
    wanted = load_program(tensor, "auto").value
    found = read_tensor(made).reshape(tensor.matrix)
    same = wanted is not None and torch.equal(found, wanted.to(found.dtype))
    return Verdict(tensor.name, "exact" if same else "changed")


def judge_untouched(tensor: TensorPlan, made: Slot) -> Verdict:
    """Return the verdict on a tensor that no update touches: the base's values, or not."""
    assert tensor.source is not None
    quantised = [d for d in (made.dtype, tensor.source.dtype) if dtype_of(d).block]
    if quantised and tensor.source.dtype == made.dtype:
        same = same_bytes(tensor.source, made)
        detail = "" if same else "no update touches it, yet it differs"
        return Verdict(tensor.name, "untouched" if same else "changed", detail=detail)
    if quantised:
        return Verdict(tensor.name, "changed", detail=f"stored as {made.dtype}")
    planned = replace(tensor, dtype=made.dtype)
    rows, columns = tensor.matrix
    with BlockReader(planned) as reader, BlockReader(replace(planned, source=made)) as reader_made:
        for start, stop in blocks(0, rows, columns):
            found, stored = reader_made.read(start, stop), reader.read(start, stop)
            if stored.dtype != found.dtype:
                stored = stored.to(found.dtype)
            elif torch.equal(stored.view(torch.uint8), found.view(torch.uint8)):
                continue
            if not torch.equal(stored, found):
                return Verdict(
                    tensor.name, "changed", detail="no update touches it, yet it differs"
                )
    return Verdict(tensor.name, "untouched")
