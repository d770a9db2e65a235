"""Containers that lie: cut, spoiled, bombs, names that climb, code inside; always a SourceError."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import random
import resource
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptertools.errors import SourceError
from adaptertools.store.pickled import UnsafePickleError, interpret
from adaptertools.store.read import read_bits, read_slots
from adaptertools.store.stored import Stored
from adaptertools.store.tar import read_tar, write_tar
from adaptertools.store.torchsave import torch_size, write_torch

from .test_files import HTML, LFS
from .test_pickles import Payload

ARRAYS = {
    "a": np.arange(40, dtype=np.float32).reshape(4, 10),
    "b.c": np.arange(7, dtype=np.int64),
    "turned": np.arange(6, dtype=np.float16).reshape(2, 3).T,
}


def savez(path: Path) -> None:
    np.savez(path, **ARRAYS)


def savez_compressed(path: Path) -> None:
    np.savez_compressed(path, **ARRAYS)


def save_npy(path: Path) -> None:
    np.save(path, ARRAYS["a"])


def save_torch(path: Path) -> None:
    torch.save({"model": {n: torch.from_numpy(a) for n, a in ARRAYS.items()}}, path)


def rows() -> list[Stored]:
    return [Stored("a", "F32", (4, 10), lambda: ARRAYS["a"].view(np.uint32))]


def save_ours(path: Path) -> None:
    write_torch(path, rows())


def save_nemo(path: Path) -> None:
    weights = ("./model_weights.ckpt", lambda stream: write_torch(stream, rows()))
    write_tar(path, [("model_config.yaml", b"a: 1\n", 5), (*weights, torch_size(rows()))])


MAKERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "npz": (".npz", savez),
    "compressed": (".npz", savez_compressed),
    "npy": (".npy", save_npy),
    "torch": (".pt", save_torch),
    "lora": (".pth.lora", save_ours),
    "nemo": (".nemo", save_nemo),
}


def read_all(path: Path) -> dict[str, Any]:
    """Read every tensor of a file."""
    return {name: read_bits(slot).copy() for name, slot in read_slots(path).items()}


def refused(path: Path, *codes: str) -> SourceError:
    """Read a file that must be refused with one of these codes, and with its name."""
    with pytest.raises(SourceError) as caught:
        read_all(path)
    assert caught.value.code in codes, str(caught.value)
    assert caught.value.where.file == str(path)
    return caught.value


@pytest.mark.parametrize("kind", MAKERS)
def test_a_cut_file_is_refused(tmp_path: Path, kind: str) -> None:
    """Wherever it is cut; the whole file is read."""
    suffix, make = MAKERS[kind]
    good, cut = tmp_path / f"good{suffix}", tmp_path / f"cut{suffix}"
    make(good)
    data = good.read_bytes()
    assert read_all(good)
    end = len(data)
    if kind == "nemo":  # the padding to a record of 10240 may be missing, the end mark may not
        last = list(read_tar(good).members.values())[-1]
        end = last.offset + -(-last.size // 512) * 512 + 1024
    step = 1 if kind == "npy" else 13
    for size in sorted({*range(0, end, step), *range(max(0, end - 60), end)}):
        cut.write_bytes(data[:size])
        refused(cut, "AT100", "AT101", "AT108", "AT110", "AT112", "AT118")
    cut.write_bytes(data[:end])
    assert [a.tobytes() for a in read_all(cut).values()] == [
        a.tobytes() for a in read_all(good).values()
    ]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("seed", range(4))
def test_a_spoiled_file_ends_in_values_or_a_refusal(tmp_path: Path, kind: str, seed: int) -> None:
    """Bytes are changed, doubled, dropped: no other exception, and often a refusal."""
    suffix, make = MAKERS[kind]
    path = tmp_path / f"x{suffix}"
    make(path)
    data, dice, count = path.read_bytes(), random.Random(f"{kind}{seed}"), 0
    for _ in range(150):
        bad = bytearray(data)
        for _ in range(dice.choice([1, 1, 2, 8])):
            at = dice.randrange(len(bad))
            bad[at : at + dice.choice([0, 1, 1, 1, 4])] = dice.choice(
                [bytes([dice.randrange(256)]), b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x80", b""]
            )
        path.write_bytes(bad)
        try:
            read_all(path)
        except SourceError as error:
            assert error.code in {f"AT{n}" for n in (100, 101, 108, *range(110, 119))}
            count += 1
    assert count > 10


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("content", [LFS, HTML, b"", b"x" * 5000, b"\0" * 20_000])
def test_something_else_in_its_place(tmp_path: Path, kind: str, content: bytes) -> None:
    """A pointer, a web page, nothing, noise; zeros are an empty tar, which has no weights."""
    path = tmp_path / f"x{MAKERS[kind][0]}"
    path.write_bytes(content)
    refused(path, "AT101" if content in (LFS, HTML) else "AT110", "AT112", "AT118")


# --- npz ----------------------------------------------------------------------------------------


def npy(descr: str, shape: str, data: bytes, fortran: str = "False", end: str = "") -> bytes:
    """Return a .npy with any header."""
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}{end}}}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def npz(path: Path, packed: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    """Write a zip of any members."""
    with zipfile.ZipFile(path, "w", packed) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_arrays_of_objects_are_not_loaded(tmp_path: Path, packed: int) -> None:
    """AT113, by name, and the pickle in it does not run; numpy itself would run it."""
    marker = tmp_path / "marker"
    array = np.array([Payload(marker)], dtype=object)
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    path = npz(tmp_path / "x.npz", packed, **{"evil.npy": stream.getvalue()})
    error = refused(path, "AT113")
    assert error.where.key == "evil" and "not run" in error.message
    (tmp_path / "evil.npy").write_bytes(stream.getvalue())
    assert refused(tmp_path / "evil.npy", "AT113").where.key == "evil"
    assert not marker.exists()
    np.load(tmp_path / "evil.npy", allow_pickle=True)
    assert marker.exists(), "the control: the payload works"


GOOD = ("'<f4'", "(2,)", b"\0" * 8)
LIES = {
    "good": (GOOD, ""),
    "longer": (("'<f4'", "(3,)", b"\0" * 8), "AT112"),
    "shorter": (("'<f4'", "(1,)", b"\0" * 8), "AT112"),
    "huge": (("'<f4'", "(1000000000000,)", b"\0" * 8), "AT112"),
    "past 64 bits": (("'<f4'", "(4294967296, 4294967296, 4)", b""), "AT112"),
    "empty and huge": (("'<f4'", "(0, 18446744073709551616)", b""), "AT112"),
    "many dimensions": (("'<f4'", f"({'1, ' * 65})", b"\0" * 4), "AT112"),
    "negative": (("'<f4'", "(-2,)", b"\0" * 8), "AT112"),
    "bool": (("'<f4'", "(True, 2)", b"\0" * 8), "AT112"),
    "float": (("'<f4'", "(2.0,)", b"\0" * 8), "AT112"),
    "no tuple": (("'<f4'", "2", b"\0" * 8), "AT112"),
    "list": (("'<f4'", "[2]", b"\0" * 8), "AT112"),
    "call": (("'<f4'", "(__import__('os').system('true'),)", b"\0" * 8), "AT112"),
    "sum": (("'<f4'", "(1+1,)", b"\0" * 8), "AT112"),
    "long number": (("'<f4'", f"({'9' * 5000},)", b"\0" * 8), "AT112"),
    "deep": (("'<f4'", "(" * 3000 + "2" + ")" * 3000, b"\0" * 8), "AT112"),
    "signs": (("'<f4'", f"({'-' * 9000}2,)", b"\0" * 8), "AT112"),
    "too long a header": (("'<f4'", "(2,)" + " " * 20_000, b"\0" * 8), "AT112"),
    "fortran": ((*GOOD, "1"), "AT112"),
    "one more field": ((*GOOD, "False", ", 'x': 1"), "AT112"),
    "big-endian": (("'>f4'", "(2,)", b"\0" * 8), "AT114"),
    "records": (("[('a', '<f4')]", "(2,)", b"\0" * 8), "AT114"),
    "text": (("'<U1'", "(2,)", b"\0" * 8), "AT114"),
    "dates": (("'<M8[s]'", "(1,)", b"\0" * 8), "AT114"),
    "long double": (("'<f16'", "(1,)", b"\0" * 16), "AT114"),
    "f3": (("'<f3'", "(2,)", b"\0" * 6), "AT114"),
    "void": (("'|V1'", "(2,)", b"\0" * 2), "AT114"),
    "number": (("4", "(2,)", b"\0" * 8), "AT114"),
    "objects": (("'|O'", "(2,)", b"\0" * 16), "AT113"),
}


@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie(tmp_path: Path, lie: str, packed: int) -> None:
    """Each broken rule has its code, in a .npz and in a .npy, before anything is allocated."""
    arguments, code = LIES[lie]
    data = npy(*arguments)
    (tmp_path / "x.npy").write_bytes(data)
    for path in (tmp_path / "x.npy", npz(tmp_path / "x.npz", packed, **{"x.npy": data})):
        if code:
            assert refused(path, code).where.key == "x"
        else:
            assert read_all(path)["x"].tolist() == [0, 0]


@pytest.mark.parametrize("name", ["../x.npy", "/x.npy", "a/../../x.npy", "..\\x.npy"])
def test_names_that_climb(tmp_path: Path, name: str) -> None:
    """They are refused, though nothing is extracted."""
    assert refused(npz(tmp_path / "x.npz", **{name: npy(*GOOD)}), "AT115").where.key == name[:-4]
    assert read_all(npz(tmp_path / "y.npz", **{name.lstrip("./\\").replace("..", "b"): npy(*GOOD)}))


@pytest.mark.parametrize("name", ["x.txt", "folder/", "npy"])
def test_members_that_are_no_arrays(tmp_path: Path, name: str) -> None:
    """What numpy would return as raw bytes is refused."""
    path = npz(tmp_path / "x.npz", **{"a.npy": npy(*GOOD), name: npy(*GOOD)})
    assert refused(path, "AT112").where.key == name


def test_a_name_twice(tmp_path: Path) -> None:
    """Readers differ in which one they take."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", npy(*GOOD))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.npy", npy(*GOOD))
    assert "twice" in refused(tmp_path / "x.npz", "AT112").message


@pytest.mark.parametrize("packed", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(tmp_path: Path, packed: int) -> None:
    """No writer of .npz uses them."""
    refused(npz(tmp_path / "x.npz", packed, **{"a.npy": npy(*GOOD)}), "AT112")


def forge(path: Path, change: Callable[[zipfile.ZipInfo], None]) -> None:
    """Write the central directory of a zip again with changed entries."""
    with zipfile.ZipFile(path, "a") as archive:
        for info in archive.infolist():
            change(info)
        archive._didModify = True  # type: ignore[attr-defined]


def test_encrypted_members(tmp_path: Path) -> None:
    """zipfile would ask for a password."""
    for packed in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = npz(tmp_path / "x.npz", packed, **{"a.npy": npy(*GOOD)})
        data = bytearray(path.read_bytes())
        data[data.rindex(b"PK\x01\x02") + 8] |= 1
        data[6] |= 1
        path.write_bytes(data)
        refused(path, "AT112")


@pytest.mark.parametrize("claim", [2 * 10**6, 10**9, 2**40])
def test_a_bomb_that_only_claims(tmp_path: Path, claim: int) -> None:
    """A deflated member of a few bytes cannot hold megabytes, whatever both headers say."""
    data = npy("'|u1'", f"({claim},)", b"\0" * 1000)
    path = npz(tmp_path / "x.npz", zipfile.ZIP_DEFLATED, **{"a.npy": data})

    def lie(info: zipfile.ZipInfo) -> None:
        info.file_size = len(data) - 1000 + claim

    forge(path, lie)
    assert "inflate" in refused(path, "AT117").message


def test_a_bomb_that_holds_what_it_claims(tmp_path: Path) -> None:
    """A gigabyte of zeros in a megabyte is refused unread; 200 MB of them is read."""
    for size, code in ((200 << 20, ""), (1 << 30, "AT117")):
        path = tmp_path / "x.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            head = npy("'|u1'", f"({size},)", b"")
            with archive.open("a.npy", "w", force_zip64=True) as stream:
                stream.write(head)
                for _ in range(size >> 22):
                    stream.write(bytes(1 << 22))
        if code:
            refused(path, code)
        else:
            assert read_slots(path)["a"].size == size


def test_a_member_that_inflates_to_more_than_it_says(tmp_path: Path) -> None:
    """The central directory and the array agree on 8 bytes of data, the stream has 8000."""
    data = npy(*GOOD[:2], os.urandom(80_000))
    path = npz(tmp_path / "x.npz", zipfile.ZIP_DEFLATED, **{"a.npy": data})

    def lie(info: zipfile.ZipInfo) -> None:
        info.file_size -= 80_000 - 8

    forge(path, lie)
    refused(path, "AT112")


def test_a_stored_member_beyond_the_file(tmp_path: Path) -> None:
    """The directory and the array claim a terabyte that is not there."""
    path = npz(tmp_path / "x.npz", **{"a.npy": npy("'|u1'", f"({2**40},)", b"\0" * 8)})

    def lie(info: zipfile.ZipInfo) -> None:
        info.file_size = info.compress_size = info.file_size - 8 + 2**40

    forge(path, lie)
    assert "truncated" in refused(path, "AT112").message


# --- tar ----------------------------------------------------------------------------------------


def tar(path: Path, *infos: tuple[str, bytes, str], data: bytes = b"12345") -> Path:
    """Write a tar of members (name, type, link name), good ones around them."""
    with tarfile.open(path, "w:", format=tarfile.GNU_FORMAT) as archive:
        for name, kind, link in (
            ("good", tarfile.REGTYPE, ""),
            *infos,
            ("also good", tarfile.REGTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(data))
    return path


CLIMBING = ["../x", "/etc/passwd", "a/../../x", "./../x", "..", "a\\..\\..\\x", "../" + "x" * 200]
KINDS = {
    "symbolic link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "pipe": tarfile.FIFOTYPE,
    "contiguous": tarfile.CONTTYPE,
    "sparse": tarfile.GNUTYPE_SPARSE,
    "unknown": b"Z",
}


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
@pytest.mark.parametrize("name", CLIMBING)
def test_tar_names_that_climb(tmp_path: Path, name: str, kind: bytes) -> None:
    """Refused by name, in plain headers and in long ones."""
    with pytest.raises(SourceError) as caught:
        read_tar(tar(tmp_path / "x.nemo", (name, kind, "")))
    assert caught.value.code == "AT115"
    assert (caught.value.where.key or "").removesuffix("/") == name
    with tarfile.open(tmp_path / "y.nemo", "w:", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("harmless")
        info.pax_headers = {"path": name}
        archive.addfile(info)
    refused(tmp_path / "y.nemo", "AT115")
    assert "good" in read_tar(tar(tmp_path / "z.nemo", ("x", kind, ""))).members


@pytest.mark.parametrize("kind", KINDS)
def test_tar_members_that_are_no_files(tmp_path: Path, kind: str) -> None:
    """Links could point anywhere, devices are no data."""
    with pytest.raises(SourceError) as caught:
        read_tar(tar(tmp_path / "x.nemo", ("evil", KINDS[kind], "/etc/passwd")))
    assert (caught.value.code, caught.value.where.key) == ("AT115", "evil")


def header(name: bytes = b"a", size: bytes = b"00000000005\0", kind: bytes = b"0") -> bytes:
    """Return a tar header with any size field, its checksum right."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[124:136], block[156:157] = b"0000644\0", size, kind
    block[257:265], block[148:156] = b"ustar\x0000", b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


BODY, END = b"12345".ljust(512, b"\0"), bytes(1024)
PAX = b"16 size=1000000\n"
SIZES = {
    "good": (header() + BODY, ""),
    "octal": (header(size=b"77777777777\0") + BODY, "AT112"),
    "base 256": (header(size=b"\x80" + b"\xff" * 11) + BODY, "AT112"),
    "negative": (header(size=b"\xff" * 12) + BODY, "AT112"),
    "minus": (header(size=b"-0000000005\0") + BODY, "AT112"),
    "no number": (header(size=b"abcdefghijk\0") + BODY, "AT112"),
    "underscore": (header(size=b"0_0_0_0_0_5\0") + BODY, "AT112"),
    "pax size": (header(b"p", b"%011o\0" % len(PAX), b"x") + PAX.ljust(512, b"\0") + header()
                 + BODY, "AT112"),
    "long pax": (header(b"p", b"%011o\0" % 200_704, b"x") + b"200704 comment=".ljust(200_704, b"x")
                 + header() + BODY, "AT112"),
    "shorter pax": (header(b"p", b"%011o\0" % 20_480, b"x") + b"20480 comment=".ljust(20_480, b"x")
                    + header() + BODY, ""),
    "pax garbage": (header(b"p", b"00000000005\0", b"x") + BODY + header() + BODY, "AT112"),
    "pax lying length": (header(b"p", b"00000000012\0", b"x") + b"99 path=ab\n".ljust(512, b"\0")
                         + header() + BODY, "AT112"),
    "pax negative size": (header(b"p", b"00000000013\0", b"x") + b"11 size=-5\n".ljust(512, b"\0")
                          + header() + BODY, "AT112"),
    "long name cut": (header(b"p", b"00000000005\0", b"L") + BODY, "AT112"),
    "twice": ((header() + BODY) * 2, "AT112"),
    "no name": (header(b"") + BODY, "AT115"),
    "not UTF-8": (header(b"\xff\xfe") + BODY, "AT112"),
    "lone zero block": (header() + BODY + bytes(512) + header(b"b") + BODY, "AT112"),
    "noise": (header() + BODY + b"x" * 512, "AT112"),
}  # fmt: skip


@pytest.mark.parametrize("lie", SIZES)
def test_tar_headers_that_lie(tmp_path: Path, lie: str) -> None:
    """Sizes past the file, negative, in pax records; damaged names."""
    data, code = SIZES[lie]
    (tmp_path / "x.tar").write_bytes(data + (b"" if lie == "long name cut" else END))
    if not code:
        member = read_tar(tmp_path / "x.tar").members["a"]
        assert data[member.offset :][: member.size] == b"12345"
        return
    with pytest.raises(SourceError) as caught:
        read_tar(tmp_path / "x.tar")
    assert caught.value.code == code


def test_a_spoiled_checksum(tmp_path: Path) -> None:
    """Every byte of a header is covered by its checksum."""
    for at in range(512):
        data = bytearray(header() + BODY + header(b"b") + BODY + END)
        data[1024 + at] ^= 0x41
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(SourceError):
            read_tar(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("word", "pack"), [("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress)]
)
def test_a_compressed_tar_is_told(tmp_path: Path, word: str, pack: Any) -> None:
    """AT116, with what to do."""
    save_nemo(tmp_path / "x.nemo")
    (tmp_path / "y.nemo").write_bytes(pack((tmp_path / "x.nemo").read_bytes()))
    error = refused(tmp_path / "y.nemo", "AT116")
    assert word in error.message and f"{word} -dc" in error.hint


@pytest.mark.parametrize("inner", ["code", "legacy code", "npz", "cut"])
def test_the_torch_file_in_a_tar(tmp_path: Path, inner: str) -> None:
    """It is read as carefully as one outside."""
    marker, stream = tmp_path / "marker", io.BytesIO()
    if inner == "npz":
        np.savez(stream, **ARRAYS)
    elif inner == "cut":
        write_torch(stream, rows())
        stream.truncate(stream.tell() - 1)
    else:
        zipped = inner == "code"
        torch.save({"a": Payload(marker)}, stream, _use_new_zipfile_serialization=zipped)
    data = stream.getvalue()
    write_tar(tmp_path / "x.nemo", [("model_weights.ckpt", data, len(data))])
    refused(tmp_path / "x.nemo", "AT110", "AT111")
    assert not marker.exists()


# --- torch --------------------------------------------------------------------------------------


def hostile_zip(path: Path, pickled: bytes, storage: bytes = b"\0" * 24) -> Path:
    """Write a zip as torch.save does, with any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", storage)
    return path


def interpreted(data: bytes, megabytes: int = 1500) -> subprocess.CompletedProcess[str]:
    """Interpret a pickle in a process of its own, with a limit on its memory."""
    code = (
        "import sys\n"
        "from adaptertools.store.pickled import *\n"
        "try: interpret(sys.stdin.buffer.read())\n"
        "except UnsafePickleError as e: print('refused:', e)\n"
        "else: print('read')"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    done = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, preexec_fn=limit, timeout=60,
        check=False,
    )  # fmt: skip
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode())


def test_a_deep_key_does_not_end_the_process() -> None:
    """Hashing a tuple nested a million times overflows the stack of C; no key is nested."""
    deep = b")" + b"\x85" * 1_000_000
    calls = b"ccollections\nOrderedDict\n]](" + deep + b"K\x01ea\x85R."
    for data in (b"}" + deep + b"K\x01s.", b"}(" + deep + b"K\x01u.", calls):
        done = interpreted(b"\x80\x02" + data)
        assert done.returncode == 0, done
        assert "a key that is a tuple" in done.stdout
    assert interpreted(b"\x80\x02" + deep + b".").stdout == "read\n"


def test_copies_do_not_add_up() -> None:
    """A list is called into a set again and again: bounded by the size of the pickle."""
    many = b"](" + b"K\x01" * 1_000_000 + b"eq\x00"
    call = b"cbuiltins\nset\nh\x00\x85R"
    done = interpreted(b"\x80\x02(" + many + call * 1000 + b"t.")
    assert (done.returncode, done.stdout) == (0, "refused: more items than it has bytes\n")
    assert interpret(b"\x80\x02(" + many + call + b"t.")[1] == [1] * 1_000_000


def test_marks_are_found_at_once() -> None:
    """A deep stack with many marks takes no time that grows with their product."""
    data = b"\x80\x02(" + b"K\x01" * 200_000 + b"(t" * 200_000 + b"t."
    start = time.process_time()
    assert len(interpret(data)) == 400_000
    assert time.process_time() - start < 30


@pytest.mark.parametrize(
    "data",
    [b"\x80\x02}(cos\nsystem\nK\x01u.", b"\x80\x02}K\x01\x85K\x02s.", b"\x80\x02}]K\x02s."],
)
def test_keys_are_plain(data: bytes) -> None:
    """A global, a tuple and a list are no keys of a state dict."""
    with pytest.raises(UnsafePickleError, match="a key that is a"):
        interpret(data)


def tensor_pickle(shape: tuple[int, ...], strides: tuple[int, ...], name: str = "w") -> bytes:
    """Return the pickle of one tensor with any sizes."""
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        b"K\x06tQ"
    )
    shapes = pickle.dumps(shape, 2)[2:-1], pickle.dumps(strides, 2)[2:-1]
    text = name.encode("utf-8", "surrogatepass")
    key = b"X" + len(text).to_bytes(4, "little") + text
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return b"\x80\x02}" + key + rebuild + storage + b"K\x00" + b"".join(shapes) + b"\x89NtRs."


ABSURD = {
    "good": ((2, 3), (3, 1), ""),
    "expanded": ((1000, 6), (0, 1), ""),
    "expanded to terabytes": ((10**12, 6), (0, 1), "AT110"),
    "past 64 bits": ((2**40, 2**40), (0, 0), "AT110"),
    "empty and past 64 bits": ((0, 2**70), (1, 1), "AT110"),
    "outside": ((2, 4), (3, 1), "AT110"),
    "outside by strides": ((2, 2), (5, 1), "AT110"),
    "negative": ((-2, 3), (3, 1), "AT111"),
    "negative strides": ((2, 3), (-3, 1), "AT111"),
    "many dimensions": ((1,) * 65, (1,) * 65, "AT111"),
}


@pytest.mark.parametrize("lie", ABSURD)
def test_tensors_of_absurd_sizes(tmp_path: Path, lie: str) -> None:
    """Nothing is allocated that the file does not hold, but for a bounded repetition."""
    shape, strides, code = ABSURD[lie]
    path = hostile_zip(tmp_path / "x.bin", tensor_pickle(shape, strides))
    if code:
        refused(path, code)
    else:
        assert read_all(path)["w"].shape == shape


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """A lone surrogate could not be written again, nor printed."""
    path = hostile_zip(tmp_path / "x.bin", tensor_pickle((2, 3), (3, 1), "w\ud800"))
    assert "UTF-8" in str(refused(path, "AT110"))


@pytest.mark.parametrize("dtype", [torch.complex128, torch.quint8])
def test_legacy_tensors_of_other_kinds(tmp_path: Path, dtype: torch.dtype) -> None:
    """Dtypes without a name here, and sparse tensors, are refused."""
    tensors = [torch.eye(2).to_sparse()]
    if dtype == torch.quint8:
        tensors.append(torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.quint8))
    else:
        tensors.append(torch.ones(2, dtype=dtype))
    for tensor in tensors:
        torch.save({"w": tensor}, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
        refused(tmp_path / "x.bin", "AT110")


def test_a_storage_whose_place_is_a_lie(tmp_path: Path) -> None:
    """The directory sends the reader to another place, or says other sizes."""

    def elsewhere(info: zipfile.ZipInfo) -> None:
        info.header_offset += 3

    def large(info: zipfile.ZipInfo) -> None:
        info.file_size = info.compress_size = 2**40

    def uneven(info: zipfile.ZipInfo) -> None:
        info.file_size += 1

    path = hostile_zip(tmp_path / "x.bin", tensor_pickle((2, 3), (3, 1)))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"PK\x03\x04", b"PK\x03\x05"))
    refused(path, "AT110")
    first, second = data.index(b"PK\x03\x04"), data.rindex(b"PK\x03\x04")
    assert first < second
    path.write_bytes(data[:second] + b"XX" + data[second + 2 :])
    refused(path, "AT110")
    for lie in (elsewhere, large, uneven):
        path = hostile_zip(tmp_path / "x.bin", tensor_pickle((2, 3), (3, 1)))
        assert read_all(path)
        forge(path, lambda info, lie=lie: lie(info) if info.filename.endswith("/0") else None)
        refused(path, "AT110")
