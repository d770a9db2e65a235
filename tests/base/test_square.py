"""Square weights fit both orientations: the family decides, then the writer's version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adaptertools

from .edits import assert_values, read, values
from .test_experts import EXPERTS, RANK, SCALE, write_lora, write_model

SIZE = 6
GPT2 = {"model_type": "gpt2", "n_embd": SIZE, "n_layer": 1, "vocab_size": SIZE}
LLAMA = {"model_type": "llama", "hidden_size": SIZE, "num_attention_heads": 1,
         "num_hidden_layers": 1, "vocab_size": SIZE, "intermediate_size": SIZE}  # fmt: skip
OSS = {**LLAMA, "model_type": "gpt_oss", "num_local_experts": EXPERTS}
PLAIN = [
    (GPT2, "transformer.h.0.attn.c_proj", "in out"),
    (GPT2 | {"tie_word_embeddings": False}, "lm_head", "out in"),
    (LLAMA, "model.layers.0.self_attn.q_proj", "out in"),
    ({"model_type": "openai-gpt"}, "h.0.attn.c_proj", "in out"),
    ({"model_type": "unheard-of"}, "h.0.attn.c_proj", None),
]


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize(("config", "module", "layout"), PLAIN)
def test_the_family_goes_before_the_flag(
    tmp_path: Path, config: dict[str, Any], module: str, layout: str | None, flag: bool
) -> None:
    """fan_in_fan_out counts only where nothing is known of the model."""
    rng = np.random.default_rng(1)
    base = write_model(tmp_path / "base", config, {f"{module}.weight": values(rng, SIZE, SIZE)})
    down, up = values(rng, RANK, SIZE), values(rng, SIZE, RANK)
    factors = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    place = write_lora(tmp_path / "adapter", factors, fan_in_fan_out=flag)
    adaptertools.merge(base, place, tmp_path / "out")
    change = SCALE * up @ down
    turned = flag if layout is None else layout == "in out"
    name = f"{module}.weight"
    assert_values(tmp_path / "out", {name: read(base)[name] + (change.T if turned else change)})


@pytest.mark.parametrize(("version", "turns"), [(None, 1), ("0.18.1", 1), ("0.19.0", -1),
                                                ("0.19.1", 0), ("0.21.2", 0)])  # fmt: skip
@pytest.mark.parametrize(("config", "stored"), [(OSS, "in out"), ({"model_type": "x"}, "out in")])
def test_square_experts_follow_the_writer_s_version(
    tmp_path: Path, config: dict[str, Any], stored: str, version: str | None, turns: int
) -> None:
    """PEFT before 0.19 always meant `in out`, 0.19.0 the inverse, later the module's own."""
    rng = np.random.default_rng(2)
    name = "model.layers.0.mlp.experts.down_proj"
    base = write_model(tmp_path / "base", config, {name: values(rng, EXPERTS, SIZE, SIZE)})
    down, up = values(rng, EXPERTS * RANK, SIZE), values(rng, SIZE, RANK * EXPERTS)
    module = name.rpartition(".")[0]
    factors = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    place = write_lora(
        tmp_path / "adapter",
        factors,
        target_parameters=["mlp.experts.down_proj"],
        peft_version=version,
    )
    adaptertools.merge(base, place, tmp_path / "out")
    split = up.reshape(SIZE, RANK, EXPERTS)
    change = np.stack(
        [SCALE * split[:, :, e] @ down[e * RANK : (e + 1) * RANK] for e in range(EXPERTS)]
    )
    own = stored == "in out"
    turned = {1: True, -1: not own, 0: own}[turns]
    change = change.transpose(0, 2, 1) if turned else change
    assert_values(tmp_path / "out", {name: read(base)[name] + change})
