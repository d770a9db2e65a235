"""Tensors whose first dimension an adapter may change: vocabularies and task heads."""

from __future__ import annotations

from collections.abc import Mapping

from adaptertools import schemas
from adaptertools.base.checkpoint import Checkpoint
from adaptertools.base.plan import TensorPlan
from adaptertools.errors import Finding, Where


def is_vocabulary(base: Checkpoint, name: str) -> bool:
    """Say whether a tensor has a row for each token: the input embedding or the output head."""
    return is_embedding(base, name) or _ends(name, head_name(base))


def is_embedding(base: Checkpoint, name: str) -> bool:
    """Say whether a tensor is the input embedding."""
    family = base.family
    known = [family.tied_to] if family and family.tied_to else []
    return any(_ends(name, e) for e in [*known, *schemas.table("names")["tied_embeddings"]])


def may_grow(base: Checkpoint, name: str) -> bool:
    """Say whether an adapter's full value may have another number of rows than the base's."""
    module = name.rpartition(".")[0].rpartition(".")[2]
    return is_vocabulary(base, name) or module in schemas.table("names")["task_heads"]


def check_vocabulary(base: Checkpoint, tensors: Mapping[str, TensorPlan]) -> list[Finding]:
    """Return AT403 when a resized embedding and the head no longer have the same rows.

    Returns AT323 when an embedding changes in a bare file, where nothing tells whether it is tied.
    """
    found = []
    head = next((t for n, t in tensors.items() if _ends(n, head_name(base))), None)
    for name, tensor in tensors.items():
        if not is_embedding(base, name) or not tensor.steps:
            continue
        where = Where(str(base.root), name)
        if head is None and not base.config:
            title = "if this embedding is tied to the output head, the head changes with it"
            hint = "merge into the model's directory, whose config.json tells"
            found.append(Finding("AT323", "warning", title, where, hint=hint))
        elif head is not None and tensor.shape[0] != head.shape[0]:
            title = f"the embedding and {head.name} would not have the same rows"
            hint = "the adapter must bring both, or neither"
            rows = str(head.shape[0]), str(tensor.shape[0])
            found.append(Finding("AT403", "error", title, where, *rows, hint=hint))
    return found


def head_name(base: Checkpoint) -> str:
    """Return the name of the output head's tensor: the family's, else the usual one."""
    family = base.family
    return (family.tied_head if family else None) or str(schemas.table("names")["tied_head"])


def _ends(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")
