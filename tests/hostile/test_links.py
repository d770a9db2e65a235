"""Links, odd names, permissions and poor locales."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .arena import Arena, cli, command, environment


def to_cache(directory: Path, blobs: Path) -> None:
    """Lay a directory out as the hub cache does: every file a link to a blob elsewhere."""
    blobs.mkdir()
    for number, path in enumerate(sorted(directory.iterdir())):
        path.rename(blobs / f"blob-{number}")
        path.symlink_to(os.path.relpath(blobs / f"blob-{number}", directory))


def test_hub_cache_layout(sharded: Arena) -> None:
    """Links out of the directory are legal: the hub cache is made of them."""
    to_cache(sharded.base, sharded.root / "blobs-base")
    to_cache(sharded.adapter, sharded.root / "blobs-adapter")
    sharded.passes()
    assert not any(path.is_symlink() for path in sharded.out.rglob("*")), "the output links out"


def test_linked_directories(arena: Arena) -> None:
    """Base and adapter may be links to directories."""
    for name in ("base", "adapter"):
        link = arena.root / f"link to {name}"
        link.symlink_to(getattr(arena, name), target_is_directory=True)
        setattr(arena, name, link)
    arena.passes()


def test_read_only_inputs(arena: Arena) -> None:
    """Read-only inputs are enough, and the output is not read-only like them."""
    for directory in (arena.base, arena.adapter):
        for path in directory.iterdir():
            path.chmod(0o444)
        directory.chmod(0o555)
    arena.passes()
    for path in (arena.out, *arena.out.rglob("*")):
        assert path.stat().st_mode & 0o200, f"{path} cannot be written or removed"


NAMES = [
    "with spaces  and 'quotes' \"double\"",
    "モデル-é-😀",
    "-leading-dash",
    "a=b",
    "x=0.5",
    "semi;colon&$(touch evil)`",
    "percent %s {0} \\n",
    "new\nline",
    "esc \x1b[31m\x1b]0;title\x07",
    "c1 \x9b31m",
    "rtl \u202e txt",
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_odd_names(arena: Arena, name: str) -> None:
    """Directories may be called anything; what is printed of them is harmless."""
    arena.base = arena.base.rename(arena.root / f"{name} base")
    arena.adapter = arena.adapter.rename(arena.root / f"{name} adapter=0.5")
    arena.out = arena.root / f"{name} out"
    arena.passes()
    again = cli(*("merge", arena.base, arena.adapter, "-o", arena.out, "--overwrite", "--dry-run"))
    shown = cli("inspect", arena.adapter)
    for result in (again, shown):
        assert result.code == 0, result.text
        assert not any(line.startswith("line ") for line in result.text.splitlines())


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_names_that_are_not_text(arena: Arena, locale: str) -> None:
    """File names are bytes; neither they nor a poor locale may break the output."""
    env = environment(LC_ALL=locale, LANG=locale, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    for name in ("base", "adapter"):
        path = arena.root / os.fsdecode(name.encode() + b" \xff\xfe\xc3\xa9")
        setattr(arena, name, getattr(arena, name).rename(path))
    arena.out = arena.root / os.fsdecode(b"out \xff\xc3\xa9")
    arena.passes_cli(env=env)
    (arena.adapter / "adapter_model.safetensors").unlink()
    shutil.rmtree(arena.out)
    arena.refuses_cli(env=env)


def test_relative_paths(arena: Arena) -> None:
    """Relative paths, with and without dots, mean the current directory."""
    result = cli("merge", "base/", "./adapter", "-o", "sub/../out/", cwd=arena.root)
    if result.code:  # `sub` does not exist: POSIX lets `sub/..` fail
        result = cli("merge", "base/", "./adapter", "-o", "./out/", cwd=arena.root)
    assert result.code == 0, result.text
    arena.check()


def test_reader_that_went_away(arena: Arena) -> None:
    """A closed pipe ends the program quietly."""
    child = subprocess.Popen(
        command("inspect", arena.adapter),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert child.stdout and child.stderr
    child.stdout.close()
    said = child.stderr.read().decode()
    child.wait(timeout=30)
    child.stderr.close()
    assert "Traceback" not in said
    assert "Exception ignored" not in said
