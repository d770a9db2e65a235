"""`adaptertools search` as it is typed, and interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli.answers import Shell

from .known import Known, files_of, log_lines
from .test_scorer import gone, hanging

ROOT = Path(__file__).resolve().parents[2]


def test_it_answers(run: Shell, known: Known, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = run(
        *("search", known.base, *known.adapters, "-o", out),
        *("--score", known.command(), "--samples", 4),
    )
    best = json.loads(max(out.with_name("out.search.jsonl").read_text().splitlines()[1:], key=at))
    assert f"{best['score']:.6g}" in answer.out.splitlines()[0]
    assert "style=" in answer.out.splitlines()[0]
    assert f"the best is number {best['k']}" in answer.out
    assert str(tmp_path / "out.recipe.yaml") in answer.out
    assert len(answer.err.splitlines()) == 4
    assert "•" in answer.out or "search.png" in answer.out
    run("run", tmp_path / "out.recipe.yaml", "-o", tmp_path / "again")
    assert files_of(out) == files_of(tmp_path / "again")


def at(line: str) -> float:
    return json.loads(line)["score"]


def test_json_is_one_document_though_the_scorer_prints(
    run: Shell, known: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def score(path):\n    print('noise', path)\n    return len(str(path))\n"
    (tmp_path / "noisy_scorer.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    answer = run(
        *("search", known.base, *known.adapters, "-o", "out", "--json"),
        *("--score", "noisy_scorer:score", "--samples", 3, "--minimize"),
    )
    assert answer.json["best"]["score"] == answer.json["trials"][0]["score"]
    assert [trial["k"] for trial in answer.json["trials"]] == [0, 1, 2]
    assert answer.json["minimize"] is True
    assert "noise" in answer.err


def test_quiet_prints_the_place(run: Shell, known: Known, tmp_path: Path) -> None:
    answer = run(
        *("search", known.base, *known.adapters, "-o", tmp_path / "out", "-q"),
        *("--score", "math:log", "--samples", 1),
        code=1,
    )
    assert "TypeError" in answer.err
    answer = run(
        *("search", known.base, *known.adapters, "-o", tmp_path / "o2", "-q", "--compose"),
        *("--score", "echo {} 1.5", "--samples", 1, "--rank", 2),
    )
    assert (answer.out, answer.err) == (f"{tmp_path / 'o2'}\n", "")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--samples", 0), "--samples"),
        (("--samples", 2, "--method", "grid"), "'cma'"),
        (("--samples", 2, "--space", "x=0..1"), "'x'"),
        (("--samples", 2, "--seconds", 0), "seconds"),
        (("--samples", 2, "--rank", 2, "--energy", 0.5), "one rank rule"),
        ((), "--samples"),
    ],
)
def test_usage(run: Shell, known: Known, tmp_path: Path, options: tuple, told: str) -> None:
    words = ("search", known.base, *known.adapters, "-o", tmp_path / "out", "--score", "echo 1")
    answer = run(*words, *options, code=2)
    assert told in answer.err
    assert not list(tmp_path.iterdir())


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom adaptertools.cli.main import main\n"
        "try: main(['search', '--help'])\n"
        "except SystemExit: print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"


def start(known: Known, out: Path, score: str, samples: int, *options: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "adaptertools", "search", known.base, *known.adapters]
    words += ["-o", out, "--score", score, "--samples", samples, *options]
    return subprocess.Popen(
        list(map(str, words)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(check) -> None:
    for _ in range(600):
        if check():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


def slow(tmp_path: Path) -> str:
    """A scorer that takes a while and depends on the weights only."""
    script = tmp_path / "slow.sh"
    script.write_text('sleep 0.15; cksum < "$1/model.safetensors" | cut -d" " -f1\n')
    return f"sh {script}"


def test_ctrl_c_keeps_the_log_and_resume_goes_on(known: Known, tmp_path: Path) -> None:
    place, score = tmp_path / "place", slow(tmp_path)
    place.mkdir()
    out, log = place / "out", place / "out.search.jsonl"
    child = start(known, out, score, 200)
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 4)
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=20)[0]
    assert child.returncode == 130, said
    assert "--resume" in said
    assert [path.name for path in place.iterdir()] == [log.name]
    done = len(log_lines(out)) - 1
    assert 4 <= done < 200
    child = start(known, out, score, done + 2, "--resume")
    said = child.communicate(timeout=60)[0]
    assert child.returncode == 0, said
    assert f"{done} of them from the log" in said
    known.search(place / "whole", done + 2, score=score)
    assert log_lines(out) == log_lines(place / "whole")
    assert files_of(out) == files_of(place / "whole")


def test_ctrl_c_ends_the_scorer(known: Known, tmp_path: Path) -> None:
    child = start(known, tmp_path / "out", hanging(tmp_path), 5)
    wait_for((tmp_path / "pids").exists)
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=20)[0]
    assert child.returncode == 130, said
    assert all(map(gone, map(int, (tmp_path / "pids").read_text().split())))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hang.py", "pids"]


def test_killed_and_resumed(known: Known, tmp_path: Path) -> None:
    """What a killed search leaves is taken away by the next."""
    out, log = tmp_path / "out", tmp_path / "out.search.jsonl"
    child = start(known, out, slow(tmp_path), 200)
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 2)
    child.kill()
    child.communicate()
    scratch = tmp_path / ".out.adaptertools-search"
    scratch.mkdir(exist_ok=True)
    done = len(log_lines(out)) - 1
    child = start(known, out, slow(tmp_path), done + 1, "--resume")
    said = child.communicate(timeout=60)[0]
    assert child.returncode == 0, said
    assert not scratch.exists()
    assert len(log_lines(out)) == done + 2
    shutil.rmtree(out)
