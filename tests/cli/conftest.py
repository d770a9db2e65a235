"""A shell, and inputs for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import tiny_base, tiny_lora

from .answers import Shell


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell without the debug switch."""
    monkeypatch.delenv("ADAPTERTOOLS_DEBUG", raising=False)
    return Shell(capsys)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny base."""
    return tiny_base(tmp_path / "base")


@pytest.fixture
def lora(tmp_path: Path, base: Path) -> Path:
    """A tiny LoRA of rank 4, scale 2 for it."""
    return tiny_lora(tmp_path / "lora", base, base_model_name_or_path="me/base")
