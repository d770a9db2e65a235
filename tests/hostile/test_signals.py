"""Ctrl-C at every moment, inputs that change under a merge, and two merges at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from builders import read_checkpoint

from .arena import Arena, command, environment
from .unfinished import (
    INDEX,
    SHARDS,
    again,
    finish,
    hashes,
    journal,
    only,
    own_inputs,
    start,
)


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_interrupted(run: Arena, expected: dict[str, str], signal_: signal.Signals) -> None:
    """Ctrl-C ends with 130, says what is left and how to go on, and leaves only the journal."""
    child = start(run)
    child.send_signal(signal_)
    code, text = finish(child)
    if code == 0:
        pytest.skip("this machine merges faster than a test can interrupt")
    assert code == 130 if signal_ is signal.SIGINT else code in {130, 143, -signal.SIGTERM}
    assert not run.out.exists()
    assert {path.name for path in run.root.iterdir()} <= {journal(run).name}
    if signal_ is signal.SIGINT and journal(run).exists():
        assert "adaptertools-partial" in text or "again" in text or "resume" in text, text
    again(run)
    assert hashes(run.out) == expected


def test_interrupted_json(run: Arena) -> None:
    """With --json the answer to Ctrl-C is a document too."""
    child = start(run, "--json")
    child.send_signal(signal.SIGINT)
    code, text = finish(child)
    if code == 0:
        pytest.skip("this machine merges faster than a test can interrupt")
    assert code == 130
    assert json.loads(text[text.index("{") : text.rindex("}") + 1])["error"]["message"]


def test_interrupted_twice(run: Arena, expected: dict[str, str]) -> None:
    """An impatient second Ctrl-C does no harm."""
    child = start(run)
    for _ in range(3):
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGINT)
        time.sleep(0.02)
    code, text = finish(child)
    assert code in {130, -signal.SIGINT, 0}, text
    if code:
        again(run)
    assert hashes(run.out) == expected


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.3])
def test_interrupted_while_torch_loads(arena: Arena, delay: float) -> None:
    """Ctrl-C during the longest part of start-up is no traceback either."""
    child = subprocess.Popen(
        command("merge", arena.base, arena.adapter, "-o", arena.out),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    maps = Path(f"/proc/{child.pid}/maps")
    while child.poll() is None and "libtorch" not in maps.read_text():
        time.sleep(0.002)
    time.sleep(delay)
    child.send_signal(signal.SIGINT)
    code, text = finish(child)
    assert code in {0, 130}, text
    assert (code == 0) == arena.out.exists()


def test_base_cut_while_it_is_read(run: Arena, expected: dict[str, str]) -> None:
    """A base that shrinks under the merge is an error, not a crash (SIGBUS) and not an output."""
    own_inputs(run)
    child = start(run, "--jobs", "1")
    os.truncate(run.base / f"model-{SHARDS:05d}-of-{SHARDS:05d}.safetensors", 5000)
    code, text = finish(child)
    assert code in {0, 1}, f"ended with {code}: {text}"
    if code == 0:
        assert hashes(run.out) == expected
    else:
        assert not run.out.exists()


def test_two_at_once(run: Arena, expected: dict[str, str]) -> None:
    """Two merges into one place: one may lose, but the output is right and whole."""
    children = [start(run), start(run)]
    codes = [finish(child) for child in children]
    assert any(code == 0 for code, _ in codes), codes
    assert all(code in {0, 1} for code, _ in codes), codes
    assert hashes(run.out) == expected
    only(run, run.out)


def test_checkpoint_is_whole(big: Arena) -> None:
    """The undisturbed output has every tensor once and an index that agrees."""
    merged = read_checkpoint(big.root / "calm")
    index = json.loads((big.root / "calm" / INDEX).read_text())["weight_map"]
    assert index.keys() == merged.keys()
