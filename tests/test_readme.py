"""The README's commands run as typed and print what it shows."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURED = re.compile(r"(time|peak memory|memory) +\S.*")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "fixtures", tmp_path / "fixtures")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str) -> str:
    if command.startswith("cmp "):
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
        return done.stderr + done.stdout
    words = shlex.split(command)
    assert words[0] == "adaptertools"
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, timeout=120
    )
    return done.stderr + done.stdout


def test_console_blocks(workplace: Path) -> None:
    shown = blocks("console")
    assert len(shown) >= 6
    for block in shown:
        for part in block.split("$ ")[1:]:
            command, _, expected = part.partition("\n")
            printed = run(command)
            assert MEASURED.sub(r"\1", printed) == MEASURED.sub(r"\1", expected), command


def test_python_block(workplace: Path) -> None:
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "peft-lora {4: 14} 14\n14 tensors changed\n"


def test_spec_block(workplace: Path) -> None:
    """The spec shown merges a file of that dialect like its PEFT twin."""
    import json

    import torch
    from safetensors.torch import load_file, save_file

    import adaptertools

    (spec,) = blocks("toml")
    Path("spec.toml").write_text(spec)
    source = load_file("fixtures/tiny-llama-lora/adapter_model.safetensors")
    names = {".lora_A.weight": ".a", ".lora_B.weight": ".b"}
    tensors = {}
    for key, value in source.items():
        end = next(end for end in names if key.endswith(end))
        module = key.removeprefix("base_model.model.").removesuffix(end)
        tensors[module + names[end]] = value.T.contiguous()
    Path("dialect").mkdir()
    save_file(tensors, "dialect/lora.safetensors")
    Path("dialect/lora.json").write_text(json.dumps({"kind": "transposed", "alpha": 8}))
    adaptertools.merge("fixtures/tiny-llama", "dialect", "one", specs=["spec.toml"])
    adaptertools.merge("fixtures/tiny-llama", "fixtures/tiny-llama-lora", "two")
    one, two = (load_file(f"{name}/model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_ci_runs_the_readme_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    command = next(block for block in blocks("sh") if "pytest" in block)
    for step in command.strip().split(" && ")[1:]:
        words = step.replace(".venv/bin/", "").replace("'.[test,peers]'", "'.[test,peers,dev]'")
        assert words in script.replace(" -q\n", " -q\n"), words
