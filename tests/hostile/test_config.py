"""Configs and tensors that contradict themselves, each other or the base."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import (
    encode,
    write_safetensors,
)

from .arena import Q0, Arena, cli, snapshot

WRONG = {
    "r a string": ("r", "8"),
    "r negative": ("r", -1),
    "r zero": ("r", 0),
    "r true": ("r", True),
    "r a fraction": ("r", 4.5),
    "r a list": ("r", [4]),
    "r null": ("r", None),
    "r huge": ("r", 10**30),
    "alpha NaN": ("lora_alpha", float("nan")),
    "alpha infinite": ("lora_alpha", float("inf")),
    "alpha a string": ("lora_alpha", "16"),
    "alpha true": ("lora_alpha", True),
    "alpha a list": ("lora_alpha", [16]),
    "alpha null": ("lora_alpha", None),
    "alpha huge": ("lora_alpha", 10**400),
    "rslora a string": ("use_rslora", "yes"),
    "dora a string": ("use_dora", "yes"),
    "dora without magnitudes": ("use_dora", True),
    "rank_pattern a list": ("rank_pattern", ["q_proj"]),
    "rank_pattern of strings": ("rank_pattern", {"q_proj": "4"}),
    "rank_pattern negative": ("rank_pattern", {"q_proj": -4}),
    "alpha_pattern a number": ("alpha_pattern", 3),
    "alpha_pattern of lists": ("alpha_pattern", {"q_proj": [1]}),
    "alpha_pattern NaN": ("alpha_pattern", {"q_proj": float("nan")}),
    "target_modules a number": ("target_modules", 7),
    "target_modules of numbers": ("target_modules", [1, 2]),
    "target_modules an object": ("target_modules", {"q_proj": 1}),
    "modules_to_save a number": ("modules_to_save", 3),
    "bias unknown": ("bias", "sometimes"),
    "bias a number": ("bias", 3),
    "layer_replication": ("layer_replication", [[0, 2], [0, 2]]),
    "peft_type a number": ("peft_type", 3),
    "peft_type null": ("peft_type", None),
    "peft_type a list": ("peft_type", ["LORA"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_field(arena: Arena, case: str) -> None:
    """A field of a wrong type or value is refused by file and field."""
    field, value = WRONG[case]
    arena.configure(**{field: value})
    error = arena.refuses()
    assert field in f"{error.where.key} {error.message} {error.hint}"


@pytest.mark.parametrize(
    "fields", [{"r": 5}, {"rank_pattern": {"q_proj": 5}}], ids=["r", "rank_pattern"]
)
def test_rank_that_the_tensors_deny(arena: Arena, fields: dict[str, Any]) -> None:
    """Tensors beat config: their rank is taken, and that is said of every module."""
    arena.configure(**fields)
    result = arena.merge()
    arena.check()
    notes = [note for note in result.plan.notes if "rank" in note.title]
    assert any(Q0 in str(note.where) for note in notes)
    assert {(note.expected, note.found) for note in notes} == {("5", "4")}


@pytest.mark.parametrize("case", ["r a string", "alpha NaN", "rank_pattern a list"])
def test_wrong_field_on_the_command_line(arena: Arena, case: str) -> None:
    """The command names the file and the field."""
    field, value = WRONG[case]
    arena.configure(**{field: value})
    arena.refuses_cli(file="adapter_config.json", key=field)


SOFT = ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT"]


@pytest.mark.parametrize("kind", [*SOFT, "BONE", "XLORA", "NO_SUCH_METHOD", "", "lora\x1b[2J"])
def test_unknown_method_is_named(arena: Arena, kind: str) -> None:
    """A method that cannot be merged is refused by its name."""
    arena.configure(peft_type=kind)
    if kind in SOFT:
        weights = {"prompt_embeddings": encode(np.ones((4, 64)), "F32")}
        write_safetensors(arena.weights, weights)
    error = arena.refuses()
    assert kind.replace("\x1b", "\\x1b") in str(error) or kind in error.message


def test_no_method(arena: Arena) -> None:
    """Without `peft_type` the tensors tell the method, or the field is asked for."""
    path = arena.adapter / "adapter_config.json"
    path.write_text(path.read_text().replace("peft_type", "was_peft_type"))
    before = snapshot(arena.root)
    result = cli("merge", arena.base, arena.adapter, "-o", arena.out)
    if result.code == 0:
        arena.check()
    else:
        assert "peft_type" in result.err
        assert snapshot(arena.root) == before


def test_unknown_falsy_field_is_no_reason(arena: Arena) -> None:
    """Fields of a newer PEFT that are switched off change nothing."""
    arena.configure(use_future_variant=False, future_config=None, future_list=[])
    arena.passes()


@pytest.mark.parametrize(
    "fields",
    [
        {"use_qalora": True},
        {"kasa_config": {"k": 4}},
        {"arrow_config": {"top_k": 2}},
        {"alora_invocation_tokens": [1, 2]},
        {"init_lora_weights": "pissa"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_variants_that_change_the_maths(arena: Arena, fields: dict[str, Any]) -> None:
    """A variant that plain W + s·BA would get wrong is refused by its field."""
    arena.configure(**fields)
    error = arena.refuses()
    assert next(iter(fields)) in f"{error} {error.where.key} {error.hint}"
