"""Validating: every finding about an adapter, alone or against a base, and none of them raised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptertools.adapter.model import Adapter
from adaptertools.base.checkpoint import open_base
from adaptertools.base.options import MergeOptions
from adaptertools.base.prepare import make_plan
from adaptertools.check.family import family_findings
from adaptertools.check.inspecting import BaseInfo, inspect
from adaptertools.check.profile import Profile, load_profile
from adaptertools.check.rules import run_rules
from adaptertools.check.serving import serving_findings
from adaptertools.errors import AdapterError, Finding, FindingsError, Where
from adaptertools.formats.model import Model, read_model
from adaptertools.formats.opening import open_adapter, read_config

_ORDER = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True)
class Report:
    """Every finding about `path`, errors first; `ok` when none is an error.

    `profile` is the server it was asked for, where one was.
    """

    path: str
    findings: tuple[Finding, ...]
    format: str | None = None
    profile: str | None = None

    @property
    def ok(self) -> bool:
        return not any(finding.severity == "error" for finding in self.findings)

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "format": self.format,
            **({} if self.profile is None else {"for": self.profile}),
            "ok": self.ok,
            "findings": [finding.to_json() for finding in self.findings],
        }


def validate(
    ref: str | Path,
    base: str | Path | None = None,
    *,
    profile: str | None = None,
    residual_base: bool = False,
    specs: Sequence[str | Path] = (),
) -> Report:
    """Return every finding about an adapter or checkpoint; with `base`, whether it fits that.

    With `profile`, also what that server would do with the adapter; an unknown one raises
    `AdapterError` (AT500).
    """
    asked = None if profile is None else load_profile(profile)
    found, name = _validated(ref, base, asked, residual_base, tuple(Path(spec) for spec in specs))
    unique = dict.fromkeys(found)
    ordered = tuple(sorted(unique, key=lambda f: _ORDER[f.severity]))
    return Report(str(ref), ordered, name, profile)


def _validated(
    ref: str | Path,
    base: str | Path | None,
    profile: Profile | None,
    residual_base: bool,
    specs: tuple[Path, ...],
) -> tuple[list[Finding], str | None]:
    """Return the findings, and the format where it is known."""
    accept = ("residual_base",) if residual_base else ()
    try:
        if base is None and isinstance(looked := inspect(ref, specs=specs), BaseInfo):
            return [*looked.findings, *_no_adapter(ref, profile)], "base"
        adapter = open_adapter(ref, specs=specs, accept=accept, model=_model(base))
    except FindingsError as error:
        return list(error.findings), None
    except AdapterError as error:
        return [_as_finding(error)], None
    findings = list(run_rules(adapter))
    if base is not None:
        findings += _against_base(adapter, Path(base))
    if profile is not None:
        findings += serving_findings(adapter, profile, _base_config(base))
    return findings, adapter.format


def _model(base: str | Path | None) -> Model | None:
    """Return what the base's config tells, None where it has none."""
    try:
        return None if base is None else read_model(Path(base))
    except AdapterError:
        return None


def _no_adapter(ref: str | Path, profile: Profile | None) -> list[Finding]:
    if profile is None:
        return []
    title = f"is a base checkpoint; {profile.title} is asked about adapters"
    return [Finding("AT500", "error", title, Where(str(ref)), hint="leave --for out")]


def _base_config(base: str | Path | None) -> Mapping[str, Any] | None:
    """Return the base's config, or None where it has none that can be read."""
    file = None if base is None else Path(base) / "config.json"
    try:
        return read_config(file) if file is not None and file.is_file() else None
    except AdapterError:
        return None


def _against_base(adapter: Adapter, base: Path) -> list[Finding]:
    """Plan a merge and keep what planning found; of a bare config.json, ask its family spec."""
    from dataclasses import replace

    config = base / "config.json"
    if config.is_file() and not any(base.glob("*.safetensors*")) and not any(base.glob("*.bin*")):
        return family_findings(adapter, read_config(config), str(config))
    alone = replace(adapter, findings=(), config_schema=None)
    try:
        return list(make_plan(open_base(base), [(alone, 1.0)], MergeOptions()).notes)
    except FindingsError as error:
        return list(error.findings)
    except AdapterError as error:
        return [_as_finding(error)]


def _as_finding(error: AdapterError) -> Finding:
    return Finding(error.code, "error", error.message, error.where, hint=error.hint)
