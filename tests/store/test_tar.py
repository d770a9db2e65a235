"""Tar archives: what tarfile writes is found, what we write it reads, torch files inside too."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch

from adaptertools.errors import SourceError
from adaptertools.store.read import read_bits, read_slots, read_tensor
from adaptertools.store.stored import Stored
from adaptertools.store.tar import _header, is_unsafe, read_member, read_tar, write_tar
from adaptertools.store.torchfile import Window, read_torch
from adaptertools.store.torchsave import torch_size, write_torch

from .test_npz import random_bits, refusal, sha, stored

LONG = "folder/" + "x" * 120 + "/" + "y" * 150
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
CONFIG = b"peft:\n  lora_tuning:\n    adapter_dim: 4\n"


@pytest.mark.parametrize("format_name", FORMATS)
def test_what_tarfile_writes_is_found(tmp_path: Path, format_name: str) -> None:
    """Names (long, not ASCII, with ./), sizes and places, in every format of tarfile."""
    names = ["model_config.yaml", "./model_weights.ckpt", "a/./b", "empty"]
    names += ["ключ", "x" * 100] + ([LONG] if format_name != "ustar" else [LONG[:200]])
    wanted = {}
    path = tmp_path / "x.nemo"
    with tarfile.open(path, "w:", format=FORMATS[format_name]) as archive:
        for number, name in enumerate(names):
            data = os.urandom(number * 300) if name != "empty" else b""
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(data), 1.5 + number, "somebody"  # type: ignore[assignment]
            archive.addfile(info, io.BytesIO(data))
            wanted["/".join(p for p in name.split("/") if p != ".")] = data
        folder = tarfile.TarInfo("./folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    found = read_tar(path)
    assert list(found.members) == list(wanted)
    whole = path.read_bytes()
    for name, member in found.members.items():
        assert whole[member.offset : member.offset + member.size] == wanted[name]
        assert read_member(path, name, len(wanted[name])) == wanted[name]


def test_what_the_tar_command_writes_is_found(tmp_path: Path) -> None:
    """GNU tar, of a folder, as people pack by hand."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model_config.yaml").write_bytes(CONFIG)
    subprocess.run(["tar", "-cf", tmp_path / "x.nemo", "-C", tmp_path / "in", "."], check=True)
    assert list(read_tar(tmp_path / "x.nemo").members) == ["model_config.yaml"]
    assert read_member(tmp_path / "x.nemo", "model_config.yaml", 1000) == CONFIG


def nemo_save(folder: Path, tensors: dict[str, torch.Tensor], path: Path, **options: Any) -> Path:
    """Write an archive as NeMo's save_restore_connector does: tar.add of a folder as '.'."""
    folder.mkdir()
    (folder / "model_config.yaml").write_bytes(CONFIG)
    torch.save(tensors, folder / "model_weights.ckpt", **options)
    with tarfile.open(path, "w:") as archive:
        archive.add(folder, arcname=".")
    return path


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_torch_file_in_a_tar_is_read_in_place(tmp_path: Path, new: bool) -> None:
    """The slots point into the archive, and give what torch.load gives."""
    tensors = {
        "a.linear_in.weight": torch.randn(4, 33),
        "a.linear_out.weight": torch.randn(33, 4).bfloat16(),
        "turned": torch.randn(5, 7).T,
        "number": torch.tensor(3),
    }
    path = nemo_save(
        tmp_path / "in", tensors, tmp_path / "x.nemo", _use_new_zipfile_serialization=new
    )
    slots = read_slots(path)
    assert slots.keys() == tensors.keys()
    for name, tensor in tensors.items():
        got = read_tensor(slots[name])
        assert got.dtype == tensor.dtype and torch.equal(got, tensor)
        assert slots[name].file == path
        assert (slots[name].held is None) == new
    if new:
        slot = slots["a.linear_in.weight"]
        data = path.read_bytes()[slot.offset : slot.end]
        assert data == tensors["a.linear_in.weight"].numpy().tobytes()


def test_reading_a_tar_takes_no_memory_for_its_weights(tmp_path: Path) -> None:
    """Only the tables are read."""
    path = nemo_save(tmp_path / "in", {"w": torch.zeros(1 << 22)}, tmp_path / "x.nemo")
    read_slots(path)
    tracemalloc.start()
    assert read_slots(path)["w"].size == 1 << 24
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 21


def test_a_torch_file_is_written_into_a_tar(tmp_path: Path) -> None:
    """As a stream, with the bytes that a file of its own would have, readable as NeMo reads it."""
    rows = [
        stored("a", "F32", random_bits("F32", (4, 33), "columns")),
        stored("b", "BF16", random_bits("BF16", (3, 0, 2))),
        stored("ключ", "I64", random_bits("I64", (), seed=1)),
    ]
    members: list[Any] = [
        ("model_config.yaml", CONFIG, len(CONFIG)),
        ("model_weights.ckpt", lambda stream: write_torch(stream, rows), torch_size(rows)),
    ]
    write_tar(tmp_path / "x.nemo", members)
    write_tar(tmp_path / "y.nemo", members)
    write_torch(tmp_path / "x.ckpt", rows)
    assert sha(tmp_path / "x.nemo") == sha(tmp_path / "y.nemo")
    with tarfile.open(tmp_path / "x.nemo", "r:") as archive:
        assert archive.getnames() == ["model_config.yaml", "model_weights.ckpt"]
        info = archive.getmember("model_weights.ckpt")
        assert (info.mtime, info.uid, info.gid, info.mode, info.uname) == (0, 0, 0, 0o644, "")
        inner = archive.extractfile(info)
        assert inner is not None
        data = inner.read()
        config = archive.extractfile("model_config.yaml")
        assert config is not None and config.read() == CONFIG
    assert data == (tmp_path / "x.ckpt").read_bytes()
    loaded = torch.load(io.BytesIO(data), weights_only=True)
    slots = read_slots(tmp_path / "x.nemo")
    for row in rows:
        assert np.array_equal(read_bits(slots[row.name]), row.load())
        assert torch.equal(
            read_tensor(slots[row.name]).reshape(-1).view(torch.uint8),
            loaded[row.name].reshape(-1).view(torch.uint8),
        )
    whole = (tmp_path / "x.nemo").read_bytes()
    assert whole[257:265] == b"ustar\x0000" and len(whole) % 10240 == 0


def test_large_and_long_members(tmp_path: Path) -> None:
    """Sizes over 8 GiB go in base 256 (seen in a header alone); names up to ustar's limit."""
    name = "f/" * 60 + "x" * 90
    write_tar(tmp_path / "x.tar", [(name, b"1", 1)])
    with tarfile.open(tmp_path / "x.tar") as archive:
        assert archive.getnames() == [name]
    assert list(read_tar(tmp_path / "x.tar").members) == [name]
    for size in (8**11 - 1, 8**11, 8**12 + 5):
        path = tmp_path / "sparse.tar"
        with path.open("wb") as stream:
            header = _header(path, "big", size, set())
            stream.write(header)
            stream.truncate(512 + -(-size // 512) * 512 + 1024)
        member = read_tar(path).members["big"]
        assert (member.offset, member.size) == (512, size)
        assert tarfile.TarInfo.frombuf(header, "utf-8", "strict").size == size


@pytest.mark.parametrize("name", ["x" * 300, "../x", "/x", "", "a\ud800"])
def test_names_that_a_tar_cannot_hold(tmp_path: Path, name: str) -> None:
    """They are refused, and no file is left."""
    error = refusal(lambda: write_tar(tmp_path / "x.tar", [("good", b"", 0), (name, b"", 0)]))
    assert error.code == "AT151"
    assert not (tmp_path / "x.tar").exists()


def test_a_member_of_another_size_is_refused(tmp_path: Path) -> None:
    """A size that is not kept would spoil everything after it."""

    def wrong(stream: BinaryIO) -> None:
        stream.write(b"12345")

    for data in (wrong, b"12345"):
        assert refusal(lambda d=data: write_tar(tmp_path / "x.tar", [("a", d, 4)])).code == "AT152"
        assert not (tmp_path / "x.tar").exists()
    write_tar(tmp_path / "x.tar", [("a", wrong, 5)])
    assert read_member(tmp_path / "x.tar", "a", 5) == b"12345"


def test_members_are_asked_for_by_name_and_limit(tmp_path: Path) -> None:
    """AT118 for what is not there, and for what is larger than the caller takes."""
    write_tar(tmp_path / "x.tar", [("a", b"12345", 5)])
    assert refusal(lambda: read_member(tmp_path / "x.tar", "b", 9)).code == "AT118"
    error = refusal(lambda: read_member(tmp_path / "x.tar", "a", 4))
    assert (error.code, error.where.key) == ("AT118", "a")
    assert refusal(lambda: read_tar(tmp_path / "none.tar")).code == "AT100"


def test_a_nemo_file_holds_one_weight_file(tmp_path: Path) -> None:
    """With none, or with those of several ranks, nobody knows which is meant."""
    for names in ([], ["mp_rank_00/model_weights.ckpt", "mp_rank_01/model_weights.ckpt"]):
        write_tar(tmp_path / "x.nemo", [(name, b"", 0) for name in ["a.yaml", *names]])
        error = refusal(lambda: read_slots(tmp_path / "x.nemo"))
        assert error.code == "AT118"
        assert all(name in str(error) for name in names)


def test_a_window_is_a_file_of_its_own(tmp_path: Path) -> None:
    """Reads stay within it, and a torch file in the midst of anything is read through it."""
    rows = [Stored("a", "U8", (3,), lambda: np.array([1, 2, 3], np.uint8))]
    inner = io.BytesIO()
    write_torch(inner, rows)
    data = inner.getvalue()
    path = tmp_path / "x"
    path.write_bytes(b"before!" + data + b"after")
    with path.open("rb") as file:
        stream = io.BufferedReader(Window(file, 7, len(data)))
        assert stream.read() == data and stream.read() == b""
        assert stream.seek(-3, os.SEEK_END) == len(data) - 3 and stream.read() == data[-3:]
        stream.seek(5)
        assert stream.seek(2, os.SEEK_CUR) == 7 and stream.read(3) == data[7:10]
        with pytest.raises(ValueError, match="negative"):
            Window(file, 7, 2).seek(-1)
    slot = read_torch(path, (7, len(data)))["a"]
    assert path.read_bytes()[slot.offset : slot.end] == b"\1\2\3"
    with pytest.raises(SourceError):
        read_torch(path, (6, len(data)))
    with pytest.raises(SourceError):
        read_torch(path, (0, 0))


def test_unsafe_names() -> None:
    """What would leave the folder that it is put into."""
    assert all(map(is_unsafe, ["..", "a/..", "../a", "/a", "a\\..\\b", "\\a", "a\0", ""]))
    assert not any(map(is_unsafe, ["a", "a/b", "./a", "a..b", "...", "w:0", "."]))
