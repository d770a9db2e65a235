"""The frame of the command line: help, near misses, exit codes, completion, aliases."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import adaptertools
from adaptertools.cli import main as main_module
from adaptertools.cli.main import ALIASES, COMMANDS

from .answers import Shell


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_examples(run: Shell, name: str, flag: str) -> None:
    """Every command's help has its usage, a sentence, and examples that name the command."""
    text = run(name, flag).out
    assert text.startswith(f"Usage: adaptertools {name}")
    examples = re.findall(r"^ +(adaptertools .+)$", text.split("Examples:")[1], re.MULTILINE)
    assert examples
    assert all(line.split()[1] == name for line in examples)
    assert "--json" in text
    assert "-q, --quiet" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_use_options_that_exist(run: Shell, name: str) -> None:
    """Each option in an example is one that the command has."""
    text = run(name, "--help").out
    head, examples = text.split("Examples:")
    used = set(re.findall(r"(?<= )--?[a-z][a-z-]*", examples))
    known = set(re.findall(r"--?[a-z][a-z-]*", head))
    assert used <= known


def test_the_front_page(run: Shell) -> None:
    """All commands with their sentence, an example, and the version."""
    text = run("--help").out
    for name, (_, sentence) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(sentence[:30])}", text, re.MULTILINE)
    assert "Example: adaptertools merge ./base ./adapter -o ./merged" in text
    assert re.fullmatch(r"adaptertools, version \d+\.\d+\.\d+\S*\n", run("--version").out)


def test_nothing_at_all_is_a_question_for_help(run: Shell) -> None:
    """Without arguments the commands are shown, and it is a usage error."""
    answer = run(code=2)
    assert "Usage: adaptertools" in answer.out + answer.err


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("mrege", "merge"), ("inspec", "inspect"), ("vaildate", "validate"), ("format", "formats")],
)
def test_unknown_commands_have_near_misses(run: Shell, wrong: str, near: str) -> None:
    """Exit 2, and the command meant."""
    answer = run(wrong, code=2)
    assert f"No such command '{wrong}'" in answer.err
    assert f"Did you mean '{near}'?" in answer.err
    assert answer.out == ""


def test_a_far_miss_lists_the_commands(run: Shell) -> None:
    """Nothing is guessed where nothing is near."""
    answer = run("xyzzy", code=2)
    assert all(name in answer.err for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("merge", "a", "b", "-o", "c", "--overwite"), "--overwrite"),
        (("merge", "a", "b", "-o", "c", "--dtpye", "f32"), "--dtype"),
        (("inspect", "a", "--jsn"), "--json"),
        (("merge", "a", "b"), "--out"),
        (("merge", "a", "-o", "c"), "ADAPTER"),
        (("merge", "a", "b", "-o", "c", "--compute-dtype", "f16"), "'auto', 'f32', 'f64'"),
        (("merge", "a", "b", "-o", "c", "--jobs", "0"), "--jobs"),
        (("merge", "a", "b", "-o", "c", "--dtype", "f31"), "bf16"),
        (("merge", "a", "b", "-o", "c", "--shard-size", "big"), "5GB"),
        (("merge", "a", "b=inf", "-o", "c"), "finite"),
        (("formats", "--spec", "/nowhere.toml"), "/nowhere.toml"),
        (("inspect",), "REF"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_usage_errors(run: Shell, arguments: tuple[str, ...], told: str, as_json: bool) -> None:
    """Exit 2 with what was meant; with --json one document on stdout."""
    answer = run(*arguments, *(["--json"] if as_json else []), code=2)
    if as_json:
        error = answer.json["error"]
        assert error["code"] == "AT500"
        assert told in error["message"] + error["hint"]
    else:
        assert told in answer.err
        assert answer.out == ""


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases_are_the_command(run: Shell, alias: str) -> None:
    """`fuse` and the others are the command they stand for."""
    first, second = run(alias, "--help").out, run(ALIASES[alias], "--help").out
    assert first.split("\n", 1)[1] == second.split("\n", 1)[1]


def test_fuse_merges(run: Shell, base: Path, lora: Path, tmp_path: Path) -> None:
    """`fuse` writes what `merge` writes."""
    run("fuse", base, lora, "-o", tmp_path / "one")
    run("merge", base, lora, "-o", tmp_path / "two")
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(run: Shell, shell: str) -> None:
    """Each shell's script names the program and click's variable."""
    text = run("--show-completion", shell).out
    assert "_ADAPTERTOOLS_COMPLETE" in text
    assert f"{shell}_complete" in text


def test_completion_completes() -> None:
    """What the script asks for is answered with commands."""
    env = {"_ADAPTERTOOLS_COMPLETE": "bash_complete", "COMP_WORDS": "adaptertools me",
           "COMP_CWORD": "1", "PATH": "/usr/bin"}  # fmt: skip
    call = [str(Path(sys.executable).parent / "adaptertools")]
    done = subprocess.run(call, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert "plain,merge" in done.stdout.split()


def test_completion_of_an_unknown_shell(run: Shell) -> None:
    """The known ones are told."""
    assert "'bash', 'zsh', 'fish'" in run("--show-completion", "tcsh", code=2).err


def test_an_interrupt_exits_130(run: Shell, monkeypatch: pytest.MonkeyPatch, lora: Path) -> None:
    """Ctrl-C is 130 and one line, or one document."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module.cli, "main", stop)
    answer = run("inspect", lora, code=130)
    assert "interrupted" in answer.err
    assert (answer.out, answer.err.count("\n")) == ("", 1)
    assert "interrupted" in run("inspect", lora, "--json", code=130).json["error"]["message"]


def test_a_surprise_is_reported_as_one(run: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """AT999 names the exception and how to see more; nobody sees a traceback."""

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("odd \x1b[31m")

    monkeypatch.setattr(main_module.cli, "main", fail)
    answer = run("env", code=1)
    assert "error AT999: unexpected ZeroDivisionError: odd \\x1b[31m" in answer.err
    assert "ADAPTERTOOLS_DEBUG=1" in answer.err
    assert run("env", "--json", code=1).json["error"]["code"] == "AT999"


def test_debug_shows_the_traceback(
    run: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """ADAPTERTOOLS_DEBUG=1 lets the exception through."""
    monkeypatch.setenv("ADAPTERTOOLS_DEBUG", "1")
    with pytest.raises(adaptertools.AdapterError):
        main_module.main(["inspect", str(tmp_path / "nowhere")])


def test_python_dash_m(tmp_path: Path) -> None:
    """`python -m adaptertools` is the same program."""
    call = [sys.executable, "-m", "adaptertools", "inspect", str(tmp_path / "x"), "--json"]
    done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert '"AT100"' in done.stdout
    assert done.stderr == ""
