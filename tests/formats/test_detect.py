"""Detection: evidence, ties, refusals by name, and unknown as an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import tiny_base, write_adapter, write_json

import adaptertools
from adaptertools import schemas
from adaptertools.formats import registry
from adaptertools.formats.detect import detect, score

from .adapters import ia3, lora, lora_shapes, tensors, weights

GOOD = dict(lora_shapes("layers.0.q_proj"))
TYPES = [
    (kind, group) for group, entry in schemas.table("peft_types").items() for kind in entry["types"]
]


def test_evidence_names_each_trait(tmp_path: Path) -> None:
    """Config field, file name and the share of keys are told, not one trait alone."""
    adapter = adaptertools.open(lora(tmp_path / "a", GOOD))
    assert adapter.format == "peft-lora"
    assert adapter.evidence == (
        "adapter_config.json: peft_type=LORA",
        "file name adapter_model.safetensors",
        "2 of 2 keys fit its templates",
    )
    assert adaptertools.inspect(tmp_path / "a").to_json()["evidence"] == list(adapter.evidence)


@pytest.mark.parametrize(
    ("kind", "shapes", "wanted"),
    [
        ("IA3", {"a.q.ia3_l": (4, 1)}, "peft-ia3"),
        (
            "ADALORA",
            {"a.q.lora_A": (4, 5), "a.q.lora_B": (6, 4), "a.q.lora_E": (4, 1)},
            "peft-adalora",
        ),
        ("LN_TUNING", {"a.norm.ln_tuning_layers.weight": (4,)}, "peft-ln-tuning"),
        ("TRAINABLE_TOKENS", {"a.embed.trainable_tokens_delta": (1, 4)}, "peft-tokens"),
    ],
)
def test_each_shipped_format_is_told_from_the_others(
    tmp_path: Path, kind: str, shapes: dict, wanted: str
) -> None:
    """The field and the keys agree, and nothing is left unmatched."""
    config = {"peft_type": kind, "token_indices": [1], "lora_alpha": 8}
    adapter = adaptertools.open(write_adapter(tmp_path / "a", config, tensors(shapes)))
    assert (adapter.format, adapter.unmatched) == (wanted, ())
    assert len(adapter.updates) == 1


def test_the_config_speaks_against_other_formats(tmp_path: Path) -> None:
    """A LoRA's keys under IA3's type are an IA3 adapter with unmatched keys, not a LoRA."""
    place = ia3(tmp_path / "a", GOOD)
    adapter = adaptertools.open(place)
    assert adapter.format == "peft-ia3"
    assert len(adapter.unmatched) == 2


def test_unknown_is_an_answer(tmp_path: Path) -> None:
    """AT201 says what was seen and what to do."""
    place = weights(tmp_path / "a", {"=some.tensor": (2,)})
    with pytest.raises(adaptertools.AdapterError) as caught:
        adaptertools.open(place)
    assert caught.value.code == "AT201"
    assert "'some.tensor'" in str(caught.value)
    assert "adapter_config.json" in caught.value.hint
    write_json(place.parent / "adapter_config.json", {"peft_type": "NEWLORA"})
    with pytest.raises(adaptertools.AdapterError, match="'NEWLORA'") as caught:
        adaptertools.open(place)
    assert caught.value.code == "AT201"


def test_a_base_is_no_adapter(tmp_path: Path) -> None:
    """A checkpoint given as an adapter is unknown, not a pile of full tensors."""
    base = tiny_base(tmp_path / "base")
    with pytest.raises(adaptertools.AdapterError) as caught:
        adaptertools.open(base / "model.safetensors")
    assert caught.value.code == "AT201"


@pytest.mark.parametrize(("kind", "group"), TYPES)
def test_every_other_peft_type_is_refused_by_name(tmp_path: Path, kind: str, group: str) -> None:
    """AT203 names the type and the reason."""
    place = write_adapter(tmp_path / "a", {"peft_type": kind}, tensors(GOOD))
    with pytest.raises(adaptertools.AdapterError) as caught:
        adaptertools.open(place)
    assert caught.value.code == "AT203"
    assert kind in str(caught.value)
    assert schemas.table("peft_types")[group]["why"] in str(caught.value)


SPEC = """
schema = 1
id = "{id}"
title = "A copy"
method = "lora"
scheme = "hf"
[files]
weights = ["adapter_model.safetensors"]
config = "adapter_config.json"
[detect]
config = {{ kind = ["copy"] }}
[scale]
rule = "alpha/rank"
alpha = {{ config = "alpha" }}
[[update]]
kind = "low_rank"
prefix = ["{{module}}"]
weight = ["out in"]
down = {{ key = ".one", dims = ["rank in"] }}
up = {{ key = ".two", dims = ["out rank"] }}
"""


def test_a_tie_is_an_error_that_shows_both(tmp_path: Path) -> None:
    """AT202 lists the formats with their evidence."""
    specs = []
    for name in ("copy-one", "copy-two"):
        specs.append(tmp_path / f"{name}.toml")
        specs[-1].write_text(SPEC.format(id=name))
    shapes = {"=q.one": (2, 3), "=q.two": (4, 2)}
    place = write_adapter(tmp_path / "a", {"kind": "copy", "alpha": 2}, tensors(shapes))
    assert adaptertools.open(place, specs=specs[:1]).format == "copy-one"
    with pytest.raises(adaptertools.AdapterError) as caught:
        adaptertools.open(place, specs=specs)
    assert caught.value.code == "AT202"
    for part in ("copy-one", "copy-two", "2 of 2 keys", "kind=copy"):
        assert part in str(caught.value)


def test_scores_fall_with_the_share_of_keys() -> None:
    """More unmatched keys, less score; a contradicting field sinks it."""
    spec = registry.get_format("peft-lora")
    keys = [f"base_model.model.{key}" for key in GOOD]
    file, config = "adapter_model.safetensors", {"peft_type": "LORA"}
    scores = [score(spec, file, config, [*keys, *["x"] * n]).score for n in (0, 2, 20)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 8
    assert score(spec, file, {"peft_type": "IA3"}, keys).score < 0
    configs = {other.id: config for other in registry.shipped()}
    assert detect(registry.shipped(), "p", file, configs, keys).spec is spec


def test_weights_without_a_config_are_not_blamed_on_the_format(tmp_path: Path) -> None:
    """The missing file is what must be told: it holds the scale."""
    place = weights(tmp_path / "a", GOOD)
    report = adaptertools.validate(place.parent)
    assert not report.ok
    assert any("adapter_config.json" in f.hint for f in report.findings), report.findings
