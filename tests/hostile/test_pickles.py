"""Torch pickles: honest, cut, of something else, and with code in them."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import read_safetensors

from .arena import Arena, cli
from .test_files import HTML, LFS, SIDES, weights


class Payload:
    """An object whose unpickling runs a shell command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


def to_pickle(arena: Arena, side: str, **options: Any) -> Path:
    """Replace the safetensors file of one side by a torch pickle of the same tensors."""
    path = weights(arena, side)
    tensors = {}
    for key, (dtype, shape, data) in read_safetensors(path).items():
        torch_dtype = {"BF16": torch.bfloat16, "F32": torch.float32}[dtype]
        tensors[key] = torch.frombuffer(bytearray(data), dtype=torch_dtype).reshape(shape)
    path.unlink()
    name = "adapter_model.bin" if side == "adapter" else "pytorch_model.bin"
    torch.save(tensors, path.with_name(name), **options)
    return path.with_name(name)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_honest_pickle_works(arena: Arena, side: str, zipped: bool) -> None:
    """A pickle of tensors is a legal checkpoint, merged like its safetensors twin."""
    expected = {k: t[2] for k, t in arena.passes().items()}
    shutil.rmtree(arena.out)
    to_pickle(arena, side, _use_new_zipfile_serialization=zipped)
    arena.merge()
    merged = {}
    for path in sorted(arena.out.iterdir()):
        if path.suffix == ".safetensors":
            merged |= {key: tensor[2] for key, tensor in read_safetensors(path).items()}
        if path.suffix == ".bin":
            for key, tensor in torch.load(path, weights_only=True).items():
                merged[key] = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    assert merged == expected


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", ["zip", "legacy", "raw", "among tensors"])
def test_pickle_with_code_never_runs(arena: Arena, side: str, kind: str) -> None:
    """A pickle that carries code is refused by name and its code does not run."""
    marker = arena.root / "marker"
    path = to_pickle(arena, side)
    payload: Any = Payload(marker)
    if kind == "raw":
        path.write_bytes(pickle.dumps(payload))
    elif kind == "among tensors":
        torch.save({**torch.load(path, weights_only=True), "code": payload}, path)
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=kind == "zip")
    arena.refuses(file=str(path))
    if kind == "raw":
        arena.refuses_cli(file=str(path))
    for verb in ("inspect", "validate"):
        assert cli(verb, path.parent).code == 1
    assert not marker.exists(), "the payload ran"


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("keep", [0, 1, 4, 100, 0.5, 0.99, -1])
def test_truncated_pickle(arena: Arena, side: str, keep: float) -> None:
    """A cut pickle is refused by name."""
    path = to_pickle(arena, side)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    arena.refuses(file=str(path))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("content", [LFS, HTML], ids=["git-lfs pointer", "HTML"])
def test_not_a_pickle(arena: Arena, side: str, content: bytes) -> None:
    """A pointer or a web page in place of a pickle is refused by name."""
    path = to_pickle(arena, side)
    path.write_bytes(content)
    arena.refuses(file=str(path))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        "text",
        None,
        {"a": 1},
        {1: torch.zeros(2)},
        {"state_dict": [torch.zeros(2)]},
        torch.zeros(2),
        {"a": torch.zeros(2).to_sparse()},
    ],
    ids=["list", "string", "None", "number", "int key", "nested list", "tensor", "sparse"],
)
def test_pickle_of_something_else(arena: Arena, side: str, content: Any) -> None:
    """A pickle that holds no named tensors is refused by name."""
    path = to_pickle(arena, side)
    torch.save(content, path)
    arena.refuses(file=str(path))


@pytest.mark.parametrize("side", SIDES)
def test_zip_of_other_things(arena: Arena, side: str) -> None:
    """A zip that is no torch archive (here with a path that climbs out) is refused by name."""
    path = to_pickle(arena, side)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../evil.txt", "x")
    arena.refuses(file=str(path))


def test_safetensors_wins_over_pickle(arena: Arena) -> None:
    """A hostile pickle beside good safetensors is not even opened."""
    marker = arena.root / "marker"
    torch.save(Payload(marker), arena.adapter / "adapter_model.bin")
    torch.save(Payload(marker), arena.base / "pytorch_model.bin")
    arena.merge()
    assert not marker.exists()
    arena.check()
