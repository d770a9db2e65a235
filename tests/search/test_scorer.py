"""Scorers: what counts as an answer, and every way not to give one."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adaptertools.errors import AdapterError
from adaptertools.searching.scorer import SampleError, StoppedError, make_scorer, read_score


def never() -> bool:
    return False


def asked(tmp_path: Path, score: str | Callable, timeout: float = 20.0) -> float:
    return make_scorer(score, timeout)(tmp_path / "it", tmp_path, never)


def python(code: str) -> str:
    return f'{sys.executable} -c "{code}"'


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("0.5", 0.5),
        ("0.5\n\n", 0.5),
        ("layers 24\nperplexity: 12.25\n", 12.25),
        ("score=-3", -3),
        ("1e-3", 1e-3),
        ("-.5E+2 done", -50),
        ("7.", 7),
        ("accuracy 93%", 93),
        ("0.25 by v1.2.3", 0.25),
        ("0.25 on 2024-01-02x", 0.25),
        ('{"score": 0.75, "n": 100}', 0.75),
        ('9\n{"score": 2}\n', 2),
        ("{0.5}", 0.5),
    ],
)
def test_read_score(text: str, score: float) -> None:
    assert read_score(text) == score


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "nothing"),
        ("\n \n", "nothing"),
        ("no idea", "no idea"),
        ("model7 v2", "no number"),
        ("0.5\nnan", "nan"),
        ("loss: inf", "inf"),
        ("-Infinity", "inf"),
        ("1e999", "inf"),
        ('{"score": NaN}', "nan"),
        ('{"score": null}', "None"),
        ('{"score": "0.5"}', "0.5"),
        ('{"score": true}', "True"),
        ('{"loss": 0.5}', "score"),
    ],
)
def test_read_rubbish(text: str, told: str) -> None:
    with pytest.raises(SampleError) as caught:
        read_score(text)
    assert told in str(caught.value)


def test_command_gets_the_path_last_or_in_its_place(tmp_path: Path) -> None:
    code = "import sys; print(sys.argv[1:].index(sys.argv[-1]), len(sys.argv[-1]))"
    long = len(str(tmp_path / "it"))
    assert asked(tmp_path, python(code)) == long
    assert asked(tmp_path, python(code) + " --model={}") == long + len("--model=")
    assert asked(tmp_path, python("import sys; print(len(sys.argv))") + " {} more") == 3


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("print(1); raise SystemExit(3)", "exit code 3"),
        ("import sys; print(1); sys.exit('out of memory')", "exit code 1: out of memory"),
        ("import os; print(1, flush=True); os.kill(os.getpid(), 9)", "died of SIGKILL"),
        ("import os; os.abort()", "died of SIGABRT"),
        ("print('hello')", "no number, but 'hello'"),
        ("print(float('nan'))", "nan"),
        ("pass", "printed nothing"),
        ("import sys; sys.stdout.buffer.write(bytes([255, 254]))", "no number"),
        ("import sys; print('0.5', file=sys.stderr)", "printed nothing"),
    ],
)
def test_commands_that_fail(tmp_path: Path, code: str, told: str) -> None:
    with pytest.raises(SampleError) as caught:
        asked(tmp_path, python(code))
    assert told in str(caught.value)


def test_much_output_is_no_burden(tmp_path: Path) -> None:
    code = "print('x' * 30_000_000); print(0.5)"
    assert asked(tmp_path, python(code)) == 0.5


def gone(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]:
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


def hanging(tmp_path: Path) -> str:
    """A command that starts another and hangs, deaf to SIGTERM; both write their number down."""
    place = tmp_path / "pids"
    script = tmp_path / "hang.py"
    script.write_text(
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(place)!r} + '.new', 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        f"os.rename({str(place)!r} + '.new', {str(place)!r})\n"
        "time.sleep(60)\n"
    )
    return f"{sys.executable} {script}"


def test_command_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(SampleError, match="no answer in 1 seconds"):
        asked(tmp_path, hanging(tmp_path), timeout=1)
    assert time.monotonic() - started < 10
    pids = list(map(int, (tmp_path / "pids").read_text().split()))
    assert len(pids) == 2
    assert all(map(gone, pids))


def test_command_is_ended_when_the_search_is(tmp_path: Path) -> None:
    place = tmp_path / "pids"
    with pytest.raises(StoppedError):
        make_scorer(hanging(tmp_path), 60)(tmp_path / "it", tmp_path, place.exists)
    assert all(map(gone, map(int, place.read_text().split())))


def test_children_that_live_on_do_not_hold_the_answer(tmp_path: Path) -> None:
    code = "import subprocess; p = subprocess.Popen(['sleep', '30']); print(p.pid / 2)"
    started = time.monotonic()
    pid = round(2 * asked(tmp_path, python(code)))
    assert time.monotonic() - started < 10
    os.kill(pid, signal.SIGKILL)


class Number:
    """As numpy's and torch's are: no float, but it becomes one."""

    def __float__(self) -> float:
        return 0.25


@pytest.mark.parametrize(
    ("answer", "score"), [(2, 2), (0.5, 0.5), ({"score": 3}, 3), (Number(), 0.25)]
)
def test_function(tmp_path: Path, answer: object, score: float) -> None:
    seen = []
    assert asked(tmp_path, lambda path: seen.append(path) or answer) == score
    assert seen == [tmp_path / "it"]


@pytest.mark.parametrize("answer", [None, "0.5", float("nan"), float("-inf"), True, {}, [1, 2]])
def test_function_with_rubbish(tmp_path: Path, answer: object) -> None:
    with pytest.raises(SampleError):
        asked(tmp_path, lambda path: answer)


@pytest.mark.parametrize("error", [ValueError("bad\nluck"), SystemExit(2), KeyboardInterrupt()])
def test_function_that_fails(tmp_path: Path, error: BaseException) -> None:
    def fail(path: Path) -> float:
        raise error

    with pytest.raises(SampleError, match=type(error).__name__) as caught:
        asked(tmp_path, fail)
    assert "\n" not in str(caught.value)


def test_function_that_hangs(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"no answer in 0\.2 seconds"):
        asked(tmp_path, lambda path: time.sleep(5), timeout=0.2)


def test_function_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_scores.py").write_text("class A:\n    length = lambda p: len(str(p))\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert asked(tmp_path, "my_scores:A.length") == len(str(tmp_path / "it"))
    assert sys.path == before


@pytest.mark.parametrize(
    ("score", "told"),
    [
        ("no_such_module_here:f", "no_such_module_here"),
        ("math:no_such", "no_such"),
        ("math:pi", "called"),
        ("no-such-command --fast", "no-such-command"),
        ("'", "words"),
        ("", "empty"),
    ],
)
def test_what_cannot_be_called_is_told_at_once(score: str, told: str) -> None:
    with pytest.raises(AdapterError) as caught:
        make_scorer(score, 1)
    assert caught.value.code == "AT500"
    assert told in str(caught.value)
