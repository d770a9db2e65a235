"""Layouts of base checkpoints other than Hugging Face's: which files, under which scheme of names.

They are data (`schemas/layouts.toml`); a scheme that is not "hf" keeps its files and containers.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from adaptertools import schemas
from adaptertools.errors import SourceError
from adaptertools.formats.model import Model, as_model, read_config, translated
from adaptertools.store.container import plain_values
from adaptertools.store.gguf import GgufFile, read_gguf, read_parts
from adaptertools.store.header import Header
from adaptertools.store.read import read_slots
from adaptertools.store.slot import Slot

GGUF = ".gguf"


@dataclass(frozen=True, slots=True)
class Layout:
    """How a checkpoint lies on disk; `kept` layouts are written as they were read."""

    scheme: str = "hf"
    title: str = "Hugging Face"
    files: str = ""
    dialect: str = ""
    sliced: bool = False
    sizes: Mapping[str, str] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        return self.scheme != "hf"


HF = Layout()


@dataclass(frozen=True, slots=True)
class Shard:
    """One weight file: its tensors, and its head where it is safetensors or GGUF."""

    file: Path
    slots: Mapping[str, Slot]
    header: Header | GgufFile | None

    @property
    def size(self) -> int:
        return self.file.stat().st_size


@dataclass(frozen=True, slots=True)
class Found:
    """A layout's files, opened; `ranks` begin the names of each file's slices."""

    root: Path
    layout: Layout
    shards: tuple[Shard, ...]
    model: Model
    ranks: tuple[str, ...] = ("",)


@cache
def layouts() -> tuple[Layout, ...]:
    """Return the layouts of `schemas/layouts.toml`."""
    return tuple(Layout(**entry) for entry in schemas.table("layouts")["layout"])


def layout_of(root: Path) -> Layout | None:
    """Return the layout that a file's name, or the names in a folder, speak for."""
    names = [root.name] if root.is_file() else [path.name for path in _files(root, "*")]
    return next((lay for lay in layouts() if fnmatch.filter(names, lay.files)), None)


def open_layout(root: Path, layout: Layout) -> Found:
    """Open the files of a layout from headers alone; raises `SourceError`."""
    found = _open_sliced(root, layout) if layout.sliced else _open_gguf(root, layout)
    config = dict(found.model.config)
    for name, tensor in layout.sizes.items():
        slot = found.shards[0].slots.get(found.ranks[0] + tensor)
        if slot is not None and slot.shape and not _is_count(config.get(name)):
            config[name] = slot.shape[0] * len(found.ranks)
    return replace(found, model=as_model(config))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.is_file())


def _open_sliced(root: Path, layout: Layout) -> Found:
    """Open files that hold a slice of every tensor each; a slice's name begins with its file's."""
    folder = root.parent if root.is_file() else root
    name = schemas.table("configs")[layout.dialect]["file"]
    if not (folder / name).is_file():
        hint = "copy it from the original download: it tells the heads"
        raise SourceError("AT135", f"holds no {name}", file=folder, hint=hint)
    files = _files(folder, layout.files)
    wanted = [layout.files.replace("*", f"{number:02d}") for number in range(len(files))]
    if [file.name for file in files] != wanted:
        lacking = next(n for n in wanted if not (folder / n).is_file())
        raise SourceError("AT133", f"{lacking} is missing", file=folder, hint="download it again")
    ranks = [f"{file.stem}/" for file in files] if len(files) > 1 else [""]
    slices = [read_slots(file) for file in files]
    _check_slices(files, slices)
    shards = tuple(
        Shard(file, {rank + n: s for n, s in slots.items()}, None)
        for file, rank, slots in zip(files, ranks, slices, strict=True)
    )
    model = translated(layout.dialect, read_config(folder / name))
    return Found(folder, layout, shards, model, tuple(ranks))


def _check_slices(files: Sequence[Path], slices: Sequence[Mapping[str, Slot]]) -> None:
    """Refuse (AT134) files that do not hold slices of the same tensors, all of one size."""
    first = slices[0]
    for file, slots in zip(files, slices, strict=True):
        if odd := sorted(first.keys() ^ slots.keys()):
            where = files[0] if odd[0] in first else file
            told = f"only {where.name} holds it, of {files[0].name} and {file.name}"
            raise SourceError("AT134", told, file=where, key=odd[0])
        for name, slot in slots.items():
            if (slot.shape, slot.dtype) != (first[name].shape, first[name].dtype):
                told = (
                    f"it is {slot.dtype} {list(slot.shape)}, in {files[0].name} "
                    f"{first[name].dtype} {list(first[name].shape)}"
                )
                raise SourceError("AT134", told, file=file, key=name)


def _open_gguf(root: Path, layout: Layout) -> Found:
    given = root if root.is_file() else _only_model(root, layout)
    parts = read_parts(given)
    values = plain_values(parts[0].values)
    kind = values.get("general.type", "model")
    if kind != "model":
        hint = "the base comes first, then the adapters" if kind == "adapter" else ""
        raise SourceError("AT130", f"is a GGUF {kind}, not a model", file=given, hint=hint)
    shards = tuple(Shard(part.file, part.slots, part) for part in parts)
    return Found(root, layout, shards, translated(layout.dialect, values))


def _only_model(folder: Path, layout: Layout) -> Path:
    """Return the first file of the one model that a folder holds; AT130 where it holds several."""
    files = _files(folder, layout.files)
    models = [file for file in files if _is_first(read_gguf(file))]
    if len(models) != 1:
        told = ", ".join(file.name for file in (models or files)[:4])
        what = "several models" if models else "no model"
        hint = "name the file itself (of a split one the first)"
        raise SourceError("AT130", f"holds {what}: {told}", file=folder, hint=hint)
    return models[0]


def _is_first(part: GgufFile) -> bool:
    """Say whether a file is a model, or the first part of one."""
    number = part.values.get("split.no")
    kind = part.values.get("general.type")
    return (number is None or number.value == 0) and (kind is None or kind.value == "model")


def is_model_folder(folder: Path) -> bool:
    """Say whether a folder holds a model of one of these layouts."""
    layout = layout_of(folder)
    if layout is None:
        return False
    return layout.sliced or any(_heads_a_model(path) for path in _files(folder, layout.files))


def _heads_a_model(path: Path) -> bool:
    try:
        return _is_first(read_gguf(path))
    except SourceError:
        return False


def slots_of(shards: Sequence[Shard]) -> Iterator[tuple[Shard, str, Slot]]:
    """Yield every tensor with its shard and name."""
    for shard in shards:
        for name, slot in shard.slots.items():
            yield shard, name, slot
