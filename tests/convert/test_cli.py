"""The command line of `convert`: what it prints, how it exits, where it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from builders import read_checkpoint, read_config, tiny_base
from cli.answers import Shell

import adaptertools

from .catalogue import CASES, llama
from .compare import EXACT, differences
from .running import converted
from .sources import llama_modules, peft_meanings


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA of two modules; its base's config lies beside it."""
    return llama(llama_modules(["self_attn.q_proj"], [0, 1, 2])).write(tmp_path)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_public_function_stays_callable(tmp_path: Path) -> None:
    """`adaptertools.convert` is the function, also after it was called once."""
    converted(tmp_path, CASES["attention"](), "peft-lora")
    assert callable(adaptertools.convert)


def test_what_it_prints(run: Shell, lora: Path, tmp_path: Path) -> None:
    """The formats, the files' place, that it was read back, and the result alone with -q."""
    base = ("--base", tmp_path / "base")
    told = run("convert", lora, "--to", "gguf-lora", "-o", tmp_path / "a.gguf", *base).out
    assert "3 targets, peft-lora → gguf-lora" in told
    assert "read back: 3 targets mean the same, bit for bit" in told
    quiet = run("convert", lora, "--to", "gguf-lora", "-o", tmp_path / "b.gguf", *base, "-q").out
    assert quiet == f"{tmp_path / 'b.gguf'}\n"
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_json(run: Shell, lora: Path, tmp_path: Path) -> None:
    """One document that says what was done."""
    base, out = tmp_path / "base", tmp_path / "out"
    told = run("convert", lora, "--to", "mlx-lora", "-o", out, "--base", base, "--json").json
    assert (told["from"], told["to"], told["out"]) == ("peft-lora", "mlx-lora", str(out))
    assert (told["targets"], told["checked"], told["exact"]) == (3, 3, 3)
    assert told["largest_error"] == 0
    assert set(told["files"]) == names(out) == {"adapters.safetensors", "adapter_config.json"}


def test_a_dry_run_writes_nothing(run: Shell, lora: Path, tmp_path: Path) -> None:
    """It plans, says what would be changed, and leaves no trace."""
    source = CASES["mixed"]()
    folder, before = source.write(tmp_path / "mixed"), names(tmp_path)
    options = ("--to", "mlx-lora", "-o", tmp_path / "out", "--base", tmp_path / "base")
    told = run("convert", folder, *options, "--dry-run").out
    assert "padded" in told
    assert "folded" in told
    facts = run("convert", folder, *options, "--dry-run", "--json").json
    assert {change["kind"] for change in facts["changes"]} >= {"padded", "folded"}
    assert "checked" not in facts
    assert names(tmp_path) == before


def test_a_dry_run_finds_that_out_must_be_a_folder(run: Shell, lora: Path, tmp_path: Path) -> None:
    """AT257 (files beside the weights) is told before anything is written."""
    options = ("--to", "mlx-lora", "-o", tmp_path / "x.safetensors", "--base", tmp_path / "base")
    answer = run("convert", lora, *options, "--dry-run", code=1)
    assert "OUT is a folder" in answer.err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--to", "gguf"), 1, "did you mean 'gguf-lora'?"),
        (("--to", "litgpt-old"), 1, "can be read, but not written"),
        (("--to", "gguf-lora", "--dtype", "f64"), 1, "AT255"),
        (("--to", "gguf-lora", "--jobs", "0"), 2, "--jobs"),
        (("--to", "trtllm-lora", "--dtype", "bf16"), 1, "AT255"),
        ((), 2, "--to"),
    ],
)
def test_exit_codes(
    run: Shell, lora: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, told: str
) -> None:
    """1 where it cannot be done, 2 where it was asked wrongly; nothing is left."""
    before = names(tmp_path)
    base = ("--base", tmp_path / "base", "-o", tmp_path / "out")
    answer = run("convert", lora, *arguments, *base, code=code)
    assert told in answer.err
    assert names(tmp_path) == before


def test_errors_in_json(run: Shell, tmp_path: Path) -> None:
    """Every reason, each with its code and the modules."""
    folder = CASES["saved-head"]().write(tmp_path)
    base = ("--base", tmp_path / "base")
    options = ("--to", "gguf-lora", "-o", tmp_path / "out", *base, "--json")
    error = run("convert", folder, *options, code=1).json["error"]
    assert error["code"] == "AT251"
    assert error["where"]["key"] == "lm_head.weight"
    assert [finding["id"] for finding in error["findings"]] == ["AT251"]


def test_lossy(run: Shell, tmp_path: Path) -> None:
    """What the format cannot hold is left out by name, and only with --lossy."""
    folder, out = CASES["saved-head"]().write(tmp_path), tmp_path / "out"
    options = ("--to", "mlx-lora", "-o", out, "--base", tmp_path / "base")
    assert "--lossy leaves them out" in run("convert", folder, *options, code=1).err
    told = run("convert", folder, *options, "--lossy", "--json").json
    lost = [change for change in told["changes"] if change["kind"] == "lost"]
    assert [change["targets"] for change in lost] == [["lm_head.weight"]]
    assert told["checked"] == 3


def test_set_tells_what_the_file_does_not(run: Shell, lora: Path, tmp_path: Path) -> None:
    """loralib has no alpha: it is told on the way out, and asked for on the way in."""
    file, back = tmp_path / "x.pt", tmp_path / "back"
    assert "lora_alpha" in run("convert", lora, "--to", "loralib", "-o", file).out
    options = ("--to", "peft-lora", "-o", back)
    assert "--set lora_alpha=NUMBER" in run("convert", file, *options, code=1).err
    run("convert", file, *options, "--set", "lora_alpha=6")
    assert differences(peft_meanings(lora), peft_meanings(back), EXACT) == []


def test_out(run: Shell, lora: Path, tmp_path: Path) -> None:
    """A file where there is only one; a folder else; never over what is there, unasked."""
    base = ("--base", tmp_path / "base")
    run("convert", lora, "--to", "gguf-lora", "-o", tmp_path / "x.gguf", *base)
    assert (tmp_path / "x.gguf").is_file()
    assert names(tmp_path) == {"source", "base", "x.gguf"}
    run("convert", lora, "--to", "gguf-lora", "-o", tmp_path / "x", *base)
    assert names(tmp_path / "x") == {"adapter.gguf"}
    old = (tmp_path / "x.gguf").read_bytes()
    again = ("convert", lora, "--to", "gguf-lora", "-o", tmp_path / "x.gguf", *base)
    assert "--overwrite" in run(*again, code=1).err
    assert (tmp_path / "x.gguf").read_bytes() == old
    run(*again, "--dtype", "f16", "--overwrite")
    assert (tmp_path / "x.gguf").read_bytes() != old
    inside = run("convert", lora, "--to", "peft-lora", "-o", lora, "--overwrite", code=1)
    assert "AT5" in inside.err
    assert names(lora) == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_spec_of_your_own(run: Shell, lora: Path, tmp_path: Path) -> None:
    """--spec adds a format to write, and to read."""
    from conformance.test_itself import GOOD

    (tmp_path / "mine.toml").write_text(GOOD)
    spec = ("--spec", tmp_path / "mine.toml")
    run("convert", lora, "--to", "invented", "-o", tmp_path / "out", *spec)
    assert json.loads((tmp_path / "out" / "invented.json").read_text())["kind"] == "invented"
    run("convert", tmp_path / "out", "--to", "peft-lora", "-o", tmp_path / "back", *spec)
    assert differences(peft_meanings(lora), peft_meanings(tmp_path / "back"), EXACT) == []
    run("convert", tmp_path / "out", "--to", "peft-lora", "-o", tmp_path / "no", code=1)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_a_base_to_meta_and_back(run: Shell, tmp_path: Path, parts: int, tied: bool) -> None:
    """Every tensor comes back bit for bit; q and k are reordered on the way, by their own heads."""
    base = tiny_base(tmp_path / "base", heads=4, kv_heads=2, hidden=64, tied=tied)
    meta, back = tmp_path / "meta", tmp_path / "back"
    run("convert", base, "--to", "meta", "-o", meta, "--parts", parts)
    assert {f"consolidated.{n:02d}.pth" for n in range(parts)} <= names(meta)
    run("convert", meta, "--to", "hf", "-o", back)
    wanted, got = read_checkpoint(base), read_checkpoint(back)
    assert wanted.keys() <= got.keys()
    assert [name for name in wanted if got[name] != wanted[name]] == []
    assert all(
        got[name] == wanted["model.embed_tokens.weight"] for name in got.keys() - wanted.keys()
    )
    old, new = read_config(base), read_config(back)
    same = ("hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
    assert [old[name] for name in same] == [new[name] for name in same]


def test_rows_in_metas_layout(run: Shell, tmp_path: Path) -> None:
    """wq and wk hold Meta's order of rows; the parts join along the axis of each."""
    import torch

    from .layouts import to_meta

    base = tiny_base(tmp_path / "base", heads=4, kv_heads=2, hidden=64, dtype="F32")
    run("convert", base, "--to", "meta", "-o", tmp_path / "meta", "--parts", 2)
    files = sorted((tmp_path / "meta").glob("*.pth"))
    parts = [torch.load(file, weights_only=True) for file in files]
    stored = {
        name: np.frombuffer(t[2], "f4").reshape(t[1]) for name, t in read_checkpoint(base).items()
    }
    for hf, meta, heads, axis in (
        ("self_attn.q_proj", "attention.wq", 4, 0),
        ("self_attn.k_proj", "attention.wk", 2, 0),
        ("self_attn.v_proj", "attention.wv", None, 0),
        ("self_attn.o_proj", "attention.wo", None, 1),
        ("mlp.down_proj", "feed_forward.w2", None, 1),
    ):
        rows = stored[f"model.layers.1.{hf}.weight"]
        wanted = rows if heads is None else to_meta(rows, heads)
        got = np.concatenate([part[f"layers.1.{meta}.weight"].numpy() for part in parts], axis)
        assert np.array_equal(got, wanted), hf
