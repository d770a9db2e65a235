"""Which dtype each tensor of a kept layout gets: its own, but for quantised ones that change.

Adding to block-quantised values is not possible in place, and quantising again to 4 or 5 bits loses
most adapters: of a change of 1 % of a weight's spread 0.07 survives in Q4_0, 0.88 in Q8_0, 0.99 in
BF16 (cosine). So such a tensor becomes what `--dtype` says; mixed types are what GGUF is made for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from adaptertools.base.checkpoint import Checkpoint
from adaptertools.base.plan import TensorPlan
from adaptertools.errors import Finding, MergeError, Where
from adaptertools.store.dtypes import dtype_of
from adaptertools.store.slot import Slot

ALLOWED = ("F32", "F16", "BF16", "Q8_0")


def retyped(
    base: Checkpoint,
    tensors: Mapping[str, TensorPlan],
    dtype: str,
    made: Mapping[str, Slot] | None = None,
) -> tuple[dict[str, TensorPlan], list[Finding]]:
    """Return the tensors of a kept layout with their dtypes, and what stands in the way (AT405).

    `made` is somebody's output, whose dtypes are taken as given. Raises `MergeError` (AT413) for a
    dtype that nothing here can get.
    """
    settled, findings = dict(tensors), list[Finding]()
    touched = [tensor for tensor in tensors.values() if tensor.steps]
    quantised = [tensor for tensor in touched if dtype_of(tensor.dtype).block]
    if made is None:
        _check_dtype(base, dtype, touched, quantised)
    for tensor in quantised:
        slot = None if made is None else made.get(tensor.name)
        wanted = dtype if slot is None or dtype != "auto" else slot.dtype
        if wanted == "auto" and made is None:
            findings.append(_refusal(base, tensor))
        elif wanted in ALLOWED:
            settled[tensor.name] = replace(tensor, dtype=wanted)
        else:
            settled[tensor.name] = replace(tensor, dtype="BF16")
    return settled, findings


def _check_dtype(
    base: Checkpoint, dtype: str, touched: list[TensorPlan], quantised: list[TensorPlan]
) -> None:
    plain = sorted({tensor.dtype for tensor in touched if not dtype_of(tensor.dtype).block})
    if dtype == "auto" or (plain == [dtype] and not quantised):
        return
    if not quantised:
        told = ", ".join(plain)
        raise MergeError(
            "AT413",
            f"the {base.layout.title} layout keeps the dtype of its tensors ({told}), and no "
            "quantised one is touched",
            file=base.root,
            hint="leave --dtype out",
        )
    if dtype not in ALLOWED:
        told = ", ".join(ALLOWED).lower()
        raise MergeError(
            "AT413", f"a quantised tensor cannot become {dtype}", file=base.root, hint=f"use {told}"
        )


def _refusal(base: Checkpoint, tensor: TensorPlan) -> Finding:
    title = (
        f"it is quantised ({tensor.dtype}), and would have to be quantised again, which erases "
        "most of an adapter at 4 or 5 bits"
    )
    hint = "--dtype bf16 (or f16, q8_0) stores the tensors that change so; the rest keep their type"
    return Finding("AT405", "error", title, Where(str(base.root), tensor.name), hint=hint)
