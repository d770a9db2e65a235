"""Each command: its words, its JSON, its quiet form, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from builders import encode, read_safetensors, tiny_ia3, write_safetensors

from adaptertools import schemas

from .answers import Shell

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "adapter_model.safetensors"
INSPECT = {"format", "method", "base_model", "rank", "ranks", "scale", "targets", "dtypes", "bytes",
           "unmatched", "evidence"}  # fmt: skip
PLAN = {"base", "adapters", "touched", "targets", "copied_bytes", "computed_bytes", "peak_bytes",
        "output_bytes", "files"}  # fmt: skip
FINDING = {"id", "severity", "where", "expected", "found", "hint"}
ERROR = {"code", "message", "where", "hint"}


def spoil(lora: Path, name: str = "odd") -> None:
    """Add a tensor that belongs to nothing."""
    tensors = read_safetensors(lora / WEIGHTS)
    tensors[name] = encode([1.0], "F32")
    write_safetensors(lora / WEIGHTS, tensors, {"format": "pt"})


def test_inspect_json(run: Shell, lora: Path) -> None:
    """The fields that scripts rely on, with their values."""
    told = run("inspect", lora, "--json").json
    assert told.keys() >= INSPECT
    assert (told["format"], told["method"], told["base_model"]) == ("peft-lora", "lora", "me/base")
    assert (told["rank"], told["ranks"], told["scale"]) == (4, {"4": 4}, 2.0)
    assert told["dtypes"] == {"F32": 8}
    assert told["bytes"] == 4 * 4 * (64 + 64 + 64 + 16) * 2
    assert told["unmatched"] == []
    assert told["targets"][0].keys() >= {"name", "kind", "rank", "scale", "shape"}
    by_name = {t["name"]: t for t in told["targets"]}
    assert by_name["model.layers.0.self_attn.v_proj.weight"] == {
        "name": "model.layers.0.self_attn.v_proj.weight",
        "kind": "low_rank",
        "rank": 4,
        "scale": 2.0,
        "shape": [16, 64],
    }


def test_inspect_of_mixed_ranks(run: Shell, lora: Path) -> None:
    """rank and scale are null when there is not one."""
    tensors = read_safetensors(lora / WEIGHTS)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors[key.format("A")] = encode([[0.5] * 64] * 2, "F32")
    tensors[key.format("B")] = encode([[0.5] * 2] * 64, "F32")
    write_safetensors(lora / WEIGHTS, tensors, {"format": "pt"})
    told = run("inspect", lora, "--json").json
    assert (told["rank"], told["ranks"]) == (None, {"2": 1, "4": 3})
    assert (told["scale"], told["scales"]) == (None, [2.0, 4.0])


def test_inspect_in_words(run: Shell, lora: Path, base: Path) -> None:
    """Format, evidence, targets, rank and scale on stdout; quiet prints the format alone."""
    text = run("inspect", lora).out
    for part in ("peft-lora", "peft_type=LORA", "q_proj ×2, v_proj ×2", "(alpha 8)", "me/base"):
        assert part in text
    assert "model.layers.1" not in text
    assert "model.layers.1.self_attn.q_proj.weight" in run("inspect", "-v", lora).out
    assert run("inspect", "-q", lora).out == "peft-lora\n"
    assert run("inspect", "-q", base).out == "llama\n"
    assert "base checkpoint" in run("inspect", base).out


def test_inspect_of_a_base(run: Shell, base: Path) -> None:
    """A checkpoint is told as one."""
    told = run("inspect", base, "--json").json
    assert told["kind"] == "base"
    assert (told["family"], told["shards"], told["dtypes"]) == ("llama", 1, {"BF16": 21})
    assert told["bytes"] == 2 * told["parameters"]


def test_inspect_of_a_spoiled_adapter(run: Shell, lora: Path) -> None:
    """What can be told is told, and the exit code is 1."""
    spoil(lora)
    told = run("inspect", lora, "--json", code=1).json
    assert told["unmatched"] == ["odd"]
    assert told["rank"] == 4


def test_validate_json(run: Shell, lora: Path, base: Path) -> None:
    """The report fits its schema, good or bad, alone or against a base."""
    report = jsonschema.Draft202012Validator(schemas.json_schema("report"))
    good = run("validate", lora, "--base", base, "--json").json
    report.validate(good)
    assert (good["ok"], good["findings"]) == (True, [])
    spoil(lora)
    bad = run("validate", lora, "--json", code=1).json
    report.validate(bad)
    assert bad["ok"] is False
    (finding,) = bad["findings"]
    assert finding.keys() >= FINDING
    assert (finding["id"], finding["severity"]) == ("AT210", "error")
    assert finding["where"] == {"file": str(lora / WEIGHTS), "key": "odd"}


def test_validate_in_words(run: Shell, lora: Path, base: Path, tmp_path: Path) -> None:
    """A verdict either way; quiet prints it alone."""
    assert "no faults found" in run("validate", lora).out
    assert run("validate", "-q", lora).out == "ok\n"
    other = tmp_path / "other"
    config = json.loads((base / "config.json").read_text())
    other.mkdir()
    (other / "config.json").write_text(json.dumps(config))
    tensors = {
        k: v for k, v in read_safetensors(base / "model.safetensors").items() if "q_" not in k
    }
    write_safetensors(other / "model.safetensors", tensors, {"format": "pt"})
    answer = run("validate", lora, "--base", other, code=1)
    assert "2 errors" in answer.out
    assert "AT401" in answer.out
    assert run("validate", "-q", lora, "--base", other, code=1).out == "failed\n"


def test_errors_are_one_document(run: Shell, lora: Path, tmp_path: Path) -> None:
    """Code, message, where and hint; nothing on stderr."""
    spoil(lora)
    cases = {
        "AT100": ("inspect", tmp_path / "nowhere"),
        "AT200": ("formats", "peft-lara"),
        "AT600": ("verify", tmp_path / "base"),
        "AT210": ("merge", tmp_path / "base", lora, "-o", tmp_path / "out"),
        "AT502": ("merge", tmp_path / "base", lora, "-o", tmp_path / "base"),
    }
    for code, arguments in cases.items():
        answer = run(*arguments, "--json", code=1)
        error = answer.json["error"]
        assert error.keys() >= ERROR
        assert error["message"]
        assert error["code"] == code
        assert error["where"].keys() == {"file", "key"}
        assert answer.err == ""
        words = run(*arguments, code=1)
        assert words.out == ""
        assert words.err.startswith(f"error {code}: ")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_base(run: Shell, lora: Path, tmp_path: Path) -> None:
    """Base and adapter swapped: exit 1 like any failure, with the hint that says so."""
    error = run("merge", lora, lora, "-o", tmp_path / "out", "--json", code=1).json["error"]
    assert "base comes first" in error["hint"]


def test_dry_run_json(run: Shell, base: Path, lora: Path, tmp_path: Path) -> None:
    """The plan's stable fields; its sizes are those of the merge that follows."""
    ia3 = tiny_ia3(tmp_path / "ia3", base)
    arguments = ("merge", base, lora, f"{ia3}=0.5", "-o", tmp_path / "out")
    plan = run(*arguments, "--dry-run", "--json").json
    assert plan.keys() >= PLAN
    assert not (tmp_path / "out").exists()
    assert [(a["path"], a["weight"]) for a in plan["adapters"]] == [
        (str(lora), 1.0),
        (str(ia3), 0.5),
    ]
    assert plan["touched"] == len(plan["targets"]) == 8
    assert {t["name"]: t["formula"] for t in plan["targets"]}[
        "model.layers.0.self_attn.v_proj.weight"
    ] == "(W + 2·B@A) ⊙ (1 + 0.5·(l - 1))"
    tensors = read_safetensors(base / "model.safetensors")
    assert plan["copied_bytes"] + plan["computed_bytes"] == sum(len(t[2]) for t in tensors.values())
    result = run(*arguments, "--json").json
    written = {p.name: p.stat().st_size for p in (tmp_path / "out").iterdir()}
    written.pop("adaptertools.json")
    assert {f["name"]: f["bytes"] for f in plan["files"]} == written
    assert plan["output_bytes"] == sum(written.values())
    assert (result["touched"], result["out"]) == (8, str(tmp_path / "out"))
    assert result["resumed_tasks"] == 0


def test_merge_in_words(run: Shell, base: Path, lora: Path, tmp_path: Path) -> None:
    """The result on stdout, remarks on stderr, the place alone when quiet."""
    config = json.loads((lora / "adapter_config.json").read_text()) | {"brandnew": 1}
    (lora / "adapter_config.json").write_text(json.dumps(config))
    plan = run("merge", base, lora, "-o", tmp_path / "out", "--dry-run")
    assert "W + 2·B@A" in plan.out
    assert "4 of 21 tensors change, by 4 updates" in plan.out
    answer = run("merge", base, lora, "-o", tmp_path / "out")
    assert "4 updates applied to 4 tensors, 17 copied untouched" in answer.out
    assert "AT302" in answer.err
    assert "AT302" not in answer.out
    quiet = run("merge", base, lora, "-o", tmp_path / "two", "-q")
    assert (quiet.out, quiet.err) == (f"{tmp_path / 'two'}\n", "")
    again = run("merge", base, lora, "-o", tmp_path / "two", code=1)
    assert "AT501" in again.err
    assert "--overwrite" in again.err
    run("merge", base, lora, "-o", tmp_path / "two", "--overwrite")


def test_verify(run: Shell, base: Path, lora: Path, tmp_path: Path) -> None:
    """By receipt, by inputs, and with the wrong weight, in words, JSON and quiet."""
    out = tmp_path / "out"
    run("merge", base, f"{lora}=0.5", "-o", out)
    assert run("verify", out).out.endswith("verified\n")
    assert run("verify", out, "-q").out == "ok\n"
    told = run("verify", out, "--base", base, "--adapter", f"{lora}=0.5", "--json").json
    assert (told["ok"], told["by_receipt"], len(told["targets"])) == (True, False, 4)
    wrong = run("verify", out, "--base", base, "--adapter", lora, "--json", code=1).json
    assert {t["verdict"] for t in wrong["targets"]} == {"other-strength"}
    assert {t["strength"] for t in wrong["targets"]} == {0.5}
    words = run("verify", out, "--base", base, "--adapter", lora, code=1).out
    assert words.endswith("not verified\n")
    assert run("verify", out, "--base", base, "--adapter", lora, "-q", code=1).out == "failed\n"


def test_formats(run: Shell) -> None:
    """All formats, and one; JSON of both."""
    names = {p.stem for p in (schemas.root() / "formats").glob("*.toml")}
    assert {spec["id"] for spec in run("formats", "--json").json} == names
    assert set(run("formats", "-q").out.split()) == names
    text = run("formats", "peft-lora").out
    assert "base_model.model.{module}.lora_A[.{adapter}].weight" in text
    assert "refuses  use_qalora" in text
    assert run("formats", "peft-lora", "--json").json["id"] == "peft-lora"
    assert "peft-lora" in run("formats", "peft-lara", code=1).err


def test_env(run: Shell) -> None:
    """Versions of what matters, in words and as JSON."""
    told = run("env", "--json").json
    assert told.keys() >= {"python", "platform", "adaptertools", "torch", "safetensors", "numpy"}
    assert run("env", "-q").out.strip() == told["adaptertools"]
    assert f"torch            {told['torch']}" in run("env").out


EVIL = "a\x1b[2J\x07\x9b31m\u202eb\rc\nd"


@pytest.mark.parametrize("command", ["inspect", "validate", "merge"])
@pytest.mark.parametrize("flags", [(), ("--json",), ("-q",)])
def test_control_characters_never_reach_the_terminal(
    run: Shell, base: Path, lora: Path, tmp_path: Path, command: str, flags: tuple[str, ...]
) -> None:
    """Keys, fields and names of files are shown escaped; the shell checks every answer."""
    spoil(lora, EVIL)
    config = json.loads((lora / "adapter_config.json").read_text())
    config |= {EVIL: 1, "base_model_name_or_path": EVIL, "alpha_pattern": {EVIL: 2}}
    (lora / "adapter_config.json").write_text(json.dumps(config))
    named = lora.rename(tmp_path / "x\x1b[31my")
    arguments = [named] if command != "merge" else [base, named, "-o", tmp_path / "out"]
    answer = run(command, *arguments, *flags, code=1)
    if not flags:
        assert "\\x1b[2J" in answer.out + answer.err


@pytest.mark.parametrize("name", ["tiny-llama-lora", "tiny-llama-dora", "tiny-llama-ia3"])
def test_the_fixtures(run: Shell, tmp_path: Path, name: str) -> None:
    """What the README shows works on the shipped fixtures."""
    fixtures = ROOT / "fixtures"
    assert run("validate", fixtures / name, "--base", fixtures / "tiny-llama", "--json").json["ok"]
    run("merge", fixtures / "tiny-llama", fixtures / name, "-o", tmp_path / "out", "-q")
    assert run("verify", tmp_path / "out", "-q").out == "ok\n"
