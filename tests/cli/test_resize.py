"""resize on the command line: rules under both names, the table, and usage."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import read_safetensors

from .answers import Shell

FILE = "adapter_model.safetensors"


def test_it_tells_ranks_bytes_and_what_is_lost(run: Shell, lora: Path, tmp_path: Path) -> None:
    """In words, as JSON, and in one line."""
    words = run("resize", lora, "--rank", 2, "-o", tmp_path / "a").out
    for part in ("4 → 2", "discarded", "q_proj.weight", "×2", "of its norm", "bit for bit"):
        assert part in words
    told = run("resize", lora, "--rank", 2, "-o", tmp_path / "b", "--json").json
    assert told["bytes_before"] == 2 * told["bytes_after"]
    assert 0 < told["discarded"]["total"] <= told["discarded"]["largest"] < 1
    assert {(t["rank_before"], t["rank_after"]) for t in told["resized"]} == {(4, 2)}
    assert run("resize", lora, "--rank", 2, "-o", tmp_path / "c", "-q").out == f"{tmp_path / 'c'}\n"
    files = [(tmp_path / name / FILE).read_bytes() for name in "abc"]
    assert files[0] == files[1] == files[2]
    assert f"{told['discarded']['total']:.3g} of Σ" in words


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("--fro", "--sv-fro"), ("--sum", "--sv-cumulative"), ("--ratio", "--sv-ratio")],
)
def test_the_peers_names(run: Shell, lora: Path, tmp_path: Path, ours: str, theirs: str) -> None:
    """sd-scripts' names mean our rules."""
    value = 2.0 if ours == "--ratio" else 0.7
    for name, option in (("a", ours), ("b", theirs)):
        run("resize", lora, option, value, "-o", tmp_path / name)
    one, other = ((tmp_path / name / FILE).read_bytes() for name in "ab")
    assert one == other
    shapes = {t[1] for t in read_safetensors(tmp_path / "a" / FILE).values()}
    assert min(min(shape) for shape in shapes) < 4


def test_a_dry_run_writes_nothing(run: Shell, lora: Path, tmp_path: Path) -> None:
    """It computes what would be lost."""
    told = run("resize", lora, "--energy", 0.8, "-o", tmp_path / "a", "--dry-run", "--json").json
    assert 0 < told["discarded"]["total"] <= 0.2
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "rules", [(), ("--energy", 0.9, "--fro", 0.9), ("--rank", 0), ("--sum", 2)]
)
def test_usage(run: Shell, lora: Path, tmp_path: Path, rules: tuple[object, ...]) -> None:
    """No rule, two, or one out of bounds is a usage error, and leaves nothing."""
    run("resize", lora, *rules, "-o", tmp_path / "a", code=2)
    assert not (tmp_path / "a").exists()


def test_a_refusal_is_one_document(run: Shell, lora: Path, tmp_path: Path) -> None:
    """Onto its own input."""
    error = run("resize", lora, "--rank", 2, "-o", lora, "--json", code=1).json["error"]
    assert error["code"] == "AT502"
