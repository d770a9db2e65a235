"""The JSON Schemas of adapter_config.json: what PEFT wrote passes, what is wrong is named."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from adaptertools import schemas

LORA, IA3 = "peft-lora-config", "peft-ia3-config"


def errors(schema: str, config: object) -> list[tuple[str, str]]:
    """Return the (JSON path, message) of every fault."""
    validator = jsonschema.Draft202012Validator(schemas.json_schema(schema))
    return [(error.json_path, error.message) for error in validator.iter_errors(config)]


def unknown(schema: str, config: dict[str, Any]) -> set[str]:
    return set(config) - set(schemas.json_schema(schema)["properties"])


@pytest.mark.parametrize("name", [LORA, IA3])
def test_the_schemas_are_schemas(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schemas.json_schema(name))


PEFT_0_2 = {
    "base_model_name_or_path": "decapoda-research/llama-7b-hf",
    "bias": "none",
    "enable_lora": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "lora_alpha": 128.0,
    "lora_dropout": 0.05,
    "merge_weights": False,
    "modules_to_save": ["embed_tokens", "lm_head"],
    "peft_type": "LORA",
    "r": 16,
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}
PEFT_0_5 = {
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 8,
    "revision": None,
    "target_modules": r".*\.(q|v)_proj",
    "task_type": None,
}
PEFT_0_12 = {
    **PEFT_0_5,
    "alpha_pattern": {},
    "layer_replication": None,
    "loftq_config": {},
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "rank_pattern": {},
    "use_dora": False,
    "use_rslora": False,
}
UNSLOTH = {
    **PEFT_0_12,
    "auto_mapping": {"base_model_class": "Qwen3ForCausalLM", "unsloth_fixed": True},
    "corda_config": None,
    "eva_config": None,
    "exclude_modules": None,
    "lora_bias": False,
    "qalora_group_size": 16,
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_qalora": False,
}
LOOSE = [
    {"target_modules": None, "rank_pattern": None, "alpha_pattern": None},
    {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]},
    {"layers_to_transform": 3, "layers_pattern": "layers"},
    {"layers_to_transform": [0, 2], "layers_pattern": ["layers", "h"]},
    {"layer_replication": [[0, 4], [2, 5]]},
    {"trainable_token_indices": [0, 7]},
    {"trainable_token_indices": {"embed_tokens": [0, 7]}},
    {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 4.5}},
    {"init_lora_weights": "pissa_niter_16"},
    {"init_lora_weights": False, "lora_dropout": 0},
    {"enable_lora": [True, False, True], "loftq_config": {"loftq_bits": 4}},
    {"runtime_config": {"ephemeral_gpu_offload": False}},
]


@pytest.mark.parametrize("config", [PEFT_0_2, PEFT_0_5, PEFT_0_12, UNSLOTH])
def test_what_old_versions_wrote_passes(config: dict[str, Any]) -> None:
    assert errors(LORA, config) == [] and unknown(LORA, config) == set()


@pytest.mark.parametrize("fields", LOOSE)
def test_every_form_of_a_field_passes(fields: dict[str, Any]) -> None:
    assert errors(LORA, {**PEFT_0_12, **fields}) == []


def test_unknown_fields_pass_and_can_be_listed() -> None:
    config = {**PEFT_0_12, "use_mora": True, "r_new": 4}
    assert errors(LORA, config) == [] and unknown(LORA, config) == {"use_mora", "r_new"}
    config = {"peft_type": "IA3", "r": 4}
    assert errors(IA3, config) == [] and unknown(IA3, config) == {"r"}


def test_adalora_alone_may_have_rank_zero() -> None:
    config = {**PEFT_0_12, "peft_type": "ADALORA", "r": 0, "lora_alpha": 0, "target_r": 4}
    assert errors(LORA, {**config, "rank_pattern": {"q.lora_E": [True, False]}}) == []
    assert errors(LORA, {**config, "r": -1})[0][0] == "$.r"
    bad = errors(LORA, {**config, "rank_pattern": {"q": 4}})
    assert [path for path, _ in bad] == ["$.rank_pattern.q"]


WRONG = {
    "r": ["0", "-8", "8.5", '"8"', "true", "null", "NaN", "Infinity", "1e300"],
    "lora_alpha": ['"16"', "NaN", "Infinity", "-Infinity", "1e999", "null", "true"],
    "lora_dropout": ["NaN", "1.5", "-0.1", "null"],
    "peft_type": ['"LOHA"', "null"],
    "bias": ['"lora"', "false"],
    "use_dora": ['"false"', "null"],
    "use_rslora": ["1"],
    "fan_in_fan_out": ["null"],
    "init_lora_weights": ["3"],
    "target_modules": ["7", '""', '{"q_proj": 1}'],
    "target_modules[1]": ['["q_proj", 7]'],
    "modules_to_save": ['"lm_head"'],
    "modules_to_save[0]": ["[null]"],
    "rank_pattern": ["[4]", "4"],
    "rank_pattern.q_proj": ['{"q_proj": 0}', '{"q_proj": 4.5}', '{"q_proj": NaN}'],
    "alpha_pattern.q_proj": ['{"q_proj": "4"}', '{"q_proj": NaN}'],
    "layers_to_transform": ["-1", "true"],
    "layers_to_transform[0]": ['["0"]'],
    "layer_replication[0]": ["[[0, 4, 5]]", "[4]"],
    "layer_replication[0][1]": ["[[0, 4.5]]"],
    "trainable_token_indices[0]": ["[-1]"],
    "trainable_token_indices.embed_tokens": ['{"embed_tokens": 4}'],
    "trainable_token_indices.embed_tokens[0]": ['{"embed_tokens": ["4"]}'],
    "target_parameters": ['"experts"'],
    "loftq_config": ['"4bit"'],
    "enable_lora[0]": ["[1]"],
    "base_model_name_or_path": ['["a"]'],
    "revision": ["1"],
}


@pytest.mark.parametrize(("path", "text"), [(p, text) for p in WRONG for text in WRONG[p]])
def test_a_wrong_field_is_one_error_with_its_path(path: str, text: str) -> None:
    """`NaN` and `Infinity` are what Python's json reads, so they reach the validator."""
    config = {**PEFT_0_12, re.split(r"[.\[]", path)[0]: json.loads(text)}
    found = errors(LORA, config)
    assert {where for where, _ in found} == {f"$.{path}"}
    assert len(found) == 1 or "Infinity" in text, found


@pytest.mark.parametrize("config", [{}, {"r": 8}, [], None, "LORA"])
@pytest.mark.parametrize("schema", [LORA, IA3])
def test_a_config_without_a_type_is_refused(schema: str, config: object) -> None:
    assert [path for path, _ in errors(schema, config)] == ["$"]


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("peft_type", "LORA", ""),
        ("target_modules", 3, ""),
        ("feedforward_modules", ["down_proj", None], "[1]"),
        ("feedforward_modules", {"down_proj": True}, ""),
        ("fan_in_fan_out", "no", ""),
        ("init_ia3_weights", 1, ""),
        ("modules_to_save", "score", ""),
    ],
)
def test_a_wrong_ia3_field_is_one_error_with_its_path(field: str, value: Any, path: str) -> None:
    config = {"peft_type": "IA3", "target_modules": ["k"], "feedforward_modules": None}
    assert errors(IA3, config) == []
    found = errors(IA3, {**config, field: value})
    assert [where for where, _ in found] == [f"$.{field}{path}"]


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
WRITTEN: list[dict[str, Any]] = [
    {},
    {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 32, "use_rslora": True},
    {"target_modules": r".*\.q_proj", "exclude_modules": r".*\.0\..*", "use_dora": True},
    {"target_modules": "all-linear", "bias": "all", "task_type": "CAUSAL_LM"},
    {
        "target_modules": ["q_proj"],
        "bias": "lora_only",
        "lora_bias": True,
        "modules_to_save": ["h"],
    },
    {"target_modules": ["q_proj"], "rank_pattern": {"0.q_proj": 2}, "alpha_pattern": {"q_proj": 3}},
    {"target_modules": ["q_proj"], "layers_to_transform": [0, 1], "layers_pattern": "layers"},
    {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": ["layers"]},
    {"target_modules": ["q_proj"], "layer_replication": [(0, 2), (1, 2)]},
    {"target_modules": [], "target_parameters": EXPERTS, "lora_dropout": 0.0},
    {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]},
    {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1, 2]}},
    {"target_modules": ["q_proj"], "init_lora_weights": "pissa_niter_4"},
    {"target_modules": ["q_proj"], "init_lora_weights": "eva", "eva_config": "EvaConfig"},
    {"target_modules": ["q_proj"], "init_lora_weights": "corda", "corda_config": "CordaConfig"},
    {
        "target_modules": ["q_proj"],
        "init_lora_weights": "lora_ga",
        "lora_ga_config": "LoraGAConfig",
    },
    {"target_modules": ["q_proj"], "kasa_config": "KasaConfig"},
    {"target_modules": ["q_proj"], "velora_config": "VeloraConfig"},
    {"target_modules": ["q_proj"], "monteclora_config": "MontecloraConfig"},
    {"target_modules": ["q_proj"], "runtime_config": "LoraRuntimeConfig"},
    {"target_modules": ["q_proj"], "use_qalora": True, "qalora_group_size": 8},
    {"target_modules": ["q_proj"], "alora_invocation_tokens": [1, 2], "task_type": "CAUSAL_LM"},
    {"target_modules": ["q_proj"], "use_bdlora": "BdLoraConfig", "ensure_weight_tying": True},
    {"target_modules": ["q_proj"], "arrow_config": "ArrowConfig", "revision": "main"},
    {"target_modules": ["q_proj"], "megatron_config": {"hidden_size": 8}},
]


def written(config: Any, folder: Path) -> dict[str, Any]:
    config.save_pretrained(str(folder))
    loaded: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def peft() -> Any:
    return pytest.importorskip("peft", minversion="0.21.2")


@pytest.mark.peer
@pytest.mark.parametrize(
    "fields", WRITTEN, ids=lambda fields: "-".join(list(fields)[1:]) or "plain"
)
def test_lora_configs_written_by_peft_pass(
    peft: Any, tmp_path: Path, fields: dict[str, Any]
) -> None:
    from peft.tuners.lora import config as lora

    built = {
        key: getattr(lora, value)() if str(value).endswith("Config") else value
        for key, value in fields.items()
    }
    config = written(peft.LoraConfig(**built), tmp_path)
    assert errors(LORA, config) == [] and unknown(LORA, config) == set()


@pytest.mark.peer
def test_other_configs_written_by_peft_pass(peft: Any, tmp_path: Path) -> None:
    for config in (
        peft.IA3Config(),
        peft.IA3Config(target_modules=["k", "v", "w"], feedforward_modules=["w"]),
        peft.IA3Config(target_modules=r".*\.k", feedforward_modules=".*w", modules_to_save=["h"]),
    ):
        found = written(config, tmp_path)
        assert errors(IA3, found) == [] and unknown(IA3, found) == set()
    found = written(peft.AdaLoraConfig(target_modules=["q"], total_step=10, tfinal=2), tmp_path)
    assert errors(LORA, found) == [] and unknown(LORA, found) == set()


@pytest.mark.peer
def test_the_configs_of_trained_adapters_pass(peft: Any, tmp_path: Path) -> None:
    """A saved adapter's config has what PEFT fills in: the expanded targets, the base's name."""
    from torch import nn

    for number, (schema, config) in enumerate(
        (
            (LORA, peft.LoraConfig(target_modules="all-linear", rank_pattern={"1": 2})),
            (LORA, peft.AdaLoraConfig(target_modules=["0"], total_step=10)),
            (IA3, peft.IA3Config(target_modules=["0", "1"], feedforward_modules=["1"])),
        )
    ):
        model = peft.get_peft_model(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5)), config)
        model.save_pretrained(tmp_path / str(number))
        text = (tmp_path / str(number) / "adapter_config.json").read_text()
        assert errors(schema, json.loads(text)) == [], text
        assert unknown(schema, json.loads(text)) == set()


@pytest.mark.peer
def test_the_schemas_know_every_field_of_peft(peft: Any) -> None:
    for schema, classes in ((LORA, [peft.LoraConfig, peft.AdaLoraConfig]), (IA3, [peft.IA3Config])):
        fields = {field.name for one in classes for field in dataclasses.fields(one)}
        assert fields <= set(schemas.json_schema(schema)["properties"])
