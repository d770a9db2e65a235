"""Wrong files in the right place: weights, indexes, pickles and links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .arena import Arena, cli

SIDES = ("adapter", "base")
LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 12345\n"
)
HTML = b"<!DOCTYPE html>\n<html><head><title>Log in</title></head><body>404</body></html>\n"
INDEX = "model.safetensors.index.json"


def weights(arena: Arena, side: str) -> Path:
    """Return the weights of one side."""
    return arena.weights if side == "adapter" else arena.model


def config(arena: Arena, side: str) -> Path:
    """Return the config of one side."""
    return {"adapter": arena.adapter / "adapter_config.json", "base": arena.base / "config.json"}[
        side
    ]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("content", "word"),
    [(LFS, "lfs"), (HTML, "html"), (HTML.lower(), "html"), (b"", ""), (b"\n", ""), (b"PK", "")],
    ids=["git-lfs pointer", "HTML", "html in small letters", "empty", "newline", "two letters"],
)
def test_not_weights(arena: Arena, side: str, content: bytes, word: str) -> None:
    """What is usually found in place of weights is recognised and named."""
    path = weights(arena, side)
    path.write_bytes(content)
    error = arena.refuses(file=str(path))
    assert word in f"{error.message} {error.hint}".lower()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    "content",
    [
        LFS,
        HTML,
        b"",
        b"\xff\xfe{}",
        b"[]",
        b"null",
        b'"text"',
        b"{",
        b"{'r': 8}",
        b"[" * 200_000,
        b'{"r": 8, "x": ' + b"9" * 5000 + b"}",
    ],
    ids=[
        *("git-lfs pointer", "HTML", "empty", "UTF-16", "array", "null", "string", "cut"),
        *("Python", "nested bomb", "5000 digits"),
    ],
)
def test_not_a_config(arena: Arena, side: str, content: bytes) -> None:
    """A config that is no JSON object is refused by name."""
    path = config(arena, side)
    path.write_bytes(content)
    error = arena.refuses(file=str(path))
    assert "Traceback" not in str(error)


def test_missing_adapter_weights(arena: Arena) -> None:
    """An adapter directory without weights says what it lacks."""
    arena.weights.unlink()
    error = arena.refuses(file=str(arena.adapter))
    assert "adapter_model" in f"{error.message} {error.hint}"


def test_missing_base_weights(arena: Arena) -> None:
    """A base directory without weights says what it lacks."""
    arena.model.unlink()
    error = arena.refuses(file=str(arena.base))
    assert "safetensors" in f"{error.message} {error.hint}"


def test_missing_adapter_config(arena: Arena) -> None:
    """LoRA tensors without a config have no known scale: refused, never guessed."""
    config(arena, "adapter").unlink()
    error = arena.refuses(file=str(arena.adapter))
    assert "adapter_config.json" in f"{error.message} {error.hint}"


def test_missing_base_config(arena: Arena) -> None:
    """Weights without a config.json: merged right, or refused by name, never half."""
    config(arena, "base").unlink()
    result = cli("merge", arena.base, arena.adapter, "-o", arena.out)
    if result.code == 0:
        arena.check()
    else:
        assert "config.json" in result.err
        assert not arena.out.exists()


@pytest.mark.parametrize("name", ["base", "adapter"])
def test_missing_directory(arena: Arena, name: str) -> None:
    """A path that does not exist is named and nothing is asked of the network."""
    gone = arena.root / "no" / "such" / "place"
    setattr(arena, name, gone)
    arena.refuses(file=str(gone))
    arena.refuses_cli(file=str(gone))


def test_empty_directories(arena: Arena) -> None:
    """An empty directory is no adapter and no base."""
    empty = arena.root / "empty"
    empty.mkdir()
    good, arena.adapter = arena.adapter, empty
    arena.refuses(file=str(empty))
    arena.adapter, arena.base = good, empty
    arena.refuses(file=str(empty))


@pytest.mark.parametrize("side", SIDES)
def test_directory_in_place_of_weights(arena: Arena, side: str) -> None:
    """A directory called like the weights is no weights."""
    path = weights(arena, side)
    path.unlink()
    path.mkdir()
    arena.refuses(file=str(path.parent))


@pytest.mark.parametrize("side", SIDES)
def test_dangling_link(arena: Arena, side: str) -> None:
    """A link whose target was pruned from the cache is named."""
    path = weights(arena, side)
    path.unlink()
    path.symlink_to(arena.root / "blobs" / "gone")
    arena.refuses(file=str(path.parent))


@pytest.mark.parametrize("side", SIDES)
def test_fifo_in_place_of_weights(arena: Arena, side: str) -> None:
    """A named pipe must not hang the program."""
    path = weights(arena, side)
    path.unlink()
    os.mkfifo(path)
    result = cli("merge", arena.base, arena.adapter, "-o", arena.out, timeout=20)
    assert result.code == 1
    assert not arena.out.exists()
