"""The log of a search: a first line that says which search it is, then a line for every sample."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptertools.errors import AdapterError, OutputError, SourceError
from adaptertools.searching.space import Point

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Trial:
    """One sample: its score, or the reason why it has none."""

    k: int
    point: Point
    score: float | None
    seconds: float
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        reason = {"reason": self.reason} if self.reason else {}
        return {
            "k": self.k,
            **self.point.to_json(),
            "score": self.score,
            **reason,
            "seconds": self.seconds,
        }


class SearchLog:
    """An append-only JSON-lines file, locked while it is open; a line is written by one call.

    `about` is the first line; its `inputs` stand in every other line too.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], *, resume: bool) -> None:
        self.path, self.about = path, {"schema": SCHEMA, **about}
        self.found: dict[int, Trial] = {}
        self.empty = True
        if path.exists() and not path.is_file():
            raise OutputError("AT501", "exists and is not a file", file=path)
        self.stream = path.open("ab", buffering=0)
        try:
            self._lock()
            if resume:
                self._replay()
            else:
                os.ftruncate(self.stream.fileno(), 0)
            if not self.found and not path.stat().st_size:
                self._write(self.about)
        except BaseException:
            self.stream.close()
            raise

    def append(self, trial: Trial) -> None:
        """Write one sample down."""
        self.empty = False
        self._write({**trial.to_json(), "inputs": self.about["inputs"]})

    def close(self) -> None:
        """Close the file; one without a single sample is taken away."""
        if self.empty and not self.found:
            self.path.unlink(missing_ok=True)
        self.stream.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        self.stream.write((json.dumps(line, ensure_ascii=False) + "\n").encode())

    def _lock(self) -> None:
        try:
            fcntl.flock(self.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            title = "another search is writing it"
            raise OutputError("AT507", title, file=self.path, hint="give another -o OUT") from None

    def _replay(self) -> None:
        """Read what is there; a last line that was cut off by a crash is taken away."""
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        os.ftruncate(self.stream.fileno(), whole)
        lines = data[:whole].splitlines()
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
                if number == 1:
                    self._check(values)
                else:
                    trial = _trial(values)
                    self.found[trial.k] = trial
            except (ValueError, KeyError, TypeError, AttributeError):
                title = f"line {number} is not one of a search's log"
                raise SourceError("AT801", title, file=self.path, hint="delete it") from None

    def _check(self, found: Mapping[str, Any]) -> None:
        wanted = json.loads(json.dumps(self.about))
        names = [name for name in wanted if found.get(name) != wanted[name]]
        if names:
            raise AdapterError(
                "AT800",
                f"is the log of another search: its {', '.join(names)} differ",
                file=self.path,
                hint="give the same inputs and options, or --overwrite to begin afresh",
            )


def _trial(values: Mapping[str, Any]) -> Trial:
    weights = tuple(float(weight) for weight in values["weights"])
    point = Point(weights, values.get("density"), values.get("rank"))
    score = None if values["score"] is None else float(values["score"])
    return Trial(
        int(values["k"]), point, score, float(values["seconds"]), str(values.get("reason", ""))
    )
