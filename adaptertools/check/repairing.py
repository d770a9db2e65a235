"""`convert --for SERVER`: the repairs of a profile made, exact ones only, and the result judged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptertools.adapter.model import Adapter, LowRank
from adaptertools.check.profile import Profile, load_profile
from adaptertools.check.serving import serving_findings, violations
from adaptertools.check.strength import rank_allowed
from adaptertools.conversion.convert import Conversion
from adaptertools.errors import AdapterError, Finding, FindingsError, Where
from adaptertools.formats.model import read_model
from adaptertools.formats.opening import open_adapter

MOST = 1 << 14


def fit_server(job: Conversion, server: str) -> None:
    """Set up a conversion so that its result is what the server wants.

    Rules whose repair is `fold_scale`, `pad_rank` or `drop` choose how the format is written, the
    rule on formats chooses the format where the job names none. Raises `FindingsError` with every
    rule that no exact repair helps, before anything is written and again on what was written.
    """
    profile = load_profile(server)
    model = None if job.base is None else read_model(job.base)
    base = None if model is None else model.config
    adapter = open_adapter(job.ref, specs=job.specs, model=model, given=job.given)
    if not job.to:
        job.to = _format(adapter, profile)
    broken = violations(adapter, profile, base)
    repairs = {violation.rule.repair for violation in broken}
    job.plain = job.plain or "fold_scale" in repairs
    job.one_rank = job.one_rank or "pad_rank" in repairs
    job.trim = job.trim or "drop" in repairs
    if job.one_rank:
        job.rank = _rank(adapter, profile)
    hopeless = [v for v in broken if v.rule.repair == "none" and v.rule.severity == "error"]
    if hopeless and not any(v.unknown for v in hopeless):
        ids = {violation.id for violation in hopeless}
        found = serving_findings(adapter, profile, base)
        raise FindingsError([f for f in found if f.id in ids and f.severity == "error"])
    job.judge = lambda path: _judge(path, profile, job, base)


def _rank(adapter: Adapter, profile: Profile) -> int:
    """Return the least rank that the server takes and the adapter fits in; 0 for none."""
    largest = max((u.rank for u in adapter.updates if isinstance(u, LowRank)), default=0)
    rules = [rule.params for rule in profile.rules_for("rank_not_allowed")]
    fitting = (n for n in range(largest, MOST) if all(rank_allowed(n, p) for p in rules))
    return next(fitting, 0)


def _format(adapter: Adapter, profile: Profile) -> str:
    """Return the format that the server wants; the adapter's own where it is content."""
    for rule in profile.rules_for("format"):
        if adapter.format not in rule.params.get("formats", ()) and rule.to:
            return rule.to
    return adapter.format


def _judge(path: Path, profile: Profile, job: Conversion, base: Mapping[str, Any] | None) -> None:
    """Raise `FindingsError` (AT260 first) where what was written still breaks a rule."""
    model = None if job.base is None else read_model(job.base)
    try:
        written = open_adapter(path, specs=job.specs, model=model)
    except AdapterError:
        return  # a format that is only written
    left = [f for f in serving_findings(written, profile, base) if f.severity == "error"]
    if left:
        title = f"no exact repair makes it what {profile.title} wants"
        hint = "merge it into the base and serve that"
        first = Finding("AT260", "error", title, Where(str(job.ref)), hint=hint)
        raise FindingsError([first, *left])
