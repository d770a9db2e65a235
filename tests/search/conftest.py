"""A shell, and a base with adapters whose best mix is known."""

from __future__ import annotations

import pytest
from cli.answers import Shell

from .known import Known, make_known


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell without the debug switch."""
    monkeypatch.delenv("ADAPTERTOOLS_DEBUG", raising=False)
    return Shell(capsys)


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return make_known(tmp_path_factory.mktemp("known"))
