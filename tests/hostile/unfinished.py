"""Merges that are stopped half way: how to start, stop, resume and compare them."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

import adaptertools

from .arena import Arena, command, environment

SHARDS = 6
INDEX = "model.safetensors.index.json"


def hashes(directory: Path) -> dict[str, str]:
    """Return the sha256 of every file below a directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def journal(arena: Arena) -> Path:
    """Return the hidden directory of an unfinished merge."""
    return arena.out.with_name(f".{arena.out.name}.adaptertools-partial")


def start(arena: Arena, *options: object) -> subprocess.Popen[bytes]:
    """Start a merge in a child and return once its journal exists (or the child has ended)."""
    child = subprocess.Popen(
        command("merge", arena.base, arena.adapter, "-o", arena.out, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not journal(arena).exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    return child


def finish(child: subprocess.Popen[bytes], timeout: float = 30) -> tuple[int, str]:
    """Wait for a child and return its exit code and all it said; a child that hangs is killed."""
    try:
        out, err = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise AssertionError(f"the program hung for {timeout:g} s") from None
    text = (out + err).decode(errors="replace")
    assert "Traceback" not in text, text
    return child.returncode, text


def kill(arena: Arena, delay: float = 0.0, *options: object) -> bool:
    """Kill a merge some time after its journal appeared; return whether that was in time."""
    child = start(arena, *options)
    time.sleep(delay)
    child.kill()
    code, text = finish(child)
    assert code in {-signal.SIGKILL, 0}, text
    return code != 0


def half_done(arena: Arena, *options: object) -> None:
    """Leave a merge half done: killed after its first task is noted, before there is an output."""
    for _ in range(5):
        child = start(arena, *options)
        while child.poll() is None and not _noted(journal(arena)):
            time.sleep(0.001)
        child.kill()
        child.communicate()
        if journal(arena).exists():
            return
        shutil.rmtree(arena.out)
    pytest.fail("the merge was over before it could be killed")


def _noted(folder: Path) -> bool:
    """Say whether the journal has a line after its first."""
    try:
        return (folder / "journal.jsonl").read_bytes().count(b"\n") > 1
    except OSError:
        return False


def again(arena: Arena, **options: object) -> None:
    """Merge to the end, in this process: what resumes a child's work need not be a child."""
    adaptertools.merge(arena.base, [arena.adapter], arena.out, **options)


def only(arena: Arena, *names: Path) -> None:
    """Assert that nothing else is beside the output."""
    assert {path.name for path in arena.root.iterdir()} == {name.name for name in names}


def own_inputs(run: Arena) -> Arena:
    """Give the arena copies of the inputs, to be changed."""
    for name in ("base", "adapter"):
        copy = run.root / "in" / name
        shutil.copytree(getattr(run, name), copy)
        setattr(run, name, copy)
    return run
