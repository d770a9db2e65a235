"""unmerge on the command line: what is told, and the bound."""

from __future__ import annotations

from pathlib import Path

import pytest

from .answers import Shell


@pytest.fixture
def merged(run: Shell, base: Path, lora: Path, tmp_path: Path) -> Path:
    """The base with the adapter at half its strength."""
    run("merge", base, f"{lora}=0.5", "-o", tmp_path / "merged")
    return tmp_path / "merged"


def test_it_tells_what_comes_back(
    run: Shell, base: Path, lora: Path, merged: Path, tmp_path: Path
) -> None:
    """Estimated without the base, measured with it; a dry run writes nothing."""
    told = run("unmerge", merged, f"{lora}=0.5", "-o", tmp_path / "a", "--json").json
    assert (told["measured"], told["limit"], told["touched"]) == (False, None, 4)
    assert run("verify", tmp_path / "a", "--json").json["ok"]
    arguments = ("unmerge", merged, f"{lora}=0.5", "-o", tmp_path / "b", "--base", base)
    known = run(*arguments, "--dry-run", "--json").json
    assert known["measured"] is True
    assert known["exact_share"] == pytest.approx(told["exact_share"], abs=0.02)
    assert not (tmp_path / "b").exists()
    words = run(*arguments).out
    for part in ("bit for bit", "measured against the base", f"{known['exact_share']:.2%}"):
        assert part in words
    assert (tmp_path / "b").is_dir()


def test_a_bound_that_is_not_met(run: Shell, lora: Path, merged: Path, tmp_path: Path) -> None:
    """Exit 1, one document with every tensor, and nothing on disk."""
    before = sorted(tmp_path.iterdir())
    arguments = ("unmerge", merged, f"{lora}=0.5", "-o", tmp_path / "a", "--max-loss", 1e-9)
    error = run(*arguments, "--json", code=1).json["error"]
    assert error["code"] == "AT421"
    assert len(error["findings"]) == 4
    assert "would lose about" in run(*arguments, code=1).err
    assert sorted(tmp_path.iterdir()) == before


def test_usage(run: Shell, lora: Path, merged: Path, tmp_path: Path) -> None:
    """A bound that is no number."""
    run("unmerge", merged, lora, "-o", tmp_path / "a", "--max-loss", -1, code=2)
    run("unmerge", merged, "-o", tmp_path / "a", code=2)


def test_the_wrong_weight_is_warned_of(
    run: Shell, lora: Path, merged: Path, tmp_path: Path
) -> None:
    """By the receipt, on stderr."""
    assert "AT424" in run("unmerge", merged, lora, "-o", tmp_path / "a").err
    assert "AT424" not in run("unmerge", merged, f"{lora}=0.5", "-o", tmp_path / "b").err
