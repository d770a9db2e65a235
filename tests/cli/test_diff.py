"""`diff` and `inspect --spectrum`: their words, JSON, quiet form and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import decode, encode, read_safetensors, tiny_lora, write_safetensors

from adaptertools.base.merge import merge
from adaptertools.check.converting import convert
from adaptertools.cli.spectrum import bar

from .answers import Shell

WEIGHTS = "adapter_model.safetensors"
DIFF = {"kind", "a", "b", "formats", "same", "identical", "tol", "counts", "total"}
ITEM = {"name", "kind", "status", "relative", "tol", "norms", "cosine", "overlap",
        "sign_conflict", "parts", "equal", "elements", "largest", "dtypes", "shapes",
        "detail"}  # fmt: skip


@pytest.fixture
def other(tmp_path: Path, base: Path) -> Path:
    """A LoRA like the first, its q_proj trained further."""
    made = tiny_lora(tmp_path / "other", base, base_model_name_or_path="me/base")
    tensors = read_safetensors(made / WEIGHTS)
    for key, tensor in list(tensors.items()):
        if "q_proj.lora_B" in key:
            tensors[key] = encode(decode(tensor) * 1.5, "F32")
    write_safetensors(made / WEIGHTS, tensors, {"format": "pt"})
    return made


def test_diff_json(run: Shell, lora: Path, other: Path) -> None:
    """The fields, their values, and exit 1 for a difference."""
    told = run("diff", lora, other, "--json", code=1).json
    assert told.keys() == DIFF | {"targets"}
    assert (told["kind"], told["same"], told["tol"]) == ("adapters", False, None)
    assert told["counts"] == {"differs": 2, "identical": 2}
    item = next(t for t in told["targets"] if t["status"] == "differs")
    assert item.keys() == ITEM
    assert item["name"] == "model.layers.0.self_attn.q_proj.weight"
    assert item["relative"] == pytest.approx(1 / 3)
    assert item["cosine"] == pytest.approx(1.0)
    assert item["sign_conflict"]["share"] == 0.0
    assert item["overlap"]["output"]["share"] == pytest.approx(1.0)
    assert run("diff", lora, other, "--json", "--tol", "0.34").json["same"] is True


def test_exit_codes(run: Shell, lora: Path, other: Path, base: Path, tmp_path: Path) -> None:
    """0 the same, 1 different or wrong, 2 usage."""
    assert run("diff", "-q", lora, lora).out == "same\n"
    assert run("diff", "-q", lora, other, code=1).out == "different\n"
    assert run("diff", "-q", lora, other, "--tol", "0.34").out == "same\n"
    assert run("diff", "-q", base, base, "--tol", "0").out == "same\n"
    run("diff", lora, base, code=1)
    run("diff", lora, tmp_path / "nowhere", code=1)
    run("diff", lora, code=2)
    for tol in ("-1", "nan", "inf", "much"):
        run("diff", lora, other, "--tol", tol, code=2)
    error = run("diff", lora, base, "--json", code=1).json["error"]
    assert error["code"] == "AT630"


def test_diff_in_words(run: Shell, lora: Path, other: Path) -> None:
    """Layers alike are one row; identical targets only with -v; a verdict at the end."""
    text = run("diff", lora, other, code=1).out
    assert "model.layers.*.self_attn.q_proj.weight  ×2" in text
    assert "v_proj" not in text
    assert "4 targets: 2 differ, 2 bit for bit the same" in text
    assert text.splitlines()[-1].startswith("different: model.layers.")
    assert "0.33" in text
    full = run("diff", "-v", lora, other, code=1).out
    assert full.count("_proj.weight") == 5
    assert "model.layers.1.self_attn.v_proj.weight" in full
    assert run("diff", lora, lora).out.splitlines()[-1] == "the same, bit for bit"


def test_no_target_in_common(run: Shell, lora: Path, base: Path, tmp_path: Path) -> None:
    """A remark on stderr says what may help; not where a target is shared."""
    apart = tiny_lora(tmp_path / "apart", base, targets=("up_proj",))
    assert "no target in common; --base" in run("diff", lora, apart, code=1).err
    assert run("diff", lora, apart, "--base", base, code=1).err == ""
    less = tiny_lora(tmp_path / "less", base, targets=("q_proj",))
    assert run("diff", lora, less, code=1).err == ""


def test_diff_across_formats(run: Shell, lora: Path, base: Path, tmp_path: Path) -> None:
    """--base and --set reach the side that needs them."""
    convert(lora, "gguf-lora", tmp_path / "a.gguf", base=base)
    answer = run("diff", lora, tmp_path / "a.gguf", code=1)
    assert "--base" in answer.err
    text = run("diff", lora, tmp_path / "a.gguf", "--base", base).out
    assert text.splitlines()[1].endswith("a.gguf  gguf-lora")
    convert(lora, "loralib", tmp_path / "lora.pt", base=base)
    run("diff", lora, tmp_path / "lora.pt", code=1)
    run("diff", lora, tmp_path / "lora.pt", "--set", "lora_alpha=8")
    run("diff", lora, tmp_path / "lora.pt", "--set", "lora_alpha=9", code=1)


def test_diff_of_checkpoints(run: Shell, base: Path, lora: Path, tmp_path: Path) -> None:
    """The merged tensors by name, with the share of equal elements; JSON has every tensor."""
    merge(base, lora, tmp_path / "out")
    text = run("diff", base, tmp_path / "out", code=1).out
    assert "model.layers.*.self_attn.v_proj.weight  ×2  differs" in text
    assert "21 tensors: 17 bit for bit the same, 4 differ" in text
    assert "up_proj" not in text
    told = run("diff", base, tmp_path / "out", "--json", code=1).json
    assert told.keys() == DIFF | {"tensors"}
    assert len(told["tensors"]) == 21
    assert told["total"] is None


def test_diff_help_needs_no_torch() -> None:
    """The command is there, and its help is cheap."""
    code = (
        "import sys\nfrom adaptertools.cli.main import main\n"
        "try: main(['diff', '--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "--tol" in done.stdout


# --- inspect --spectrum --------------------------------------------------------------------------


def test_spectrum_in_words(run: Shell, lora: Path) -> None:
    """A bar per layer under each kind of module; plain inspect has none."""
    text = run("inspect", lora, "--spectrum").out
    lines = text.splitlines()
    start = lines.index("  q_proj  rank 4")
    assert lines[start + 1].split() == ["layer", "σ₁", "90", "%", "99", "%", "stable"]
    layer, top, k90, k99, stable, drawn = lines[start + 2].split()
    assert (layer, drawn) == ("0", bar(int(k90), int(k99), 4, 4))
    assert float(top) > 0
    assert 1 <= float(stable) <= 4
    assert "  v_proj  rank 4" in lines
    assert "█" not in run("inspect", lora).out


def test_bars() -> None:
    """One cell a rank up to 32, then in proportion; shorter ranks have shorter bars."""
    assert bar(2, 3, 8, 8) == "██▒·····"
    assert bar(1, 2, 4, 8) == "█▒··"
    assert bar(64, 128, 256, 256) == "█" * 8 + "▒" * 8 + "·" * 16
    assert bar(1, 1, 256, 256) == "█" + "·" * 31


def test_spectrum_json(run: Shell, lora: Path) -> None:
    """Added to what inspect tells."""
    told = run("inspect", lora, "--spectrum", "--json").json
    assert told["format"] == "peft-lora"
    assert len(told["spectrum"]) == 4
    first = told["spectrum"][0]
    assert first["name"] == "model.layers.0.self_attn.q_proj.weight"
    assert np.isclose(first["norm"] ** 2, np.square(first["values"]).sum())
    assert first["k90"] <= first["k99"] <= len(first["values"]) == 4
    assert "spectrum" not in run("inspect", lora, "--json").json


def test_spectrum_of_what_has_none(run: Shell, base: Path, lora: Path) -> None:
    """A base is a usage error; a spoiled adapter is told as without it."""
    run("inspect", base, "--spectrum", code=2)
    tensors = read_safetensors(lora / WEIGHTS)
    tensors["odd"] = encode([1.0], "F32")
    write_safetensors(lora / WEIGHTS, tensors, {"format": "pt"})
    assert "odd" in run("inspect", lora, "--spectrum", code=1).out


def test_plot_without_matplotlib(
    run: Shell, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clear error with what to install, and no file."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    answer = run("inspect", lora, "--plot", tmp_path / "x.png", "--json", code=1)
    error = answer.json["error"]
    assert (error["code"], error["hint"]) == ("AT633", "pip install 'adaptertools[plot]'")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("name", "code"), [("x.txt", "AT503"), ("there.png", "AT501"), ("lora/x.png", "AT502")]
)
def test_plot_at_a_wrong_place(
    run: Shell, lora: Path, tmp_path: Path, name: str, code: str
) -> None:
    """Refused before anything is read; nothing is replaced."""
    (tmp_path / "there.png").write_bytes(b"mine")
    answer = run("inspect", lora, "--plot", tmp_path / name, "--json", code=1)
    assert answer.json["error"]["code"] == code
    assert "--overwrite" not in answer.json["error"]["hint"]
    assert (tmp_path / "there.png").read_bytes() == b"mine"


def test_plot(run: Shell, lora: Path, tmp_path: Path) -> None:
    """A PNG at its place, and nothing beside it."""
    pytest.importorskip("matplotlib")
    before = set(tmp_path.iterdir())
    told = run("inspect", lora, "--plot", tmp_path / "x.png", "--json").json
    assert len(told["spectrum"]) == 4
    assert (tmp_path / "x.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert set(tmp_path.iterdir()) - before == {tmp_path / "x.png"}
    assert json.dumps(told)
