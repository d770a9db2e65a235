"""Whole searches, of real merges and compositions, for a mix that is known."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import read_checkpoint, tiny_base

import adaptertools.base.merge as merging
import adaptertools.composition.composing as composing
from adaptertools.errors import AdapterError
from adaptertools.recipes.recipe import read_recipe
from adaptertools.recipes.running import Kitchen

from .known import WANTED, Known, files_of, log_lines


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("sampler", "samples", "near"), [("random", 48, 0.2), ("sobol", 35, 0.2), ("cma", 48, 0.1)]
)
def test_the_best_mix_is_found(
    known: Known, tmp_path: Path, sampler: str, samples: int, near: float
) -> None:
    if sampler == "cma":
        pytest.importorskip("cmaes")
    result = known.search(tmp_path / "out", samples, sampler=sampler)
    assert result.best.point.weights == pytest.approx(WANTED, abs=near)
    assert result.best.score == max(trial.score for trial in result.trials)
    assert [trial.k for trial in result.trials] == list(range(samples))
    assert known.score(tmp_path / "out") == pytest.approx(result.best.score)
    firsts = [trial.point.weights for trial in result.trials[:3]]
    assert firsts == [(0.5, 0.5), (1, 0), (0, 1)]


def test_adapters_are_scored_where_asked(known: Known, tmp_path: Path) -> None:
    result = known.search(tmp_path / "out", 20, compose=True)
    assert result.best.point.weights == pytest.approx(WANTED, abs=0.25)
    composing.compose(
        list(zip(known.adapters, result.best.point.weights, strict=True)),
        tmp_path / "again",
        base=known.base,
    )
    again, found = files_of(tmp_path / "again"), files_of(tmp_path / "out")
    assert found == again


def test_the_least_where_asked(known: Known, tmp_path: Path) -> None:
    result = known.search(tmp_path / "out", 8, minimize=True)
    assert result.best.score == min(trial.score for trial in result.trials)
    assert result.best.score < max(trial.score for trial in result.trials)


@pytest.mark.parametrize("sampler", ["random", "sobol", "cma"])
def test_the_seed_decides(known: Known, tmp_path: Path, sampler: str) -> None:
    if sampler == "cma":
        pytest.importorskip("cmaes")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        known.search(tmp_path / name, 11, sampler=sampler, seed=seed)
    a, b, c = (log_lines(tmp_path / name) for name in "abc")
    assert a == b
    assert a[1:4] == c[1:4]
    assert a[4:] != c[4:]
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize("sampler", ["random", "cma"])
def test_jobs_change_nothing(known: Known, tmp_path: Path, sampler: str) -> None:
    if sampler == "cma":
        pytest.importorskip("cmaes")
    options = {"sampler": sampler, "patience": 6}
    one = known.search(tmp_path / "a", 20, **options)
    two = known.search(tmp_path / "b", 20, jobs=3, score=slowly(known), **options)
    assert [t.point for t in one.trials] == [t.point for t in two.trials]
    assert [t.score for t in one.trials] == [t.score for t in two.trials]
    assert (one.best.k, one.ended) == (two.best.k, two.ended)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def slowly(known: Known) -> Callable:
    """The score, but the first samples answer last."""
    left = [0.15, 0.1, 0.05]

    def score(path: Path) -> float:
        time.sleep(left.pop(0) if left else 0)
        return known.score(path)

    return score


@pytest.mark.parametrize("sampler", ["random", "sobol", "cma"])
@pytest.mark.parametrize("done", [1, 8])
def test_resumed_is_as_uninterrupted(known: Known, tmp_path: Path, sampler: str, done: int) -> None:
    if sampler == "cma":
        pytest.importorskip("cmaes")
    whole = tmp_path / "whole"
    known.search(whole, 13, sampler=sampler)
    out = tmp_path / "out"
    known.search(out, done, sampler=sampler)
    torn = out.with_name("out.search.jsonl")
    torn.write_bytes(torn.read_bytes() + b'{"k": 99, "wei')
    shutil.rmtree(out)
    scored = []
    result = known.search(
        out,
        13,
        sampler=sampler,
        resume=True,
        score=counted(known, scored),
    )
    assert len(scored) == 13 - done
    assert result.resumed == done
    assert log_lines(out) == log_lines(whole)
    assert files_of(out) == files_of(whole)


def counted(known: Known, scored: list[Path]) -> Callable:
    """The score under its own name, counting."""

    def score(path: Path) -> float:
        scored.append(path)
        return known.score(path)

    score.__module__, score.__qualname__ = Known.__module__, Known.score.__qualname__
    return score


def test_resume_keeps_failures(known: Known, tmp_path: Path) -> None:
    def never(path: Path) -> float:
        raise ValueError("no")

    never.__module__, never.__qualname__ = Known.__module__, Known.score.__qualname__
    with pytest.raises(AdapterError, match="none of 3 samples") as caught:
        known.search(tmp_path / "out", 3, score=never)
    assert caught.value.code == "AT802"
    assert "ValueError: no" in str(caught.value)
    assert names(tmp_path) == ["out.search.jsonl"]
    result = known.search(tmp_path / "out", 5, resume=True)
    assert [trial.score is None for trial in result.trials] == [True] * 3 + [False] * 2


@pytest.mark.parametrize(
    "change",
    [
        {"space": "weight=0..2"},
        {"seed": 1},
        {"sampler": "sobol"},
        {"minimize": True},
        {"dtype": "bf16"},
        {"combine": "ties"},
        {"score": lambda path: 0.0},
        {"adapters": "swapped"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_resume_refuses_another_search(known: Known, tmp_path: Path, change: dict) -> None:
    known.search(tmp_path / "out", 2)
    shutil.rmtree(tmp_path / "out")
    if "adapters" in change:
        change = {"adapters": list(known.adapters[::-1])}
    before = files_of(tmp_path)
    with pytest.raises(AdapterError, match="another search") as caught:
        known.search(tmp_path / "out", 4, resume=True, **change)
    assert caught.value.code == "AT800"
    assert files_of(tmp_path) == before


def test_resume_refuses_a_sample_it_would_not_try(known: Known, tmp_path: Path) -> None:
    known.search(tmp_path / "out", 4)
    shutil.rmtree(tmp_path / "out")
    log = tmp_path / "out.search.jsonl"
    log.write_text(log.read_text().replace('"weights": [1.0, 0.0]', '"weights": [1.0, 0.1]'))
    with pytest.raises(AdapterError, match="its sample 1 is not the one") as caught:
        known.search(tmp_path / "out", 4, resume=True)
    assert caught.value.code == "AT800"


def test_resume_refuses_inputs_that_changed(known: Known, tmp_path: Path) -> None:
    copy = tmp_path / "style"
    shutil.copytree(known.adapters[0], copy)
    adapters = [copy, known.adapters[1]]
    known.search(tmp_path / "out", 2, adapters=adapters)
    shutil.rmtree(tmp_path / "out")
    weights = copy / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(AdapterError, match="its inputs differ"):
        known.search(tmp_path / "out", 4, adapters=adapters, resume=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compose": True},
        {"combine": "ties", "space": "density=0.2..0.9"},
        {"space": "rank=1..3", "compose": True, "combine": "dare_linear", "seed": 3},
        {"rule": ("energy", 0.9)},
        {"dtype": "bf16"},
    ],
    ids=str,
)
def test_the_recipe_makes_the_winner_again(known: Known, tmp_path: Path, options: dict) -> None:
    seen: dict[float, dict[str, bytes]] = {}

    def score(path: Path) -> float:
        value = known.score(path)
        seen[value] = {p.name: p.read_bytes() for p in path.glob("*.safetensors")}
        return value

    result = known.search(tmp_path / "out", 6, score=score, **options)
    weights = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.safetensors")}
    assert weights == seen[result.best.score]
    assert len({str(files) for files in seen.values()}) > 3
    given = {"adapter": str(tmp_path / "again.adapter")} if "adapter:" in text(result) else {}
    read = read_recipe(result.recipe, given)
    Kitchen(read.folder, tmp_path / "again").cook(read)
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").glob("*.safetensors")} == weights


def text(result: object) -> str:
    return result.recipe.read_text()


def test_density_and_rank_reach_the_recipe(known: Known, tmp_path: Path) -> None:
    space = "density=0.2..0.9,rank=1..3"
    result = known.search(tmp_path / "out", 6, combine="ties", space=space)
    step = read_recipe(result.recipe).steps[0].fields
    point = result.best.point
    assert (step["params"], step["rule"]) == ({"density": point.density}, {"rank": point.rank})
    assert len({trial.point.rank for trial in result.trials}) > 1
    assert len({trial.point.density for trial in result.trials}) > 2
    wanted = ["out", "out.adapter", "out.recipe.yaml", "out.search.jsonl"]
    assert [n for n in names(tmp_path) if not n.endswith("png")] == wanted


def test_a_plain_merge_is_what_merge_writes(known: Known, tmp_path: Path) -> None:
    result = known.search(tmp_path / "out", 4)
    pairs = list(zip(known.adapters, result.best.point.weights, strict=True))
    merging.merge(known.base, pairs, tmp_path / "merged")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "merged")


def test_one_file_is_written_where_the_base_is_one(known: Known, tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    shutil.copy(known.base / "model.safetensors", base)
    seen = []

    def score(path: Path) -> float:
        seen.append((path.name, path.is_file()))
        return float(len(seen))

    result = Known(base, known.adapters).search(tmp_path / "m.safetensors", 3, score=score)
    assert seen == [("m.safetensors", True)] * 3
    assert result.best.k == 2
    assert result.recipe.name == "m.safetensors.recipe.yaml"
    assert (tmp_path / "m.safetensors").is_file()


@pytest.mark.parametrize("kind", ["raise", "rubbish", "delete", "cannot be made"])
def test_a_failure_costs_one_sample(known: Known, tmp_path: Path, kind: str) -> None:
    def score(path: Path) -> object:
        if "weight: 0.5" not in (path.parents[1] / "recipe.yaml").read_text():
            return known.score(path)
        if kind == "raise":
            raise RuntimeError("bad luck")
        if kind == "delete":
            shutil.rmtree(path.parents[1])
            return known.score(path)
        return "rubbish"

    options = {}
    if kind == "cannot be made":  # all weights are zero, so that a merge would change nothing
        options = {"space": "style=0..0,task=-1..0"}
    result = known.search(tmp_path / "out", 6, score=score, **options)
    lost = [trial for trial in result.trials if trial.score is None]
    assert [trial.k for trial in lost] == [0]
    assert lost[0].reason
    if kind == "cannot be made":
        assert "AT406" in lost[0].reason
    assert log_lines(tmp_path / "out")[1]["reason"] == lost[0].reason
    assert result.best.score == max(t.score for t in result.trials if t.score is not None)


def test_nothing_is_left_beside(known: Known, tmp_path: Path) -> None:
    seen = []

    def score(path: Path) -> float:
        seen.append(names(tmp_path))
        (path / "rubbish.of.mine").mkdir()
        return known.score(path)

    known.search(tmp_path / "out", 4, score=score)
    assert ".out.adaptertools-search" in seen[0]
    left = [n for n in names(tmp_path) if not n.endswith("png")]
    assert left == ["out", "out.recipe.yaml", "out.search.jsonl"]
    assert not list((tmp_path / "out").glob("rubbish*"))


def test_budgets(known: Known, tmp_path: Path) -> None:
    result = known.search(tmp_path / "a", 50, score=lambda path: 1.0, patience=3)
    assert (len(result.trials), result.ended, result.best.k) == (4, "patience", 0)

    def slow(path: Path) -> float:
        time.sleep(0.3)
        return 1.0

    result = known.search(tmp_path / "b", 50, score=slow, seconds=0.8)
    assert result.ended == "seconds"
    assert 1 <= len(result.trials) <= 3
    assert known.search(tmp_path / "c", 2).ended == "samples"


@pytest.mark.parametrize("name", ["out", "out.search.jsonl", "out.recipe.yaml"])
def test_what_exists_is_kept(known: Known, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(AdapterError) as caught:
        known.search(tmp_path / "out", 2)
    assert caught.value.code == "AT501"
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_overwrite_begins_afresh_and_resume_goes_on(known: Known, tmp_path: Path) -> None:
    out = tmp_path / "out"
    known.search(out, 3)
    with pytest.raises(AdapterError, match="exists already"):
        known.search(out, 5, resume=True)
    assert known.search(out, 5, resume=True, overwrite=True).resumed == 3
    assert len(log_lines(out)) == 6
    assert known.search(out, 4, seed=5, overwrite=True).resumed == 0
    assert len(log_lines(out)) == 5


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"space": "density=0.2..0.9"}, "--combine"),
        ({"params": {"density": 0.5}}, "--combine"),
        ({"combine": "linear", "space": "density=0.2..0.9"}, "density"),
        ({"combine": "tise"}, "tise"),
        ({"space": "rank=1..2", "rule": ("rank", 2)}, "rank"),
        ({"to": "gguf-lora"}, "--compose"),
        ({"sampler": "grid"}, "grid"),
        ({"patience": 0}, "patience"),
        ({"seconds": 0}, "seconds"),
        ({"timeout": 0}, "timeout"),
    ],
    ids=str,
)
def test_options_that_make_no_sense(known: Known, tmp_path: Path, options: dict, told: str) -> None:
    with pytest.raises(AdapterError) as caught:
        known.search(tmp_path / "out", 2, **options)
    assert caught.value.code == "AT500"
    assert told in f"{caught.value} {caught.value.hint}"
    assert names(tmp_path) == []


def test_faults_of_the_inputs_come_before_the_first_sample(known: Known, tmp_path: Path) -> None:
    scored = []
    with pytest.raises(AdapterError) as caught:
        known.search(
            tmp_path / "out",
            2,
            adapters=[known.adapters[0], tmp_path / "none"],
            score=lambda path: scored.append(path) or 1.0,
        )
    assert caught.value.code == "AT100"
    assert (scored, names(tmp_path)) == ([], [])


def test_adapters_of_another_base_come_before_the_first_sample(
    known: Known, tmp_path: Path
) -> None:
    scored = []
    other = tiny_base(tmp_path / "other", layers=1, hidden=64, vocab=16)
    before = names(tmp_path)
    with pytest.raises(AdapterError) as caught:
        Known(other, known.adapters).search(tmp_path / "out", 2, score=scored.append)
    assert caught.value.code == "AT403"
    assert (scored, names(tmp_path)) == ([], before)


def test_an_adapter_of_one_file_has_a_recipe_too(known: Known, tmp_path: Path) -> None:
    scores = iter([1.0, 3.0, 2.0])
    options = {"compose": True, "to": "gguf-lora", "score": lambda path: next(scores)}
    result = known.search(tmp_path / "out.gguf", 3, **options)
    assert result.best.k == 1
    read = read_recipe(tmp_path / "out.gguf.recipe.yaml")
    assert [item["weight"] for item in read.steps[0].fields["adapters"]] == [1, 0]
    Kitchen(read.folder, tmp_path / "again.gguf").cook(read)
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "out.gguf").read_bytes()


def test_a_full_disk_ends_the_search(
    known: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is no fault of a sample."""
    usage = shutil.disk_usage(tmp_path)
    none = usage._replace(free=10)
    scored = []

    def score(path: Path) -> float:
        scored.append(path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: none)
        return 1.0

    with pytest.raises(AdapterError) as caught:
        known.search(tmp_path / "out", 5, score=score)
    assert caught.value.code == "AT504"
    assert len(scored) == 1
    assert names(tmp_path) == ["out.search.jsonl"]
    assert len(log_lines(tmp_path / "out")) == 2


def test_a_plot_is_drawn_where_matplotlib_is(known: Known, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = known.search(tmp_path / "out", 6)
    assert result.plot == tmp_path / "out.search.png"
    assert result.plot.read_bytes().startswith(b"\x89PNG")


def test_weights_beside_adapters_are_fixed(known: Known, tmp_path: Path) -> None:
    adapters = [known.adapters[0], f"{known.adapters[1]}=0.3"]
    result = known.search(tmp_path / "out", 16, adapters=adapters)
    assert {trial.point.weights[1] for trial in result.trials} == {0.3}
    assert result.best.point.weights[0] == pytest.approx(WANTED[0], abs=0.1)
    assert read_checkpoint(tmp_path / "out").keys() == read_checkpoint(known.base).keys()
