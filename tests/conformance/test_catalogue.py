"""Every adapter of the catalogue in every format: it means the same, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from convert.catalogue import CASES
from convert.compare import differences, rounding_of
from convert.sources import peft_meanings

import adaptertools
from adaptertools.formats.model import read_model
from adaptertools.formats.spec import FormatSpec

from .meaning import meanings_read

REFUSALS = {
    "AT240",
    "AT241",
    "AT250",
    "AT251",
    "AT252",
    "AT253",
    "AT254",
    "AT255",
    "AT256",
    "AT259",
}
NAMELESS = {"AT253", "AT254", "AT256"}  # of the adapter as a whole
Own = tuple[Path, ...]


def files_of(out: Path) -> dict[str, bytes]:
    """Return the bytes of every file of an output, by its name."""
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in out.rglob("*")}


def written(source: Path, spec: FormatSpec, own: Own, out: Path, jobs: int) -> Any:
    return adaptertools.convert(
        source / "source", spec.id, out, base=source / "base", specs=own, jobs=jobs
    )


def refused(error: adaptertools.AdapterError) -> None:
    """Judge a refusal: by a known code, and of modules that it names."""
    findings = getattr(error, "findings", None)
    told = (
        [(f.id, f.where.key) for f in findings if f.severity == "error"]
        if findings
        else [(error.code, error.where.key)]
    )
    for code, key in told:
        assert code in REFUSALS, str(error)
        assert key or code in NAMELESS, str(error)


def dtypes_of(source: Path) -> set[str]:
    data = (source / "source" / "adapter_model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}


def test_it_means_the_same_or_is_refused(
    writable: FormatSpec,
    case: str,
    own: Own,
    sources: Path,
    tmp_path: Path,
) -> None:
    """Read back, it is what PEFT makes of the source; or nothing is left but a reason."""
    source, out = sources / case, tmp_path / "out"
    try:
        result = written(source, writable, own, out, 1)
    except adaptertools.AdapterError as error:
        refused(error)
        assert list(tmp_path.iterdir()) == []
        return
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    again = tmp_path / "again"
    written(source, writable, own, again, 2)
    assert files_of(out) == files_of(again)
    if writable.write["container"] != "rows":  # these cannot be read
        checked = {one.target for one in result.checked}
        assert checked >= {same(u.target, source) for u in result.plan.updates}
        assert told_again(result, source, own) == []


def told_again(result: Any, source: Path, own: Own) -> list[str]:
    """Return how what was written differs from the source."""
    back = adaptertools.open(
        result.out, specs=own, model=read_model(source / "base"), given=result.plan.told
    )
    assert back.format == result.plan.spec.id
    assert not [str(f) for f in back.findings if f.severity != "info"]
    assert not back.unmatched
    wanted, got = peft_meanings(source / "source"), meanings_read(back.updates)
    wanted, got = ({renamed(n, source): m for n, m in found.items()} for found in (wanted, got))
    return differences(wanted, got, rounding_of(result, dtypes_of(source)))


def same(target: Any, source: Path) -> str:
    return renamed(target.name, source)


def renamed(name: str, source: Path) -> str:
    """Return a target's name under the family's first root: formats without roots come back so."""
    module, _, param = name.rpartition(".")
    return f"{read_model(source / 'base').same_name(module)}.{param}"


def test_some_adapter_gets_through(
    writable: FormatSpec, own: Own, sources: Path, tmp_path: Path
) -> None:
    """A format that refuses everything would pass all else."""
    for case in CASES:
        try:
            written(sources / case, writable, own, tmp_path / "out", 1)
        except adaptertools.AdapterError:
            continue
        return
    pytest.fail("every adapter of the catalogue is refused")


def test_a_lossy_conversion_loses_only_what_it_says(
    writable: FormatSpec, own: Own, sources: Path, tmp_path: Path
) -> None:
    """What --lossy leaves out is told by name, and all else means the same."""
    source, out = sources / "saved-head", tmp_path / "out"
    try:
        result = adaptertools.convert(
            source / "source", writable.id, out, base=source / "base", specs=own, lossy=True, jobs=1
        )
    except adaptertools.AdapterError as error:
        refused(error)
        return
    lost = {t for change in result.plan.changes if change.kind == "lost" for t in change.targets}
    if writable.write["container"] != "rows":
        told = told_again(result, source, own)
        assert {name.removesuffix(" value is lost") for name in told} == lost
