"""A container of rows: each holds the flattened factors of one module, and a table names them.

The table is int32 [1, rows, 3]: the module's number, its layer, its rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from adaptertools.conversion.fill import layer_of
from adaptertools.errors import FormatError
from adaptertools.store.npz import write_npy
from adaptertools.store.stored import Stored


def write_rows(path: Path, tensors: Sequence[Stored], write: Mapping[str, Any]) -> None:
    """Write the rows to `path`, and their table beside it under the name `write["index"]`."""
    import numpy as np

    rows = _rows(tensors, write)
    table = np.array([[row[:3] for row in rows]], np.int32)
    longest = max(prod(d.shape) + prod(u.shape) for *_, d, u in rows)
    dtype = tensors[0].dtype

    def load() -> Any:
        word = {"F32": "u4", "F16": "u2"}[dtype]
        whole = np.zeros((1, len(rows), longest), word)
        for number, (*_, down, up) in enumerate(rows):
            flat = np.concatenate([down.load().reshape(-1), up.load().reshape(-1)])
            whole[0, number, : flat.size] = flat
        return whole

    write_npy(path, Stored("rows", dtype, (1, len(rows), longest), load))
    index = path.with_name(write["index"])
    write_npy(index, Stored("table", "I32", table.shape, lambda: table.view(np.uint32)))


Row = tuple[int, int, int, Stored, Stored]


def _rows(tensors: Sequence[Stored], write: Mapping[str, Any]) -> list[Row]:
    """Return (number, layer, rank, down, up) of every module, by layer and number."""
    ids: Mapping[str, int] = write["ids"]
    found = []
    by_name = {tensor.name: tensor for tensor in tensors}
    for name, down in by_name.items():
        module, _, role = name.rpartition(".")
        place = layer_of(module)
        if role != "down":
            continue
        if place is None or place[2] not in ids:
            raise FormatError("AT250", "has no number for this module", key=module)
        found.append((ids[place[2]], place[1], down.shape[0], down, by_name[f"{module}.up"]))
    return sorted(found, key=lambda row: (row[1], row[0]))
