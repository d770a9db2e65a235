"""Quantised bases: refused by name; of a GGUF base only the tensors that would have to change."""

from __future__ import annotations

from adaptertools import schemas
from adaptertools.base.checkpoint import Checkpoint
from adaptertools.errors import MergeError
from adaptertools.store.dtypes import DTYPES


def refuse_quantised(base: Checkpoint) -> None:
    """Raise `MergeError` (AT405) when the base holds quantised weights.

    A layout that is kept may hold some: there it matters which ones change (`retyped`).
    """
    if base.layout.kept:
        return
    table = schemas.table("quantised")
    config = base.config.get("quantization_config") or base.config.get("compression_config")
    named = config.get("quant_method") if isinstance(config, dict) else None
    if isinstance(config, dict):
        method = next((m["name"] for m in table["method"] if named in m["config"]), str(named))
        told = f"quantization_config.quant_method={named}"
        raise _refusal(base, method, told, table["hint"])
    for method in table["method"]:
        for name in base.slots:
            if any(name.endswith(suffix) for suffix in method["suffixes"]):
                raise _refusal(base, method["name"], f"a tensor {name!r}", table["hint"])
    packed = next((s for s in base.slots.values() if DTYPES[s.dtype].packed), None)
    if packed is not None:
        raise _refusal(
            base, packed.dtype, f"the {packed.dtype} tensor {packed.name!r}", table["hint"]
        )


def _refusal(base: Checkpoint, method: str, evidence: str, hint: str) -> MergeError:
    return MergeError(
        "AT405", f"the base is quantised ({method}: {evidence})", file=base.root, hint=hint
    )
