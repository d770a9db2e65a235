"""Scorers: a command that is given a path, or a function of Python; both can fail."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from adaptertools.errors import AdapterError, printable

Function = Callable[[Path], Any]
Scorer = Callable[[Path, Path, Callable[[], bool]], float]
TAIL = 65_536
PLACE = "{}"
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_NUMBER = re.compile(
    r"(?<![\w.+-])[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf(?:inity)?)(?!\w|[.-]\d)",
    re.IGNORECASE,
)


class SampleError(Exception):
    """A sample has no score, for this reason."""


class StoppedError(Exception):
    """The search was ended while a sample was being scored."""


def make_scorer(score: str | Function, timeout: float) -> Scorer:
    """Return the scorer that `--score` says: `module:function`, or else a command.

    A scorer is called with the candidate's path, a folder for its own notes, and a function that
    says when to stop; it raises `SampleError` and `StoppedError`. Raises `AdapterError` (AT500) for
    what cannot be called at all.
    """
    if not isinstance(score, str):
        return _Function(score, timeout)
    if _FUNCTION.fullmatch(score) and not Path(score).exists():
        return _Function(_imported(score), timeout)
    try:
        words = shlex.split(score)
    except ValueError as error:
        raise AdapterError("AT500", f"the scorer cannot be split into words: {error}") from None
    if not words or shutil.which(words[0]) is None:
        told = repr(words[0]) if words else "an empty text"
        hint = "give a command, or module:function"
        raise AdapterError("AT500", f"the scorer {told} is no command", hint=hint)
    return _Command(words, timeout)


def _imported(text: str) -> Function:
    """Import a function; the current folder is searched too, as `python -m` does."""
    name, _, attribute = text.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = import_module(name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        title = f"the scorer {text} cannot be imported: {type(error).__name__}: {error}"
        raise AdapterError("AT500", title, hint="is it on PYTHONPATH?") from None
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise AdapterError("AT500", f"the scorer {text} cannot be called")
    function: Function = found
    return function


class _Command:
    """Runs a command in a session of its own, so that all it started can be ended with it."""

    def __init__(self, words: Sequence[str], timeout: float) -> None:
        self.words, self.timeout = words, timeout

    def __call__(self, path: Path, notes: Path, stopped: Callable[[], bool]) -> float:
        words = [word.replace(PLACE, str(path)) for word in self.words]
        if words == list(self.words):
            words.append(str(path))
        said, complained = notes / "stdout", notes / "stderr"
        with said.open("wb") as out, complained.open("wb") as err:
            try:
                process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
                )
            except OSError as error:
                raise SampleError(f"could not be started: {error.strerror}") from None
            code = self._ended(process, stopped)
        if code:
            why = f"died of {_signal(-code)}" if code < 0 else f"exit code {code}"
            last = (_tail(complained).strip().splitlines() or [""])[-1][:300]
            raise SampleError(f"{why}: {printable(last)}" if last else why)
        return read_score(_tail(said))

    def _ended(self, process: subprocess.Popen[bytes], stopped: Callable[[], bool]) -> int:
        end = time.monotonic() + self.timeout
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(timeout=0.1)
                if stopped():
                    raise StoppedError
                if time.monotonic() > end:
                    raise SampleError(f"no answer in {self.timeout:g} seconds")
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _tail(path: Path) -> str:
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - TAIL))
        return stream.read().decode(errors="replace")


def read_score(text: str) -> float:
    """Return the score that a command printed: of a last line in JSON, else the last number.

    >>> read_score("perplexity of 24 layers: 11.5\\n")
    11.5
    >>> read_score('{"score": 0.5, "samples": 100}')
    0.5
    """
    last = (text.strip().splitlines() or [""])[-1].strip()
    if last.startswith("{"):
        with contextlib.suppress(ValueError):
            return as_score(json.loads(last))
    numbers = _NUMBER.findall(text)
    if not numbers:
        raise SampleError(f"printed no number, but {last[:60]!r}" if last else "printed nothing")
    return as_score(float(numbers[-1]))


def as_score(answer: Any) -> float:
    """Return an answer, or its `score`, as a finite number; raises `SampleError`."""
    if isinstance(answer, dict):
        if "score" not in answer:
            raise SampleError("its answer has no 'score'")
        answer = answer["score"]
    if isinstance(answer, str | bytes | bool):
        raise SampleError(f"{answer!r:.60} is no score")
    try:
        score = float(answer)
    except Exception:
        raise SampleError(f"{answer!r:.60} is no score") from None
    if not math.isfinite(score):
        raise SampleError(f"the score is {score}")
    return score


class _Function:
    """Calls a function in a thread of its own, which is left alone when it does not return."""

    def __init__(self, function: Function, timeout: float) -> None:
        self.function, self.timeout = function, timeout

    def __call__(self, path: Path, notes: Path, stopped: Callable[[], bool]) -> float:
        answers: list[Any] = []
        faults: list[BaseException] = []

        def call() -> None:
            try:
                answers.append(self.function(path))
            except BaseException as error:
                faults.append(error)

        thread = threading.Thread(target=call, name="scorer", daemon=True)
        thread.start()
        end = time.monotonic() + self.timeout
        while thread.is_alive():
            thread.join(0.05)
            if stopped():
                raise StoppedError
            if thread.is_alive() and time.monotonic() > end:
                raise SampleError(f"no answer in {self.timeout:g} seconds")
        if faults:
            raise SampleError(printable(f"{type(faults[0]).__name__}: {faults[0]}")[:300])
        return as_score(answers[0])
