"""Killed merges: what they leave, and what the same command makes of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from builders import LINEARS, read_header, tiny_lora

from adaptertools import AdapterError

from .arena import Arena, cli
from .unfinished import (
    again,
    half_done,
    hashes,
    journal,
    kill,
    only,
    own_inputs,
)

DELAYS = (0.0, 0.1)


@pytest.mark.parametrize("delay", DELAYS)
def test_killed_and_resumed(run: Arena, expected: dict[str, str], delay: float) -> None:
    """A killed merge leaves only its journal; the same command then gives the same bytes."""
    killed = kill(run, delay)
    if killed:
        only(run, journal(run))
        result = cli("merge", run.base, run.adapter, "-o", run.out)
        assert result.code == 0, result.text
    only(run, run.out)
    assert hashes(run.out) == expected
    assert killed or delay, "the journal appeared only at the end"


def test_killed_three_times(run: Arena, expected: dict[str, str]) -> None:
    """A resumed merge may be killed again, with another number of jobs too."""
    for jobs in ("1", "2", "5"):
        if kill(run, 0.05, "--jobs", jobs):
            only(run, journal(run))
    if not run.out.exists():
        again(run)
    assert hashes(run.out) == expected


def test_resume_does_not_start_over(run: Arena, expected: dict[str, str]) -> None:
    """What was finished before the kill is used: at least one file is not written again."""
    half_done(run, "--jobs", "1")
    finished = {p.stat().st_ino: p.stat().st_mtime_ns for p in journal(run).rglob("*.safetensors")}
    assert finished
    again(run)
    kept = {p.stat().st_ino: p.stat().st_mtime_ns for p in run.out.rglob("*.safetensors")}
    assert finished.keys() & kept.keys(), "every file was begun afresh"
    assert hashes(run.out) == expected


def test_overwrite_starts_afresh(run: Arena, expected: dict[str, str]) -> None:
    """--overwrite ignores the journal and gives the same bytes."""
    half_done(run)
    again(run, overwrite=True)
    only(run, run.out)
    assert hashes(run.out) == expected


def test_killed_overwrite_keeps_the_old_output(run: Arena, expected: dict[str, str]) -> None:
    """Until the new result is whole, the old one is there."""
    run.out.mkdir()
    (run.out / "config.json").write_text("{}")
    if kill(run, 0.0, "--overwrite"):
        assert (run.out / "config.json").read_text() == "{}"
        assert len(list(run.out.iterdir())) == 1
    again(run, overwrite=True)
    assert hashes(run.out) == expected
    only(run, run.out)


def damage(path: Path, spoil: str) -> None:
    """Spoil a file as a crash or a curious person may."""
    size = path.stat().st_size
    if spoil == "lost":
        path.unlink()
    elif spoil == "cut":
        os.truncate(path, size // 2)
    else:
        content = {"garbage": b"\xff{]", "other": b'3\n{"task":1}\n[]\n', "zeros": bytes(size)}
        path.write_bytes(content.get(spoil, b""))


@pytest.mark.parametrize("spoil", ["cut", "garbage", "other", "zeros", "emptied", "lost"])
def test_damaged_journal(run: Arena, expected: dict[str, str], spoil: str) -> None:
    """A journal that a crash damaged is never trusted into a wrong output."""
    half_done(run)
    files = [path for path in journal(run).rglob("*") if path.is_file()]
    weights = [path for path in files if path.suffix == ".safetensors"]
    records = [path for path in files if path not in weights]
    for path in weights if spoil == "lost" else records:
        damage(path, spoil)
    try:
        again(run)
    except AdapterError:
        assert not run.out.exists()
        again(run, overwrite=True)
    assert hashes(run.out) == expected
    only(run, run.out)


@pytest.mark.parametrize("overwrite", [False, True], ids=["resume", "overwrite"])
def test_stray_files_in_the_journal(run: Arena, overwrite: bool) -> None:
    """What an earlier run had laid beside the weights (it died just before its end) is not kept."""
    own_inputs(run)
    half_done(run)
    if overwrite:
        run.configure(lora_alpha=16)
    folder = next(journal(run).rglob("*.safetensors")).parent
    (folder / "stale.txt").write_text("x")
    (folder / "sub").mkdir()
    (folder / "sub" / "stale.json").write_text("{}")
    again(run, overwrite=overwrite)
    assert not [path for path in run.out.rglob("*") if "stale" in path.name]
    only(run, run.out, run.root / "in")


def test_jobs_do_not_matter(run: Arena, expected: dict[str, str]) -> None:
    """One, two and five threads give the same bytes."""
    for jobs in (1, 2, 5):
        run.out = run.root / f"jobs-{jobs}"
        again(run, jobs=jobs)
        assert hashes(run.out) == expected, jobs


def test_undisturbed_output_verifies(big: Arena) -> None:
    """`verify` agrees with a merge that nobody disturbed."""
    out = big.root / "calm"
    assert cli("verify", out, "--base", big.base, "--adapter", big.adapter).code == 0


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.self_attn.v_proj.weight"])
def test_verify_sees_one_changed_byte(arena: Arena, name: str) -> None:
    """One changed byte of a tensor, merged or only copied, is found and the tensor named."""
    arena.merge()
    model = arena.out / "model.safetensors"
    header, start = read_header(model)
    data = bytearray(model.read_bytes())
    data[start + header[name]["data_offsets"][1] - 1] ^= 0x40
    model.write_bytes(data)
    inputs = ("--base", arena.base, "--adapter", arena.adapter)
    result = cli("verify", arena.out, *inputs, "--json")
    assert result.code == 1
    assert name in result.out


def mixed_or_not(run: Arena, **options: Any) -> None:
    """Resume with changed inputs: an error, or exactly what a fresh merge of them gives."""
    try:
        again(run, **options)
    except AdapterError as error:
        assert not run.out.exists()
        assert "overwrite" in error.hint
        again(run, overwrite=True, **options)
    resumed = hashes(run.out)
    run.out = run.root / "fresh"
    again(run, **options)
    assert resumed == hashes(run.out)


def test_changed_adapter(run: Arena) -> None:
    """Another adapter under the old name is never mixed into the half-done output."""
    own_inputs(run)
    half_done(run)
    shutil.rmtree(run.adapter)
    tiny_lora(run.adapter, run.base, rank=16, targets=LINEARS, seed=99)
    mixed_or_not(run)


def test_changed_scale(run: Arena) -> None:
    """A changed adapter_config.json alone counts as a changed adapter."""
    own_inputs(run)
    half_done(run)
    run.configure(lora_alpha=16)
    mixed_or_not(run)


def test_changed_base(run: Arena) -> None:
    """A changed base, of the same sizes, is never mixed into the half-done output."""
    own_inputs(run)
    half_done(run)
    for path in sorted(run.base.glob("*.safetensors")):
        path.write_bytes(path.read_bytes()[:-2] + b"\x12\x3d")
    mixed_or_not(run)


def test_changed_options(run: Arena) -> None:
    """Other options are another merge."""
    half_done(run)
    mixed_or_not(run, dtype="f16", compute_dtype="f64")


def test_changed_weight(run: Arena) -> None:
    """Another weight of the same adapter is another merge."""
    half_done(run)
    plain = run.adapter
    run.adapter = Path(f"{plain}=0.5")
    mixed_or_not(run)
