"""The journal of a merge in progress: a hidden folder beside the output, for resuming.

It holds the files being written and one line per finished task. A killed run leaves it; the same
command resumes from it. Lines are not synced to disk, so it survives a killed process, not a power
cut: after a restart of the machine it is not resumed (unless it was made with `--sync`).
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
from adaptertools.store.place import hidden_sibling


def journal_folder(out: Path) -> Path:
    """Return the hidden folder beside `out` where a merge into it is in progress."""
    return hidden_sibling(out, "partial")


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
        self.stream = self.path.open("a+", encoding="utf-8", errors="replace")
        self._lock(out)
        start = {"digest": digest, "boot": "synced" if sync else _boot()}
        if existed:
            self._resume(out, start, overwrite)
        if not self.finished:
            self._reset()
            self._write(start)

    def _lock(self, out: Path) -> None:
        try:
            fcntl.flock(self.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.stream.close()
            raise OutputError(
                "AT507", "another merge is writing here", file=out, hint="wait for it to end"
            ) from None

    def _resume(self, out: Path, start: dict[str, str], overwrite: bool) -> None:
        """Take over what is finished, unless told not to or it may not have survived a reboot."""
        found = self._read()
        same, same_boot = found.get("digest") == start["digest"], found.get("boot") == start["boot"]
        if same and same_boot and not overwrite:
            return
        if self.finished and not same and not overwrite:
            self.stream.close()
            raise OutputError(
                "AT506",
                "an interrupted merge of other inputs or options was left here",
                file=self.folder,
                hint=f"give --overwrite to start {out.name} afresh, or delete that folder",
            )
        self.finished = {}

    def _read(self) -> dict[str, str]:
        """Read the first line and what is finished; a torn last line counts as not written."""
        self.stream.seek(0)
        start: dict[str, str] = {}
        for line in self.stream:
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not isinstance(entry, dict):
                break
            if "digest" in entry:
                start = entry
            elif "task" in entry:
                self.finished[entry["task"]] = entry.get("result")
        return start

    def _reset(self) -> None:
        self.keep({})
        self.stream.seek(0)
        self.stream.truncate()

    def keep(self, sizes: dict[str, int]) -> int:
        """Remove all other files; where one of these is not whole, nothing counts as finished.

        Returns how many tasks are finished.
        """
        for child in self.files.iterdir():
            if child.name not in sizes:
                child.unlink() if child.is_file() or child.is_symlink() else shutil.rmtree(child)
        whole = all(_size(self.files / name) == size for name, size in sizes.items())
        if not whole:
            self.finished = {}
        return len(self.finished)

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


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _boot() -> str:
    """Return what changes with every start of the machine: unsynced data may not outlive it."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return "unknown"
