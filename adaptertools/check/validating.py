"""Validating: every finding about an adapter, alone or against a base, and none of them raised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptertools.adapter.model import Adapter
from adaptertools.base.checkpoint import open_base
from adaptertools.base.options import MergeOptions
from adaptertools.base.prepare import make_plan
from adaptertools.check.family import family_findings
from adaptertools.check.inspecting import BaseInfo, inspect
from adaptertools.check.rules import run_rules
from adaptertools.errors import AdapterError, Finding, FindingsError
from adaptertools.formats.opening import open_adapter, read_config

_ORDER = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True)
class Report:
    """Every finding about `path`, errors first; `ok` when none is an error."""

    path: str
    findings: tuple[Finding, ...]
    format: str | None = None

    @property
    def ok(self) -> bool:
        return not any(finding.severity == "error" for finding in self.findings)

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "format": self.format,
            "ok": self.ok,
            "findings": [finding.to_json() for finding in self.findings],
        }


def validate(
    ref: str | Path,
    base: str | Path | None = None,
    *,
    residual_base: bool = False,
    specs: Sequence[str | Path] = (),
) -> Report:
    """Return every finding about an adapter or checkpoint; with `base`, whether it fits that."""
    accept = ("residual_base",) if residual_base else ()
    extra = tuple(Path(spec) for spec in specs)
    try:
        if base is None and isinstance(looked := inspect(ref, specs=extra), BaseInfo):
            return Report(str(ref), looked.findings, "base")
        adapter = open_adapter(ref, specs=extra, accept=accept)
    except FindingsError as error:
        return _report(ref, list(error.findings), None)
    except AdapterError as error:
        return _report(ref, [_as_finding(error)], None)
    findings = list(run_rules(adapter))
    if base is not None:
        findings += _against_base(adapter, Path(base))
    return _report(ref, findings, adapter.format)


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


def _report(ref: str | Path, findings: list[Finding], name: str | None) -> Report:
    unique = dict.fromkeys(findings)
    return Report(str(ref), tuple(sorted(unique, key=lambda f: _ORDER[f.severity])), name)
