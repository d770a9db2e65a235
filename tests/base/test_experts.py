"""Experts: adapters of the fused tree on per-expert bases and back; and names of vision models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import LORA_CONFIG, Tensors, encode, write_adapter, write_json, write_safetensors

import adaptertools

from .edits import PREFIX, assert_values, read, values

EXPERTS, HIDDEN, INTER, RANK, SCALE = 3, 6, 4, 2, 1.5
ROOT = "model.layers.0"
QWEN = {"gate": "mlp.experts.{e}.gate_proj", "up": "mlp.experts.{e}.up_proj",
        "down": "mlp.experts.{e}.down_proj"}  # fmt: skip
MIXTRAL = {"gate": "block_sparse_moe.experts.{e}.w1", "up": "block_sparse_moe.experts.{e}.w3",
           "down": "block_sparse_moe.experts.{e}.w2"}  # fmt: skip
NAMES = {"qwen3_moe": QWEN, "mixtral": MIXTRAL}


def moe_config(kind: str) -> dict[str, Any]:
    """Return the config.json of a tiny mixture of experts."""
    sizes = {"hidden_size": HIDDEN, "num_attention_heads": 2, "num_hidden_layers": 1,
             "vocab_size": 10}  # fmt: skip
    experts = {"num_experts": EXPERTS, "moe_intermediate_size": INTER, "intermediate_size": 9}
    if kind == "mixtral":
        experts = {"num_local_experts": EXPERTS, "intermediate_size": INTER}
    return {"model_type": kind, "tie_word_embeddings": False, **sizes, **experts}


def write_model(place: Path, config: dict[str, Any], weights: dict[str, np.ndarray]) -> Path:
    """Write a base of these F32 tensors."""
    write_json(place / "config.json", config)
    tensors = {name: encode(value.astype(np.float32), "F32") for name, value in weights.items()}
    write_safetensors(place / "model.safetensors", tensors, {"format": "pt"})
    return place


def per_expert_base(place: Path, kind: str) -> Path:
    """Write a base with one tensor for each expert and projection."""
    rng = np.random.default_rng(2)
    shapes = {"gate": (INTER, HIDDEN), "up": (INTER, HIDDEN), "down": (HIDDEN, INTER)}
    weights = {
        f"{ROOT}.{name.format(e=e)}.weight": values(rng, *shapes[part])
        for e in range(EXPERTS)
        for part, name in NAMES[kind].items()
    }
    return write_model(place, moe_config(kind), weights)


def fused_base(place: Path, kind: str) -> Path:
    """Write a base with the two stacked parameters of transformers 5."""
    rng = np.random.default_rng(3)
    shapes = {"gate_up_proj": (EXPERTS, 2 * INTER, HIDDEN), "down_proj": (EXPERTS, HIDDEN, INTER)}
    weights = {f"{ROOT}.mlp.experts.{n}": values(rng, *shape) for n, shape in shapes.items()}
    return write_model(place, moe_config(kind), weights)


def write_lora(place: Path, factors: dict[str, np.ndarray], **config: Any) -> Path:
    """Write a LoRA of these factors; keys are relative to the model."""
    usual = LORA_CONFIG | {"r": RANK, "lora_alpha": RANK * SCALE, "target_modules": None}
    made: Tensors = {
        PREFIX + key: encode(value.astype(np.float32), "F32") for key, value in factors.items()
    }
    return write_adapter(place, usual | config, made)


def stacked_lora(place: Path, transposed: bool) -> tuple[Path, dict[str, np.ndarray]]:
    """Write an adapter on both parameters; returns it and each expert's change, `out in`."""
    rng = np.random.default_rng(4)
    sizes = {"gate_up_proj": (2 * INTER, HIDDEN), "down_proj": (HIDDEN, INTER)}
    keys = {"gate_up_proj": "mlp.experts.base_layer", "down_proj": "mlp.experts"}
    factors, changes = {}, {}
    for name, (out, inputs) in sizes.items():
        rows, columns = (inputs, out) if transposed else (out, inputs)
        down, up = values(rng, EXPERTS * RANK, columns), values(rng, rows, RANK * EXPERTS)
        factors[f"{ROOT}.{keys[name]}.lora_A.weight"] = down
        factors[f"{ROOT}.{keys[name]}.lora_B.weight"] = up
        split = up.reshape(rows, RANK, EXPERTS)
        change = [split[:, :, e] @ down[e * RANK : (e + 1) * RANK] for e in range(EXPERTS)]
        changes[name] = SCALE * np.stack([c.T if transposed else c for c in change])
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    return write_lora(place, factors, target_parameters=targets), changes


@pytest.mark.parametrize("transposed", [False, True], ids=["out in", "in out"])
@pytest.mark.parametrize("kind", NAMES)
def test_a_stacked_adapter_on_a_per_expert_base(
    tmp_path: Path, kind: str, transposed: bool
) -> None:
    """Each expert's tensor gets its expert's rows of the fused change."""
    base = per_expert_base(tmp_path / "base", kind)
    place, changes = stacked_lora(tmp_path / "adapter", transposed)
    result = adaptertools.merge(base, place, tmp_path / "out", jobs=2)
    wanted = read(base)
    for e in range(EXPERTS):
        fused = changes["gate_up_proj"][e]
        parts = {"gate": fused[:INTER], "up": fused[INTER:], "down": changes["down_proj"][e]}
        for part, change in parts.items():
            name = f"{ROOT}.{NAMES[kind][part].format(e=e)}.weight"
            wanted[name] = wanted[name] + change
    assert_values(tmp_path / "out", wanted)
    assert len(result.plan.touched) == 3 * EXPERTS
    assert adaptertools.verify(tmp_path / "out").ok


@pytest.mark.parametrize("transposed", [False, True], ids=["out in", "in out"])
@pytest.mark.parametrize("kind", NAMES)
def test_a_stacked_adapter_on_a_fused_base(tmp_path: Path, kind: str, transposed: bool) -> None:
    """The same adapter on the fused parameters: the change as a whole."""
    base = fused_base(tmp_path / "base", kind)
    place, changes = stacked_lora(tmp_path / "adapter", transposed)
    adaptertools.merge(base, place, tmp_path / "out")
    wanted = read(base)
    for name, change in changes.items():
        full = f"{ROOT}.mlp.experts.{name}"
        wanted[full] = wanted[full] + change
    assert_values(tmp_path / "out", wanted)


@pytest.mark.parametrize("kind", NAMES)
def test_a_per_expert_adapter_on_a_fused_base(tmp_path: Path, kind: str) -> None:
    """Updates of single experts land on their expert and rows, and on nothing else."""
    rng = np.random.default_rng(5)
    base = fused_base(tmp_path / "base", kind)
    wanted, factors = read(base), {}
    starts = {"gate": ("gate_up_proj", 0), "up": ("gate_up_proj", INTER), "down": ("down_proj", 0)}
    for e, part in ((0, "gate"), (2, "gate"), (2, "up"), (1, "down")):
        out, inputs = (HIDDEN, INTER) if part == "down" else (INTER, HIDDEN)
        down, up = values(rng, RANK, inputs), values(rng, out, RANK)
        module = f"{ROOT}.{NAMES[kind][part].format(e=e)}"
        factors |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
        name, start = starts[part]
        wanted[f"{ROOT}.mlp.experts.{name}"][e, start : start + out] += SCALE * up @ down
    adaptertools.merge(base, write_lora(tmp_path / "adapter", factors), tmp_path / "out")
    assert_values(tmp_path / "out", wanted)


def test_an_expert_that_is_not_there(tmp_path: Path) -> None:
    """An adapter for a fourth expert of three is an error, not a write past the end."""
    rng = np.random.default_rng(6)
    for base in (fused_base(tmp_path / "a", "mixtral"), per_expert_base(tmp_path / "b", "mixtral")):
        module = f"{ROOT}.{MIXTRAL['gate'].format(e=EXPERTS)}"
        factors = {f"{module}.lora_A.weight": values(rng, RANK, HIDDEN),
                   f"{module}.lora_B.weight": values(rng, INTER, RANK)}  # fmt: skip
        place = write_lora(tmp_path / f"adapter-{base.name}", factors)
        with pytest.raises(adaptertools.FindingsError) as caught:
            adaptertools.merge(base, place, tmp_path / "out")
        assert caught.value.code in ("AT401", "AT403")
        assert not (tmp_path / "out").exists()


OLD = {"text": "language_model.model.layers.0.self_attn.q_proj", "head": "language_model.lm_head",
       "vision": "vision_tower.vision_model.encoder.layers.0.mlp.fc1",
       "bridge": "multi_modal_projector.linear_1"}  # fmt: skip
NEW = {"text": "model.language_model.layers.0.self_attn.q_proj", "head": "lm_head",
       "vision": "model.vision_tower.vision_model.encoder.layers.0.mlp.fc1",
       "bridge": "model.multi_modal_projector.linear_1"}  # fmt: skip


@pytest.mark.parametrize(
    ("on_disk", "in_adapter"), [(OLD, NEW), (NEW, OLD), (OLD, OLD), (NEW, NEW)]
)
def test_vision_models_changed_their_names(
    tmp_path: Path, on_disk: dict[str, str], in_adapter: dict[str, str]
) -> None:
    """Names from before and after transformers 4.52 find each other, each its own module."""
    rng = np.random.default_rng(7)
    config = {"model_type": "llava", "text_config": {"model_type": "llama"}}
    weights = {f"{module}.weight": values(rng, 5, 4) for module in on_disk.values()}
    base = write_model(tmp_path / "base", config, weights)
    factors, wanted = {}, {}
    for part, module in in_adapter.items():
        down, up = values(rng, RANK, 4), values(rng, 5, RANK)
        factors |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
        wanted[f"{on_disk[part]}.weight"] = weights[f"{on_disk[part]}.weight"] + SCALE * up @ down
    adaptertools.merge(base, write_lora(tmp_path / "adapter", factors), tmp_path / "out")
    assert_values(tmp_path / "out", wanted)


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2_stores_in_out_whatever_the_flag(tmp_path: Path, flag: bool, prefix: str) -> None:
    """A square Conv1D weight is oriented by the family, and both spellings of it are found."""
    rng = np.random.default_rng(8)
    config = {"model_type": "gpt2", "n_embd": 6, "n_layer": 1, "vocab_size": 5}
    name = f"{prefix}h.0.attn.c_proj.weight"
    base = write_model(tmp_path / "base", config, {name: values(rng, 6, 6)})
    down, up = values(rng, RANK, 6), values(rng, 6, RANK)
    module = "transformer.h.0.attn.c_proj"
    factors = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    place = write_lora(tmp_path / "adapter", factors, fan_in_fan_out=flag)
    adaptertools.merge(base, place, tmp_path / "out")
    assert_values(tmp_path / "out", {name: read(base)[name] + SCALE * (up @ down).T})
