"""The log: what is in it, what a crash leaves of it, and when it is not believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adaptertools.errors import AdapterError
from adaptertools.searching.log import SearchLog, Trial
from adaptertools.searching.space import Point

ABOUT = {"inputs": "abc", "space": {"a": [0.0, 1.5]}, "sampler": "random", "seed": 0}
TRIALS = [
    Trial(0, Point((0.1,)), 0.1 + 0.2, 1.25),
    Trial(2, Point((1.5,), 0.3, 8), None, 0.5, "exit code 1: ünlucky"),
    Trial(1, Point((0.0,)), -1e-300, 0.0),
]


def written(path: Path) -> Path:
    log = SearchLog(path, ABOUT, resume=False)
    for trial in TRIALS:
        log.append(trial)
    log.close()
    return path


def found(path: Path, **about: object) -> dict[int, Trial]:
    log = SearchLog(path, ABOUT | about, resume=True)
    log.close()
    return log.found


def test_lines(tmp_path: Path) -> None:
    first, *lines = map(json.loads, written(tmp_path / "log").read_text().splitlines())
    assert first == {"schema": 1, **ABOUT}
    assert lines[0] == {
        "k": 0,
        "weights": [0.1],
        "score": 0.30000000000000004,
        "seconds": 1.25,
        "inputs": "abc",
    }
    assert lines[1]["reason"] == "exit code 1: ünlucky"
    assert (lines[1]["density"], lines[1]["rank"], lines[1]["score"]) == (0.3, 8, None)


def test_read_again(tmp_path: Path) -> None:
    assert found(written(tmp_path / "log")) == {trial.k: trial for trial in TRIALS}


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_line_is_taken_away(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path / "log")
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert sorted(found(path)) == [0, 2]
    log = SearchLog(path, ABOUT, resume=True)
    log.append(TRIALS[-1])
    log.close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("left", [0, 10])
def test_a_torn_first_line_is_a_new_log(tmp_path: Path, left: int) -> None:
    path = written(tmp_path / "log")
    whole = path.read_bytes()
    path.write_bytes(whole[:left])
    log = SearchLog(path, ABOUT, resume=True)
    for trial in TRIALS:
        log.append(trial)
    log.close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inputs", "abd"),
        ("space", {"a": [0.0, 2.0]}),
        ("space", {"b": [0.0, 1.5]}),
        ("sampler", "sobol"),
        ("seed", 1),
    ],
)
def test_another_search_is_refused(tmp_path: Path, name: str, value: object) -> None:
    path = written(tmp_path / "log")
    before = path.read_bytes()
    with pytest.raises(AdapterError, match=f"its {name} differ") as caught:
        found(path, **{name: value})
    assert caught.value.code == "AT800"
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", ["[]", "{}", "nothing", '{"k": 0, "weights": 3, "score": 1}'])
@pytest.mark.parametrize("number", [1, 2])
def test_another_file_is_refused(tmp_path: Path, line: str, number: int) -> None:
    path = written(tmp_path / "log")
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(AdapterError) as caught:
        found(path)
    assert caught.value.code in ("AT800", "AT801")
    assert path.read_text().splitlines() == lines


def test_begun_afresh(tmp_path: Path) -> None:
    path = written(tmp_path / "log")
    log = SearchLog(path, ABOUT | {"seed": 9}, resume=False)
    log.append(TRIALS[0])
    log.close()
    assert len(path.read_text().splitlines()) == 2
    assert list(found(path, seed=9)) == [0]


def test_without_a_sample_it_goes(tmp_path: Path) -> None:
    SearchLog(tmp_path / "log", ABOUT, resume=False).close()
    assert not (tmp_path / "log").exists()


def test_one_writer(tmp_path: Path) -> None:
    path = written(tmp_path / "log")
    before = path.read_bytes()
    log = SearchLog(path, ABOUT, resume=True)
    for resume in (True, False):
        with pytest.raises(AdapterError, match="another search") as caught:
            SearchLog(path, ABOUT, resume=resume)
        assert caught.value.code == "AT507"
    log.close()
    assert path.read_bytes() == before
    assert len(found(path)) == 3
