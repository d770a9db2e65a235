"""Keep PEFT off the network, before it is imported; and a shell."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import pytest
from cli.answers import Shell


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell without the debug switch."""
    monkeypatch.delenv("ADAPTERTOOLS_DEBUG", raising=False)
    return Shell(capsys)
