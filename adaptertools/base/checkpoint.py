"""A base checkpoint: a directory or one weight file, in any layout, known by its headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptertools.adapter.families import Family, detect_family
from adaptertools.base.layouts import (
    HF,
    Layout,
    Shard,
    is_model_folder,
    layout_of,
    open_layout,
    slots_of,
)
from adaptertools.errors import SourceError
from adaptertools.formats.model import Model
from adaptertools.formats.opening import read_config
from adaptertools.store.header import read_header
from adaptertools.store.read import TORCH_SUFFIXES, read_slots
from adaptertools.store.slot import Slot

SINGLE = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A base: `root` is what was given; `is_file` when it is one file, and so is the output.

    `config` has the fields of a Hugging Face config.json, whatever the layout. In a sliced layout
    `ranks` are what the names of each file's tensors begin with.
    """

    root: Path
    is_file: bool
    shards: tuple[Shard, ...]
    slots: Mapping[str, Slot]
    config: Mapping[str, Any] = field(default_factory=dict)
    family: Family | None = None
    layout: Layout = HF
    ranks: tuple[str, ...] = ("",)

    @property
    def ending(self) -> str:
        """What the name of an output that is one file must end in."""
        return self.root.suffix if self.layout.kept else ".safetensors"

    @property
    def model(self) -> Model:
        return Model(self.config, self.family)

    @property
    def sizes(self) -> dict[str, int]:
        return self.family.sizes(self.config) if self.family else {}


def open_base(path: str | Path) -> Checkpoint:
    """Open a base checkpoint from headers alone; raises `SourceError`."""
    root = Path(path)
    speaks = root.is_file() or (root.is_dir() and not is_hf(root) and is_model_folder(root))
    if speaks and (layout := layout_of(root)) is not None:
        return _in_layout(root, layout)
    if root.is_file():
        return _checkpoint(root, (root,), {}, None, is_file=True)
    if not root.is_dir():
        raise SourceError("AT100", "no such file or folder", file=root)
    config_path = root / "config.json"
    config = read_config(config_path) if config_path.is_file() else {}
    for name in SINGLE:
        if (root / name).is_file():
            return _checkpoint(root, (root / name,), config, None)
        index_path = root / f"{name}.index.json"
        if index_path.is_file():
            weight_map = _weight_map(index_path)
            files = tuple(root / shard for shard in dict.fromkeys(weight_map.values()))
            return _checkpoint(root, tuple(sorted(files)), config, weight_map)
    loose = sorted(p.name for p in root.glob("*.safetensors"))
    if (root / "adapter_config.json").is_file():
        hint = "this folder is an adapter; the base comes first, the adapter second"
    else:
        hint = f"name the file itself: {loose[0]}" if loose else ""
    raise SourceError("AT130", f"holds no {' or '.join(SINGLE)}", file=root, hint=hint)


def is_hf(folder: Path) -> bool:
    """Say whether a folder holds weights under Hugging Face's names."""
    return any((folder / f"{n}{end}").is_file() for n in SINGLE for end in ("", ".index.json"))


def _in_layout(given: Path, layout: Layout) -> Checkpoint:
    found = open_layout(given, layout)
    slots = {name: slot for _, name, slot in slots_of(found.shards)}
    if not slots:
        raise SourceError("AT130", "holds no tensors", file=given)
    is_file = found.root.is_file() and len(found.shards) == 1
    model = found.model
    return Checkpoint(
        found.root, is_file, found.shards, slots, model.config, model.family, layout, found.ranks
    )


def _weight_map(path: Path) -> dict[str, str]:
    table = read_config(path).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise SourceError("AT131", "the index has no weight_map", file=path)
    for name, shard in table.items():
        plain = isinstance(shard, str) and shard not in ("", ".", "..")
        if not plain or "/" in shard or "\\" in shard or "\0" in shard:
            raise SourceError(
                "AT132", f"names the shard {shard!r}, outside its folder", file=path, key=name
            )
    missing = sorted({s for s in table.values() if not (path.parent / s).is_file()})
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SourceError(
            "AT133", f"the shard {missing[0]}{more} is missing", file=path, hint="download it again"
        )
    return table


def _checkpoint(
    root: Path,
    files: tuple[Path, ...],
    config: dict[str, Any],
    weight_map: dict[str, str] | None,
    *,
    is_file: bool = False,
) -> Checkpoint:
    shards = tuple(_shard(file) for file in files)
    slots: dict[str, Slot] = {}
    for shard in shards:
        for name, slot in shard.slots.items():
            if name in slots:
                raise SourceError("AT134", "stands in two shards", file=shard.file, key=name)
            slots[name] = slot
    for name, file in (weight_map or {}).items():
        if name not in slots or slots[name].file.name != file:
            raise SourceError(
                "AT134", f"the index puts it in {file}, which does not hold it", file=root, key=name
            )
    if not slots:
        raise SourceError("AT130", "holds no tensors", file=root)
    return Checkpoint(root, is_file, shards, slots, config, detect_family(config))


def _shard(file: Path) -> Shard:
    if file.suffix in TORCH_SUFFIXES:
        return Shard(file, read_slots(file), None)
    header = read_header(file)
    return Shard(file, header.slots, header)
