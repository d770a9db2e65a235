"""Fixtures of the bad-input tests; `builders` lives one directory up."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from builders import LINEARS, tiny_base, tiny_lora

from .arena import Arena, cli
from .unfinished import SHARDS, hashes


@pytest.fixture
def arena(tmp_path: Path) -> Arena:
    """A good tiny base and a good tiny LoRA for it, to be spoiled by the test."""
    return Arena.make(tmp_path)


@pytest.fixture
def sharded(arena: Arena) -> Arena:
    """An arena whose base has four shards."""
    arena.base = tiny_base(arena.root / "sharded", shards=4)
    return arena


@pytest.fixture(scope="session")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """A base of 200 MB in shards, an adapter on every linear, and a merge nobody disturbed."""
    root = tmp_path_factory.mktemp("big")
    sizes = {"layers": 6, "hidden": 1024, "heads": 8, "kv_heads": 8, "inter": 2816}
    base = tiny_base(root / "base", **sizes, vocab=12_000, shards=SHARDS)
    adapter = tiny_lora(root / "adapter", base, rank=16, targets=LINEARS)
    arena = Arena(root, base, adapter, root / "calm")
    result = cli("merge", base, adapter, "-o", arena.out, "--jobs", "2")
    assert result.code == 0, result.text
    arena.check()
    yield arena
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def expected(big: Arena) -> dict[str, str]:
    """The hashes of the undisturbed merge."""
    return hashes(big.root / "calm")


@pytest.fixture
def run(big: Arena, tmp_path: Path) -> Iterator[Arena]:
    """An arena with the big inputs and an output place of its own."""
    yield Arena(tmp_path, big.base, big.adapter, tmp_path / "merged")
    shutil.rmtree(tmp_path)
