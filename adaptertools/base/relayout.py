"""A base checkpoint in another layout: Hugging Face to Meta and back, tensor by tensor.

Names, row orders and the cutting into model-parallel files come from the family spec; values are
moved as raw bits. Peak memory is one tensor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from adaptertools import schemas
from adaptertools.adapter.naming import Home, Naming
from adaptertools.base.checkpoint import Checkpoint, open_base
from adaptertools.base.quantised import refuse_quantised
from adaptertools.errors import MergeError
from adaptertools.store.dtypes import nbytes
from adaptertools.store.place import check_place, check_space, publish, staged
from adaptertools.store.read import read_bits
from adaptertools.store.slot import Slot
from adaptertools.store.stored import Stored

Progress = Callable[[int, int], None]
LAYOUTS = ("hf", "meta")
SHARD_SIZE = 5 * 10**9


@dataclass(frozen=True, slots=True)
class _Move:
    """One canonical parameter: its name in both layouts, where it lies in Meta's, and how cut."""

    name: str
    meta: str
    home: Home
    split: int | None


@dataclass(frozen=True, slots=True)
class RelayoutPlan:
    """The files that will be written: weight files by name, and configs."""

    base: Checkpoint
    to: str
    files: Mapping[str, Sequence[Stored]]
    configs: Mapping[str, Any]
    left_out: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(t.size for tensors in self.files.values() for t in tensors)

    def to_json(self) -> dict[str, Any]:
        return {
            "to": self.to,
            "tensors": sum(len(tensors) for tensors in self.files.values()),
            "bytes": self.bytes,
            "files": [*self.files, *self.configs],
            "left_out": list(self.left_out),
        }


@dataclass(slots=True)
class Relayout:
    """One conversion of a base, to be planned and then run; `parts` is Meta's number of files."""

    ref: Path
    to: str
    out: Path
    parts: int = 1
    overwrite: bool = False
    progress: Progress = lambda done, total: None

    def plan(self) -> RelayoutPlan:
        """Plan from headers; raises `AdapterError` for whatever stands in the way."""
        check_place(self.out, [self.ref], is_file=None, overwrite=self.overwrite)
        base = open_base(self.ref)
        refuse_quantised(base)
        if base.layout.scheme == self.to:
            raise MergeError("AT416", f"is in the layout {self.to} already", file=self.ref)
        if base.family is None or "meta" not in _schemes(base):
            kind = base.config.get("model_type")
            raise MergeError(
                "AT416", f"Meta's layout has no names for model type {kind!r}", file=self.ref
            )
        naming = base.model.naming("meta")
        if self.to == "meta":
            return _to_meta(base, naming, self.parts)
        return _to_hf(base, naming)

    def run(self, plan: RelayoutPlan) -> Path:
        """Write the plan beside OUT and move it into place."""
        from adaptertools.store.torchsave import write_torch
        from adaptertools.store.write import write_safetensors

        check_space(self.out, plan.bytes, 0)
        done = 0
        with staged(self.out) as folder:
            for name, tensors in plan.files.items():
                if name.endswith(".pth"):
                    write_torch(folder / name, tensors)
                else:
                    write_safetensors(folder / name, tensors, {"format": "pt"})
                done += sum(t.size for t in tensors)
                self.progress(done, plan.bytes)
            for name, values in plan.configs.items():
                (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            publish(folder, self.out)
        return self.out


def _schemes(base: Checkpoint) -> set[str]:
    assert base.family is not None
    return {scheme for module in base.family.modules for scheme in module.spots}


def _moves(base: Checkpoint, naming: Naming) -> list[_Move]:
    """Return every weight of the model that both layouts name."""
    assert base.family is not None
    moves = []
    for module in base.family.modules_of(base.sizes):
        home, hit = naming.home(module), base.family.find(module)
        if home is None or hit is None:
            continue
        axes = [axis for axis in hit.module.layout.split() if axis in ("out", "in")]
        split = hit.module.split.get("meta")
        axis = axes.index(split) if split in axes else None
        moves.append(_Move(f"{module}.weight", f"{home.name}.weight", home, axis))
    return moves


def _to_meta(base: Checkpoint, naming: Naming, parts: int) -> RelayoutPlan:
    slots, used = base.slots, set()
    files: dict[str, list[Stored]] = {f"consolidated.{n:02d}.pth": [] for n in range(parts)}
    for move in _moves(base, naming):
        slot = slots.get(move.name)
        if slot is None and base.family and move.name == base.family.tied_head:
            slot = slots.get(base.family.tied_to or "")
        if slot is None:
            continue
        used.add(move.name)
        _check_split(slot, move, parts)
        for number, tensors in enumerate(files.values()):
            tensors.append(_cut(slot, move, number, parts))
    left = _left_out(base, used)
    return RelayoutPlan(base, "meta", files, {"params.json": _params(base.config)}, left)


def _left_out(base: Checkpoint, used: set[str]) -> tuple[str, ...]:
    """Return tensors that are computed anew on loading; raises (AT416) for any other."""
    rest = [name for name in base.slots if name.rpartition("/")[2] not in used]
    lost = [name for name in rest if not name.endswith(("rotary_emb.inv_freq", "rope.freqs"))]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise MergeError("AT416", f"the other layout has no place for it{more}", key=lost[0])
    return tuple(rest)


def _check_split(slot: Slot, move: _Move, parts: int) -> None:
    if move.split is not None and slot.shape[move.split] % parts:
        raise MergeError(
            "AT416",
            f"its {slot.shape[move.split]} rows or columns do not divide by {parts} files",
            key=move.name,
            hint="choose another --parts",
        )


def _cut(slot: Slot, move: _Move, number: int, parts: int) -> Stored:
    shape, where = list(slot.shape), [slice(None)] * len(slot.shape)
    if move.split is not None:
        shape[move.split] //= parts
        start = number * shape[move.split]
        where[move.split] = slice(start, start + shape[move.split])

    def load() -> Any:
        import numpy as np

        bits = read_bits(slot)
        if move.home.rows is not None:
            ordered = np.empty_like(bits)
            ordered[move.home.rows] = bits
            bits = ordered
        return bits[tuple(where)]

    return Stored(move.meta, slot.dtype, tuple(shape), load)


def _to_hf(base: Checkpoint, naming: Naming) -> RelayoutPlan:
    moves, tensors, used = _moves(base, naming), list[Stored](), set()
    for move in moves:
        slices = [base.slots.get(rank + move.meta) for rank in base.ranks]
        found = [slot for slot in slices if slot is not None]
        if found:
            used.add(move.meta)
            tensors.append(_joined(found, move))
    left = _left_out(base, used)
    files = _sharded(tensors)
    configs: dict[str, Any] = {"config.json": _config(base)}
    if len(files) > 1:
        total = sum(t.size for t in tensors)
        table = {t.name: name for name, own in files.items() for t in own}
        index = {"metadata": {"total_size": total}, "weight_map": table}
        configs["model.safetensors.index.json"] = index
    return RelayoutPlan(base, "hf", files, configs, left)


def _joined(slots: Sequence[Slot], move: _Move) -> Stored:
    shape, first = list(slots[0].shape), slots[0]
    whole = move.split is not None
    if whole:
        shape[move.split or 0] *= len(slots)

    def load() -> Any:
        import numpy as np

        bits = read_bits(first)
        if whole and len(slots) > 1:
            bits = np.concatenate([read_bits(slot) for slot in slots], move.split)
        return bits if move.home.rows is None else bits[move.home.rows]

    return Stored(move.name, first.dtype, tuple(shape), load)


def _sharded(tensors: Sequence[Stored]) -> dict[str, list[Stored]]:
    """Return tensors in files of at most `SHARD_SIZE`, named as transformers does."""
    shards: list[list[Stored]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.size > SHARD_SIZE:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += nbytes(tensor.dtype, prod(tensor.shape))
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    count = len(shards)
    return {f"model-{n:05d}-of-{count:05d}.safetensors": s for n, s in enumerate(shards, 1)}


def _params(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return Meta's params.json (llama/model.py, ModelArgs and FeedForward)."""
    dim, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    params = {
        "dim": dim,
        "n_layers": config["num_hidden_layers"],
        "n_heads": heads,
        "n_kv_heads": kv_heads,
        "norm_eps": config.get("rms_norm_eps", 1e-5),
        "vocab_size": config["vocab_size"],
        **_feed_forward(dim, config["intermediate_size"]),
    }
    rope = config.get("rope_parameters") or config
    return {**params, "rope_theta": rope.get("rope_theta", 10000.0)}


def _feed_forward(dim: int, inter: int) -> dict[str, Any]:
    """Return the terms of round_up(multiplier · ⌊8·dim/3⌋, multiple) = inter."""
    base = int(8 * dim / 3)
    for multiple in (256, 1024, 4096, 128, 64, 32, 16, 8, 4, 2, 1):
        if -(-base // multiple) * multiple == inter:
            return {"multiple_of": multiple}
    multiple = inter & -inter
    return {"multiple_of": multiple, "ffn_dim_multiplier": (inter - multiple / 2) / base}


def _config(base: Checkpoint) -> dict[str, Any]:
    """Return a config.json from what the other layout tells, the rest as the family's own."""
    template = dict(schemas.table("layouts")["hf_config"])
    dtypes = {slot.dtype for slot in base.slots.values()}
    word = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(min(dtypes), "float32")
    params = json.loads((base.root / "params.json").read_text("utf-8"))
    return {
        **template,
        **base.config,
        "dtype": word,
        "rms_norm_eps": params.get("norm_eps", 1e-5),
        "rope_theta": params.get("rope_theta", 10000.0),
        "max_position_embeddings": params.get("max_seq_len", template["max_position_embeddings"]),
    }
