"""Every error and finding a user can meet: what, where, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]


def printable(text: object) -> str:
    """Return `text` with control characters escaped, so that a file cannot drive the terminal.

    >>> printable("evil\\x1b[2Jkey")
    'evil\\\\x1b[2Jkey'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


@dataclass(frozen=True, slots=True)
class Where:
    """The place a message is about: a file, and a key or field in it."""

    file: str | None = None
    key: str | None = None

    def __str__(self) -> str:
        return ": ".join(printable(part) for part in (self.file, self.key) if part)

    def to_json(self) -> dict[str, str | None]:
        return {"file": self.file, "key": self.key}


@dataclass(frozen=True, slots=True)
class Finding:
    """One observation by a check: a stable id, a severity, a place, and one next step."""

    id: str
    severity: Severity
    title: str
    where: Where = field(default_factory=Where)
    expected: str = ""
    found: str = ""
    hint: str = ""

    def __str__(self) -> str:
        facts = [f"expected {self.expected}"] if self.expected else []
        facts += [f"found {self.found}"] if self.found else []
        parts = [part for part in (str(self.where), printable(self.title)) if part]
        return ": ".join(parts) + (f" ({printable('; '.join(facts))})" if facts else "")

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "severity": self.severity,
            "title": self.title,
            "where": self.where.to_json(),
            "expected": self.expected,
            "found": self.found,
            "hint": self.hint,
        }


class AdapterError(Exception):
    """The one base of every error this library raises on purpose.

    Attributes: `code` (stable, e.g. "AT103"), `message` (one sentence), `where`, `hint`.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        file: str | Path | None = None,
        key: str | None = None,
        hint: str = "",
    ) -> None:
        self.code = code
        self.message = message
        self.where = Where(None if file is None else str(file), key)
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        place = str(self.where)
        return f"{place}: {printable(self.message)}" if place else printable(self.message)

    def to_json(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "message": self.message,
            "where": self.where.to_json(),
            "hint": self.hint,
        }


class SourceError(AdapterError):
    """A file or directory cannot be read as what it claims to be (AT1xx)."""


class FormatError(AdapterError):
    """An adapter's format is unknown, ambiguous, or its content contradicts its spec (AT2xx)."""


class SpecError(AdapterError):
    """A format or family spec under `schemas/` (or a plug-in's) is itself wrong (AT29x)."""


class MergeError(AdapterError):
    """An adapter does not fit a base, or the merge cannot be right (AT4xx)."""


class OutputError(AdapterError):
    """The output place cannot be used or written (AT5xx)."""


class InterruptedMergeError(AdapterError):
    """The user interrupted a merge (AT900); what is done is kept in the journal `folder`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            "AT900",
            "interrupted; what is done is kept here",
            file=folder,
            hint="the same command again resumes from there, --overwrite starts afresh",
        )


class FindingsError(AdapterError):
    """Several findings at once; the first error is the headline, all are in `findings`."""

    def __init__(self, findings: Iterable[Finding], *, code: str | None = None) -> None:
        self.findings: Sequence[Finding] = tuple(findings)
        errors = [f for f in self.findings if f.severity == "error"] or list(self.findings)
        head = errors[0]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        facts = [f"expected {head.expected}"] if head.expected else []
        facts += [f"found {head.found}"] if head.found else []
        message = head.title + (f": {', '.join(facts)}" if facts else "") + more
        super().__init__(
            code or head.id, message, file=head.where.file, key=head.where.key, hint=head.hint
        )

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "findings": [f.to_json() for f in self.findings]}
