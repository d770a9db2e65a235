"""Running the command line in this process, and what holds for every answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from adaptertools.cli.main import main


@dataclass(frozen=True)
class Answer:
    """What a command printed and how it exited."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


class Shell:
    """Runs commands; every answer has an expected exit code and no raw control characters."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object, code: int = 0) -> Answer:
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        captured = self.capsys.readouterr()
        answer = Answer(int(left.value.code or 0), captured.out, captured.err)
        assert answer.code == code, answer
        assert "Traceback" not in answer.out + answer.err
        shown = (answer.out + answer.err).replace("\n", "")
        raw = {c for c in shown if not c.isprintable() and c != "\t"}
        assert not raw, raw
        return answer
