"""The suite, run on invented specs: a good one passes, and each kind of fault is seen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from builders import decode, encode, read_safetensors, write_json, write_safetensors
from convert.catalogue import CASES

from .conftest import option

HERE = Path(__file__).parent
GOOD = """
schema = 1
id = "invented"
title = "Invented LoRA"
method = "lora"
scheme = "hf"

[files]
weights = ["invented.safetensors"]
config = "invented.json"

[detect]
config = { kind = ["invented"] }

[scale]
rule = "alpha/rank"
alpha = { config = "strength" }

[[update]]
kind = "low_rank"
prefix = ["net.{module}"]
weight = ["out in"]
down = { key = ".shrink", dims = ["rank in"] }
up = { key = ".grow", dims = ["out rank"] }

[limits]
rank_per_module = true

[write]
file = "invented.safetensors"
container = "safetensors"

[write.files."invented.json"]
kind = "invented"
strength = "@alpha"
"""


@pytest.fixture(autouse=True)
def not_on_a_spec_of_your_own(request: pytest.FixtureRequest) -> None:
    if option(request.config, "spec"):
        pytest.skip("this tests the suite, not a spec")


def outcome(place: Path, spec: str, *arguments: object) -> Mapping[str, int]:
    """Run the suite on a spec; returns how many tests passed, failed, ..."""
    file = place / "invented.toml"
    file.write_text(spec)
    root = str(HERE.parents[1])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE)]
    done = subprocess.run(
        [*command, "--spec", str(file), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
    )
    counts = re.findall(r"(\d+) (passed|failed|skipped|errors?|xfailed)", done.stdout)
    assert counts, done.stdout + done.stderr
    return {word: int(number) for number, word in counts} | {"code": done.returncode}


def sample(place: Path) -> list[object]:
    """Write the attention adapter as the invented library does; returns the suite's options."""
    folder = CASES["attention"]().write(place)
    words = {"lora_A.weight": "shrink", "lora_B.weight": "grow"}
    tensors = {}
    for key, tensor in read_safetensors(folder / "adapter_model.safetensors").items():
        module, _, factor = key.removeprefix("base_model.model.").partition(".lora_")
        tensors[f"net.{module}.{words[f'lora_{factor}']}"] = encode(decode(tensor), "F32")
    write_safetensors(place / "theirs" / "invented.safetensors", tensors)
    write_json(place / "theirs" / "invented.json", {"kind": "invented", "strength": 10})
    named = {"--sample": place / "theirs", "--same-as": folder, "--base": place / "base"}
    return [part for pair in named.items() for part in pair]


def test_a_good_spec_passes(tmp_path: Path) -> None:
    """All but some of the catalogue, with a sample by the format's own library too."""
    chosen = "not means_the_same or attention or mixed or dora or ia3 or gpt2"
    found = outcome(tmp_path, GOOD, "-k", chosen, *sample(tmp_path))
    assert found["code"] == 0, found
    assert found["passed"] > 15, found


def test_up_without_its_rank_fails(tmp_path: Path) -> None:
    """Dims that name a wrong axis: seen in the spec alone, and as nothing gets through."""
    wrong = GOOD.replace('dims = ["out rank"]', 'dims = ["out in"]')
    found = outcome(tmp_path, wrong, "-k", "test_dims_name or some_adapter")
    assert found["failed"] == 2, found


def test_up_the_wrong_way_round_fails_by_a_sample(tmp_path: Path) -> None:
    """Dims that are wrong both ways read their own mistakes back: only a sample shows them."""
    wrong = GOOD.replace('dims = ["out rank"]', 'dims = ["rank out"]')
    alone = outcome(tmp_path, wrong, "-k", "test_spec or (means_the_same and attention)")
    assert alone["code"] == 0, alone
    found = outcome(tmp_path, wrong, "-k", "sample", *sample(tmp_path))
    assert found["failed"] == 2, found


@pytest.mark.parametrize(
    ("good", "wrong", "tests"),
    [
        ('"@alpha"', '"@alhpa"', "every_fact"),
        ('strength = "@alpha"', "strength = 3", "odd-alpha or rslora"),
        ('kind = ["invented"]', 'kind = ["another"]', "means_the_same and half"),
        ('weights = ["invented.safetensors"]', 'weights = ["other.safetensors"]', "found_again"),
        ("[limits]\nrank_per_module = true", "[limits]\nranks = true", "schema"),
    ],
)
def test_other_faults_are_seen(tmp_path: Path, good: str, wrong: str, tests: str) -> None:
    """An unknown fact, an alpha that is not the adapter's, a config that is not its own, ..."""
    assert good in GOOD
    found = outcome(tmp_path, GOOD.replace(good, wrong), "-k", tests)
    assert found.get("failed"), found
    assert not found.get("passed") or "rslora" in tests, found
