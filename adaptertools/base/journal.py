"""The journal of a merge in progress: a hidden folder beside the output, for resuming.

It holds the files being written and one line per finished task. A killed run leaves it; the same
command resumes from it. Lines are not synced to disk, so it survives a killed process, not a power
cut (unless `--sync`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

from adaptertools.errors import OutputError


def journal_folder(out: Path) -> Path:
    """Return the hidden folder beside `out` where a merge into it is in progress."""
    return out.parent / f".{out.name}.adaptertools-partial"


class Journal:
    """An open, locked journal; `finished` maps the ids of tasks already done to their results."""

    def __init__(self, out: Path, digest: str, *, overwrite: bool, sync: bool) -> None:
        self.folder = journal_folder(out)
        self.files = self.folder / "files"
        self.sync = sync
        self.finished: dict[str, Any] = {}
        existed = self.folder.exists()
        self.files.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "journal.jsonl"
        self.stream = self.path.open("a+", encoding="utf-8")
        self._lock(out)
        if existed and self._read() != digest:
            self._start_afresh(out, overwrite)
        if not self.finished:
            self._reset()
            self._write({"digest": digest})

    def _lock(self, out: Path) -> None:
        try:
            fcntl.flock(self.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.stream.close()
            raise OutputError(
                "AT507", "another merge is writing here", file=out, hint="wait for it to end"
            ) from None

    def _read(self) -> str | None:
        """Read what is finished; a torn last line counts as not written."""
        self.stream.seek(0)
        digest = None
        for line in self.stream:
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if "digest" in entry:
                digest = entry["digest"]
            else:
                self.finished[entry["task"]] = entry["result"]
        return digest

    def _start_afresh(self, out: Path, overwrite: bool) -> None:
        started = bool(self.finished)
        self.finished = {}
        if started and not overwrite:
            self.stream.close()
            raise OutputError(
                "AT506",
                "an interrupted merge of other inputs or options was left here",
                file=self.folder,
                hint=f"give --overwrite to start {out.name} afresh, or delete that folder",
            )

    def _reset(self) -> None:
        for child in self.files.iterdir():
            child.unlink()
        self.stream.seek(0)
        self.stream.truncate()

    def restart(self, digest: str) -> None:
        """Forget everything finished."""
        self.finished = {}
        self._reset()
        self._write({"digest": digest})

    def record(self, task: str, result: Any) -> None:
        """Note that a task is done."""
        self._write({"task": task, "result": result})

    def _write(self, entry: Any) -> None:
        self.stream.write(json.dumps(entry, separators=(",", ":")) + "\n")
        self.stream.flush()
        if self.sync:
            os.fsync(self.stream.fileno())

    def close(self) -> None:
        self.stream.close()

    def discard(self) -> None:
        """Remove the folder and all in it."""
        self.close()
        with contextlib.suppress(OSError):
            shutil.rmtree(self.folder)
