"""The content of a weight file: its tensors, and what the container itself tells beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptertools.store.read import read_slots
from adaptertools.store.slot import Slot

MAX_MEMBER = 16_000_000
MAX_ARRAY = 4096


@dataclass(frozen=True, slots=True)
class Content:
    """The tensors of a file by name, its key values, and other members of an archive by name."""

    slots: Mapping[str, Slot]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    members: Mapping[str, bytes] = field(default_factory=dict)


def read_content(path: Path) -> Content:
    """Read the headers of a weight file; raises `SourceError`."""
    if path.suffix == ".gguf":
        from adaptertools.store.gguf import read_gguf

        gguf = read_gguf(path)
        return Content(gguf.slots, plain_values(gguf.values))
    if path.suffix == ".nemo":
        from adaptertools.store.tar import read_member, read_tar

        names = [n for n in read_tar(path).members if n.endswith((".yaml", ".json"))]
        return Content(read_slots(path), {}, {n: read_member(path, n, MAX_MEMBER) for n in names})
    return Content(read_slots(path))


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the key values of a GGUF file decoded, without the long arrays (a tokenizer)."""
    return {key: value.value for key, value in values.items() if value.count <= MAX_ARRAY}
