"""Torch pickles as data: nothing is imported, nothing is called, what is not tensors is named."""

from __future__ import annotations

import collections
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptertools.errors import SourceError
from adaptertools.store.pickled import UnsafePickleError, interpret
from adaptertools.store.read import read_slots

CALLS: list[str] = []


class Reduced:
    """An object that pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def shout(text: str) -> str:
    """Leave a trace if anybody calls this."""
    CALLS.append(text)
    return text


HOSTILE = {
    "posix.system": Reduced(os.system, "touch /tmp/never"),
    "builtins.eval": Reduced(eval, "1"),
    "builtins.exec": Reduced(exec, "1"),
    "builtins.getattr": Reduced(getattr, "a", "b"),
    "subprocess.Popen": Reduced(subprocess.Popen, ["true"]),
    f"{__name__}.shout": Reduced(shout, "run"),
    "builtins.print": [1, {"a": Reduced(print, "x")}],
    "collections.Counter": collections.Counter("ab"),
    "torch.storage._load_from_bytes": Reduced(torch.storage._load_from_bytes, "x"),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_call_is_refused_by_name(name: str, protocol: int) -> None:
    """Whatever the protocol, the function is named and not run."""
    with pytest.raises(UnsafePickleError) as caught:
        interpret(pickle.dumps(HOSTILE[name], protocol))
    assert name.rpartition(".")[2] in str(caught.value)
    assert CALLS == []


def test_nothing_is_imported() -> None:
    """A pickle that names a module does not load it."""
    module = "xml.dom.expatbuilder"
    assert module not in sys.modules
    for text in (f"c{module}\nparse\n(tR.", f"c{module}\nparse\n."):
        try:
            interpret(text.encode())
        except UnsafePickleError as error:
            assert module in str(error)
    assert module not in sys.modules


class Stateful:
    """A class instance: an object with state."""

    def __init__(self) -> None:
        self.a = 1


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Stateful()),
        pickle.dumps({"a": Stateful()}, 2),
        b"(i__main__\nFoo\n.",
        b"(cos\nsystem\nX\x01\x00\x00\x00ao.",
        b"\x80\x02cos\nsystem\n\x82\x01.",
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02}q\x00(X",
        b"\x80\x02]q\x01h\x05.",
        b"not a pickle",
        b"\x80\x02)R.",
        pickle.dumps([1])[:-1],
    ],
)
def test_what_is_not_plain_data_is_refused(data: bytes) -> None:
    """Objects, extension codes, damage and truncation all end in one kind of error."""
    with pytest.raises(UnsafePickleError):
        interpret(data)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        {"a": 1, "b": [1.5, None, True, "x"], "c": (1, (2, 3), {})},
        collections.OrderedDict([("k", 1), ("l", (1, 2, 3, 4))]),
        [2**40, -(2**70), b"bytes", ""],
        [[0] * 300, list(range(300))],
    ],
)
def test_plain_values_are_read(value: Any, protocol: int) -> None:
    """Containers, numbers and strings come back equal, in every protocol torch ever used."""
    if protocol < 2 or (protocol < 3 and isinstance(value, list) and b"bytes" in value):
        protocol = 3
    assert interpret(pickle.dumps(value, protocol)) == value


def hostile_zip(path: Path, pickled: bytes) -> Path:
    """Write a zip as torch.save does, with any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return path


def test_a_hostile_file_is_told(tmp_path: Path) -> None:
    """AT111 names the call, the file, and what to ask for."""
    trace = tmp_path / "trace"
    bad = pickle.dumps({"w": Reduced(os.system, f"touch {trace}")}, 2)
    path = hostile_zip(tmp_path / "pytorch_model.bin", bad)
    with pytest.raises(SourceError) as caught:
        read_slots(path)
    assert caught.value.code == "AT111"
    assert "system" in str(caught.value)
    assert "safetensors" in caught.value.hint
    assert not trace.exists()


@pytest.mark.parametrize("value", [{"w": 1}, {"w": [1]}, [1, 2], 3, {1: None}, "text"])
def test_a_file_without_a_table_of_tensors_is_told(tmp_path: Path, value: Any) -> None:
    """AT110 says that it holds no table of tensors."""
    torch.save(value, tmp_path / "x.bin")
    with pytest.raises(SourceError) as caught:
        read_slots(tmp_path / "x.bin")
    assert caught.value.code == "AT110"


def test_a_hostile_legacy_file_is_told(tmp_path: Path) -> None:
    """The old format is not run either."""
    trace = tmp_path / "trace"
    value = {"w": Reduced(os.system, f"touch {trace}")}
    torch.save(value, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(SourceError):
        read_slots(tmp_path / "x.bin")
    assert not trace.exists()


def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path) -> None:
    """Sizes are checked against the file before anything is read."""
    path, forged = tmp_path / "good.bin", tmp_path / "bad.bin"
    torch.save({"w": torch.arange(6.0).reshape(2, 3)}, path)
    with zipfile.ZipFile(path) as good, zipfile.ZipFile(forged, "w") as bad:
        for info in good.infolist():
            data = good.read(info)
            if info.filename.endswith("data.pkl"):
                assert data.count(b"K\x02K\x03\x86") == 1
                data = data.replace(b"K\x02K\x03\x86", b"K\x02K\x63\x86")
            bad.writestr(info.filename, data)
    assert read_slots(path)["w"].shape == (2, 3)
    with pytest.raises(SourceError, match="outside its storage"):
        read_slots(forged)
