"""One rounding, from the compute dtype to the stored one."""

from __future__ import annotations

import torch

COMPUTE = {"F32": torch.float32, "F64": torch.float64}


def round_to(out: torch.Tensor, values: torch.Tensor) -> None:
    """Write `values` (F32 or F64) into `out`, rounded once to nearest even.

    torch converts F64 to a 16-bit type by way of F32, which rounds twice; here that step rounds to
    odd, after which the second rounding is exact (Boldo and Melquiond, 2008).
    """
    if values.dtype != torch.float64 or out.dtype not in (torch.float16, torch.bfloat16):
        out.copy_(values)
        return
    single = values.float()
    back = single.double()
    bits = single.view(torch.int32)
    step = (back.abs() < values.abs()).int() * 2 - 1
    fix = (back != values) & (bits & 1 == 0) & values.isfinite()
    out.copy_((bits + step * fix).view(torch.float32))
