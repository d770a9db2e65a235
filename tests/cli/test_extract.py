"""extract on the command line: the table, a dry run, refusals, and a rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from .answers import Shell


@pytest.fixture
def merged(run: Shell, base: Path, lora: Path, tmp_path: Path) -> Path:
    """The base with the adapter in it."""
    run("merge", base, lora, "-o", tmp_path / "merged")
    return tmp_path / "merged"


def test_it_finds_the_adapter(run: Shell, base: Path, merged: Path, tmp_path: Path) -> None:
    """In words, as JSON, and by another rule with another seed."""
    words = run("extract", base, merged, "-o", tmp_path / "a", "--rank", 4).out
    for part in ("4 tensors differ, 17 are equal", "low rank", "left out", "4 bit for bit"):
        assert part in words
    arguments = ("extract", base, merged, "-o", tmp_path / "b", "--energy", 0.999, "--seed", 3)
    told = run(*arguments, "--json").json
    assert {t["rank"] for t in told["tensors"]} == {4}
    assert 0 < told["residual"] < 0.001
    assert told["equal"] == 17
    answer = run("diff", tmp_path / "a", tmp_path / "b", "--tol", 0.01)
    assert answer.code == 0


def test_sixteen_is_the_default(run: Shell, base: Path, merged: Path, tmp_path: Path) -> None:
    """Without a rule."""
    told = run("extract", base, merged, "-o", tmp_path / "a", "--full-svd", "--json").json
    assert {t["rank"] for t in told["tensors"]} == {16}


def test_a_dry_run_compares_only(run: Shell, base: Path, merged: Path, tmp_path: Path) -> None:
    """What differs and how it would be said."""
    arguments = ("extract", base, merged, "-o", tmp_path / "a", "--exclude", "*.layers.1.*")
    told = run(*arguments, "--dry-run", "--json").json
    assert {p["name"] for p in told["differing"]} == {
        f"model.layers.0.self_attn.{name}_proj.weight" for name in "qv"
    }
    assert len(told["left_out"]) == 9
    assert "not compared" in run(*arguments, "--dry-run").out
    assert not (tmp_path / "a").exists()


def test_refusals(run: Shell, base: Path, merged: Path, lora: Path, tmp_path: Path) -> None:
    """Nothing differs; an unknown glob; an adapter for a checkpoint; two rules."""
    out = ("-o", tmp_path / "a")
    assert run("extract", base, base, *out, "--json", code=1).json["error"]["code"] == "AT659"
    assert run("extract", base, lora, *out, "--json", code=1).json["error"]["code"] == "AT130"
    run("extract", base, merged, *out, "--include", "nothing.*", code=2)
    run("extract", base, merged, *out, "--energy", 0.5, "--sum", 0.5, code=2)
    assert not (tmp_path / "a").exists()
