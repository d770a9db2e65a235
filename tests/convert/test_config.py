"""What a written PEFT config says: what PEFT itself will make of it."""

from __future__ import annotations

from pathlib import Path

import adaptertools

from .catalogue import llama
from .models import MIXTRAL
from .running import config_of, converted
from .sources import Source, llama_modules, numbers


def stacked(pattern: bool) -> Source:
    """Return a LoRA on the two expert parameters of transformers 5, and q_proj."""
    source = Source(base=dict(MIXTRAL), config={"r": 3, "lora_alpha": 6})
    source.config["target_modules"] = ["q_proj"]
    source.config["target_parameters"] = ["experts.gate_up_proj", "experts.down_proj"]
    if pattern:
        source.config["rank_pattern"] = {"experts.gate_up_proj": 4}
    for n in range(2):
        source.lora(f"model.layers.{n}.self_attn.q_proj", 128, 96, 3)
        rows = 12 if pattern else 9
        source.lora(f"model.layers.{n}.mlp.experts.base_layer", 288, 96, rows)
        source.lora(f"model.layers.{n}.mlp.experts", 96, 144, 9)
    return source


def test_expert_parameters_are_no_target_modules(tmp_path: Path) -> None:
    """PEFT would try to wrap the experts module itself."""
    converted(tmp_path, stacked(pattern=False), "peft-lora")
    assert config_of(tmp_path)["target_modules"] == ["q_proj"]


def test_ranks_of_expert_parameters(tmp_path: Path) -> None:
    """The rank of one expert parameter is told under its own name."""
    assert converted(tmp_path, stacked(pattern=True), "peft-lora").error == 0


def test_targets_cover_only_what_is_trained(tmp_path: Path) -> None:
    """Layers that layers_to_transform left out stay out."""
    modules = llama_modules(["self_attn.q_proj"], [1])
    converted(tmp_path, llama(modules, layers_to_transform=[1]), "peft-lora")
    config = config_of(tmp_path)
    assert config["layers_to_transform"] == [1] or config["target_modules"] == modules


def test_feedforward_modules_are_some_of_the_targets(tmp_path: Path) -> None:
    """IA3Config raises ValueError where feedforward_modules has an entry that targets lack."""
    fields = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    source = Source(config=fields, kind="IA3")
    for module in llama_modules(["self_attn.k_proj", "mlp.down_proj"], [0, 1]):
        shape = (1, 144) if "down" in module else (32, 1)
        source.put(f"{module}.ia3_l", 1 + numbers(module, shape))
    converted(tmp_path, source, "peft-ia3")
    config = config_of(tmp_path)
    assert set(config["feedforward_modules"]) <= set(config["target_modules"])


def test_token_rows_alone(tmp_path: Path) -> None:
    """What PEFT's LoRA cannot load is refused, or written so that it can."""
    source = Source(kind="TRAINABLE_TOKENS", config={"token_indices": [3, 17]})
    source.config["target_modules"] = ["embed_tokens"]
    source.put("model.embed_tokens.trainable_tokens_delta", numbers("t", (2, 96)))
    try:
        converted(tmp_path, source, "peft-lora")
    except adaptertools.AdapterError:
        return
    assert config_of(tmp_path)["r"] > 0
