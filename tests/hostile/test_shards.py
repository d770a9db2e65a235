"""Shards and the index that names them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import encode, read_safetensors, write_json, write_safetensors

from .arena import Q0, Arena, cli
from .test_files import INDEX, LFS


def edit_index(arena: Arena, **changes: Any) -> Path:
    """Change entries of the weight map, or (`weight_map=`) replace it; returns the index."""
    path = arena.base / INDEX
    index = json.loads(path.read_text())
    index["weight_map"] = changes.pop("weight_map", index["weight_map"] | changes)
    return write_json(path, index)


@pytest.mark.parametrize("number", [1, 4])
def test_missing_shard(sharded: Arena, number: int) -> None:
    """A shard that the index names but nobody downloaded is named."""
    name = f"model-{number:05d}-of-00004.safetensors"
    (sharded.base / name).unlink()
    sharded.refuses(file=name)
    sharded.refuses_cli(file=name)


@pytest.mark.parametrize(
    "target",
    ["../evil.safetensors", "a/../../evil.safetensors", "@/evil.safetensors", "..", ".", ""],
)
def test_index_that_leaves_its_directory(sharded: Arena, target: str) -> None:
    """No path from a file leaves its directory, even where the file exists."""
    last = sharded.base / "model-00004-of-00004.safetensors"
    shutil.copy(last, sharded.root / "evil.safetensors")
    target = target.replace("@", str(sharded.root))
    old = json.loads((sharded.base / INDEX).read_text())["weight_map"]
    moved = {key: target if file.startswith("model-00004") else file for key, file in old.items()}
    edit_index(sharded, weight_map=moved)
    last.unlink()
    sharded.refuses(file=INDEX)


def test_shard_in_a_subdirectory_stays_there(sharded: Arena) -> None:
    """A path below the index is not an escape: merged, or refused by name, never misplaced."""
    name = "model-00004-of-00004.safetensors"
    (sharded.base / "sub").mkdir()
    (sharded.base / name).rename(sharded.base / "sub" / name)
    old = json.loads((sharded.base / INDEX).read_text())["weight_map"]
    edit_index(sharded, weight_map={k: f"sub/{f}" if f == name else f for k, f in old.items()})
    result = cli("merge", sharded.base, sharded.adapter, "-o", sharded.out)
    if result.code == 0:
        merged = json.loads((sharded.out / INDEX).read_text())["weight_map"]
        assert all((sharded.out / file).is_file() for file in merged.values())
    else:
        assert name in result.err
        assert not sharded.out.exists()


def test_index_names_a_tensor_its_shard_lacks(sharded: Arena) -> None:
    """The index and the shards must agree; the tensor is named."""
    edit_index(sharded, **{"model.norm.extra": "model-00001-of-00004.safetensors"})
    sharded.refuses(key="model.norm.extra")


def test_index_names_the_wrong_shard(sharded: Arena) -> None:
    """A tensor that lies in another shard than the index says is named."""
    edit_index(sharded, **{"lm_head.weight": "model-00001-of-00004.safetensors"})
    sharded.refuses(key="lm_head.weight")


def test_tensor_in_two_shards(sharded: Arena) -> None:
    """A targeted tensor that two shards hold must not stay unmerged in one of them."""
    path = sharded.base / "model-00004-of-00004.safetensors"
    tensors = read_safetensors(path)
    tensors[f"{Q0}.weight"] = encode(np.ones((64, 64)), "BF16")
    write_safetensors(path, tensors, {"format": "pt"})
    sharded.refuses(key=Q0)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {}}', b'{"weight_map": null}', LFS],
    ids=["empty", "array", "no map", "map a list", "map empty", "map null", "git-lfs pointer"],
)
def test_not_an_index(sharded: Arena, content: bytes) -> None:
    """An index that maps nothing is refused by name."""
    (sharded.base / INDEX).write_bytes(content)
    sharded.refuses(file=INDEX)


@pytest.mark.parametrize("value", [1, None, ["a"], {"file": "a"}, True])
def test_index_entry_of_a_wrong_type(sharded: Arena, value: Any) -> None:
    """A file name in the index must be a string."""
    edit_index(sharded, **{"lm_head.weight": value})
    sharded.refuses(file=INDEX)


def test_bogus_total_size_is_no_reason(sharded: Arena) -> None:
    """`total_size` is informative; a wrong one stops nothing."""
    path = sharded.base / INDEX
    write_json(path, json.loads(path.read_text()) | {"metadata": {"total_size": -1, "x": [1]}})
    sharded.passes()
