"""`validate --for`: in Python, on the command line, and without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from builders import tiny_base, tiny_ia3

import adaptertools
from adaptertools.check.profile import profile_names
from adaptertools.cli.main import main

from . import adapters as a


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the command line; return its exit code and what it printed."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def test_in_python(tmp_path: Path) -> None:
    """The findings of a server come on top of the usual ones."""
    place = a.lora(tmp_path / "x", a.plus(odd__name=(2,)), use_rslora=True)
    usual = adaptertools.validate(place)
    report = adaptertools.validate(place, profile="sglang")
    assert {f.id for f in usual.findings} < {f.id for f in report.findings}
    assert {f.id for f in report.findings} - {f.id for f in usual.findings} >= {"AT715"}
    assert (usual.profile, report.profile) == (None, "sglang")
    assert "for" not in usual.to_json()
    assert report.to_json()["for"] == "sglang"
    ranks = [("error", "warning", "info").index(f.severity) for f in report.findings]
    assert ranks == sorted(ranks)


def test_what_is_served_is_ok(tmp_path: Path) -> None:
    """A clean adapter is ok for some servers and not for others; warnings do not spoil it."""
    plain = a.lora(tmp_path / "plain")
    assert adaptertools.validate(plain, profile="vllm").ok
    assert adaptertools.validate(plain, profile="vllm").findings == ()
    assert not adaptertools.validate(plain, profile="llama.cpp").ok
    large = adaptertools.validate(a.lora(tmp_path / "large", rank=32), profile="vllm")
    assert [f.id for f in large.findings] == ["AT710"]
    assert large.ok


def test_the_base_answers(tmp_path: Path) -> None:
    """What only the base can tell is asked of its config.json, which is enough."""
    place = a.lora(tmp_path / "x", a.EMBEDDING)
    tied = tiny_base(tmp_path / "tied", tied=True)
    untied = tiny_base(tmp_path / "untied")
    (untied / "model.safetensors").unlink()
    told = {
        name: [f.severity for f in adaptertools.validate(place, base, profile="mlx").findings
               if f.id == "AT726"]
        for name, base in (("none", None), ("tied", tied), ("untied", untied))
    }  # fmt: skip
    assert told == {"none": ["info"], "tied": ["error"], "untied": []}


def test_what_cannot_be_read_is_told_alone(tmp_path: Path) -> None:
    """No adapter, no server: the reading fault, with the name of the server that was asked."""
    report = adaptertools.validate(tmp_path / "nowhere", profile="tgi")
    assert [f.id for f in report.findings] == ["AT100"]
    assert report.to_json()["for"] == "tgi"


def test_a_base_is_no_adapter(tmp_path: Path) -> None:
    """A server is not asked about a checkpoint."""
    base = tiny_base(tmp_path / "base")
    assert adaptertools.validate(base).ok
    (finding,) = adaptertools.validate(base, profile="vllm").findings
    assert (finding.id, finding.severity) == ("AT500", "error")


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Words, JSON, quiet and the exit code."""
    place = a.lora(tmp_path / "x", use_rslora=True)
    code, out, err = command(capsys, "validate", place, "--for", "sglang")
    assert (code, err) == (1, "")
    assert "error   AT715" in out
    assert "SGLang ignores use_rslora" in out
    assert "fix: 'adaptertools convert --for sglang'" in out
    assert out.endswith(": 1 error  (peft-lora, for sglang)\n")
    code, out, _ = command(capsys, "validate", place, "--for", "sglang", "--json")
    document = json.loads(out)
    assert (code, document["for"], document["ok"]) == (1, "sglang", False)
    assert [f["id"] for f in document["findings"]] == ["AT715"]
    code, out, _ = command(capsys, "validate", place, "--for", "vllm", "-q")
    assert (code, out) == (0, "ok\n")
    code, out, _ = command(capsys, "validate", place, "--json")
    assert (code, "for" in json.loads(out)) == (0, False)


def test_an_unknown_server_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error of usage with the nearest name; the help lists them all."""
    code, out, err = command(capsys, "validate", a.lora(tmp_path / "x"), "--for", "vlm")
    assert (code, out) == (2, "")
    assert "AT500" in err
    assert "'vllm'" in err
    _, out, _ = command(capsys, "validate", "--help")
    assert "llama.cpp, mlx, sglang, tgi, trt-llm, vllm" in " ".join(out.split())


def test_control_characters_of_a_file_are_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a config says is shown as text."""
    place = a.lora(tmp_path / "x", init_lora_weights="a\x1b[2Jb", target_modules="q\x1b[31m.*")
    for server in ("vllm", "sglang"):
        _, out, err = command(capsys, "validate", place, "--for", server)
        assert "\x1b" not in out + err
        assert "\\x1b" in out


def test_torch_is_never_loaded(tmp_path: Path) -> None:
    """A validation for every server reads headers and bytes without torch."""
    places = [a.lora(tmp_path / "x", a.EMBEDDING, a.zeros("0.self_attn.q_proj.lora_B"))]
    places.append(tiny_ia3(tmp_path / "ia3", a.BASE))
    base = tiny_base(tmp_path / "base")
    code = (
        "import sys, adaptertools\n"
        f"for server in {profile_names()!r}:\n"
        f"    for place in {[str(p) for p in places]!r}:\n"
        f"        report = adaptertools.validate(place, {str(base)!r}, profile=server)\n"
        "        assert any(f.id.startswith('AT7') for f in report.findings), (place, server)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
