"""Adapters of several formats of one Llama in one sum, and the sum in several formats."""

from __future__ import annotations

from pathlib import Path

import pytest
from convert.catalogue import CASES, llama
from convert.sources import Source, llama_modules, numbers

import adaptertools

from .making import apart, composed, config_of, deltas, dtypes_of


def other(seed: str, rank: int, alpha: float) -> Source:
    """Return a LoRA of every linear (NeMo has no other) with values of its own."""
    source = llama(llama_modules(), rank, alpha)
    for key, (_, shape, _) in list(source.tensors.items()):
        source.put(key.removeprefix("base_model.model."), numbers(seed + key, shape))
    return source


@pytest.fixture
def peft(tmp_path: Path) -> list[Path]:
    """Three PEFT folders of one base."""
    return [other(seed, 3, 6).write(tmp_path / seed) for seed in "abc"]


def base_of(peft: list[Path]) -> Path:
    return peft[0].parent / "base"


def as_format(folder: Path, to: str, base: Path) -> Path:
    place = folder.parent / f"as-{to}"
    adaptertools.convert(folder, to, place, base=base, jobs=1)
    return place


def wanted(peft: list[Path], weights: tuple[float, ...]) -> dict:
    found: dict = {}
    for folder, weight in zip(peft, weights, strict=True):
        for name, value in deltas(folder).items():
            found[name] = found.get(name, 0) + weight * value
    return found


WEIGHTS = (0.7, -1.2, 0.25)


@pytest.mark.parametrize("one", ["gguf-lora", "mlx-lora", "nemo-lora", "torchtune", "litgpt"])
def test_another_format_beside_peft(tmp_path: Path, peft: list[Path], one: str) -> None:
    """The same Llama, rows in other orders, names and scales of its own: one ΔW."""
    mixed = [peft[0], as_format(peft[1], one, base_of(peft)), peft[2]]
    parts = list(zip(mixed, WEIGHTS, strict=True))
    out = composed(tmp_path, *parts, base=base_of(peft), to="peft-lora")
    assert apart(deltas(out), wanted(peft, WEIGHTS)) < 1e-6


def test_four_formats_in_one_sum(tmp_path: Path, peft: list[Path]) -> None:
    base = base_of(peft)
    mixed = [as_format(peft[0], "gguf-lora", base), as_format(peft[1], "mlx-lora", base)]
    mixed.append(as_format(peft[2], "nemo-lora", base))
    out = composed(tmp_path, *zip(mixed, WEIGHTS, strict=True), base=base, to="peft-lora")
    assert apart(deltas(out), wanted(peft, WEIGHTS)) < 1e-6


@pytest.mark.parametrize("to", ["gguf-lora", "mlx-lora", "torchtune"])
def test_the_sum_in_another_format(tmp_path: Path, peft: list[Path], to: str) -> None:
    base = base_of(peft)
    out = composed(tmp_path, *zip(peft, WEIGHTS, strict=True), base=base, to=to)
    adaptertools.convert(out, "peft-lora", tmp_path / "back", base=base, jobs=1)
    assert apart(deltas(tmp_path / "back"), wanted(peft, WEIGHTS)) < 1e-6


def test_the_default_is_the_format_of_the_first(tmp_path: Path, peft: list[Path]) -> None:
    base = base_of(peft)
    gguf = as_format(peft[0], "gguf-lora", base)
    result = adaptertools.compose([gguf, peft[1]], tmp_path / "x", base=base, jobs=1)
    assert result.plan.writing.spec.id == "gguf-lora"
    adaptertools.convert(tmp_path / "x", "peft-lora", tmp_path / "y", base=base, jobs=1)
    assert apart(deltas(tmp_path / "y"), wanted(peft[:2], (1, 1))) < 1e-6


def test_names_of_another_format_need_the_base(tmp_path: Path, peft: list[Path]) -> None:
    gguf = as_format(peft[0], "gguf-lora", base_of(peft))
    with pytest.raises(adaptertools.AdapterError, match="names are those"):
        composed(tmp_path, gguf, peft[1])
    assert not (tmp_path / "out").exists()


def test_dtype_is_the_one_asked_for(tmp_path: Path, peft: list[Path]) -> None:
    out = composed(tmp_path, *zip(peft, WEIGHTS, strict=True), dtype="bf16")
    assert dtypes_of(out) == {"BF16"}
    assert 1e-6 < apart(deltas(out), wanted(peft, WEIGHTS)) < 2.0**-7


def test_task_type_and_base_of_the_first_that_has_one(tmp_path: Path) -> None:
    a, b = CASES["attention"](), CASES["attention"]()
    b.config["base_model_name_or_path"] = "me/base"
    folders = [a.write(tmp_path / "a"), b.write(tmp_path / "b")]
    config = config_of(composed(tmp_path, *folders))
    assert config["base_model_name_or_path"] == "me/base"
    assert config["task_type"] == "CAUSAL_LM"
