"""Names and places: which modules of a model a format has, under which root, in which layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import adaptertools

from .catalogue import CASES, llama
from .models import BERT, T5
from .running import config_of, converted
from .sources import LLAMA, Source, llama_modules, numbers


def rooted(root: str) -> Source:
    source = Source(config={"r": 3, "lora_alpha": 6, "target_modules": ["q_proj"]})
    for module in llama_modules(["self_attn.q_proj"]):
        source.lora(root + module.removeprefix("model."), 128, 96, 3)
    return source


@pytest.mark.parametrize("to", ["gguf-lora", "torchtune", "litgpt", "nemo-lora"])
@pytest.mark.parametrize("root", ["", "model.language_model."])
def test_other_roots_of_the_same_model(tmp_path: Path, root: str, to: str) -> None:
    """An adapter of the bare model, or of the text part of a larger one, converts too."""
    assert converted(tmp_path, rooted(root), to).error == 0


def test_a_decoder_with_fewer_layers(tmp_path: Path) -> None:
    """No tensor is written for a layer that the decoder does not have."""
    converted(tmp_path, CASES["t5"](), "adapterhub-lora")
    keys = load_file(tmp_path / "out" / "adapter.safetensors")
    assert not [k for k in keys if k.startswith("decoder.block.2.")]


def test_gpt2_in_loralib(tmp_path: Path) -> None:
    """A loralib file of GPT-2 is not taken for one of LitGPT."""
    converted(tmp_path, CASES["gpt2"](), "loralib")


def t5_gate() -> Source:
    fields = {"r": 3, "lora_alpha": 6, "target_modules": ["wi_0"]}
    source = Source(base=dict(T5), config=fields)
    for n in range(3):
        source.lora(f"encoder.block.{n}.layer.1.DenseReluDense.wi_0", 80, 48, 3)
    return source


def bert_output() -> Source:
    fields = {"r": 3, "lora_alpha": 6, "target_modules": ["attention.output.dense"]}
    source = Source(base=dict(BERT), config=fields)
    for n in range(2):
        source.lora(f"encoder.layer.{n}.attention.output.dense", 48, 48, 3)
    return source


@pytest.mark.parametrize("make", [t5_gate, bert_output])
def test_adapterhub_attaches_only_where_it_does(tmp_path: Path, make: Callable[[], Source]) -> None:
    """wi_0 of T5 and attention.output.dense of BERT have no place in AdapterHub's LoRA."""
    with pytest.raises(adaptertools.AdapterError, match="attaches nothing"):
        converted(tmp_path, make(), "adapterhub-lora")


def test_litgpt_has_all_of_the_mlp(tmp_path: Path) -> None:
    """LitGPT's merge loads strictly, so every linear that a flag switches on is there."""
    import torch

    converted(tmp_path, llama(llama_modules(["mlp.gate_proj"])), "litgpt")
    keys = torch.load(tmp_path / "out" / "lit_model.pth.lora", weights_only=True)["model"]
    assert {k.split(".")[4] for k in keys} == {"fc_1", "fc_2", "proj"}


def test_two_vectors_at_one_place(tmp_path: Path) -> None:
    """up's output and down's input: one vector that is their product, or a refusal that says so."""
    fields = {"target_modules": ["up_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    source = Source(config=fields, kind="IA3")
    for module in llama_modules(["mlp.up_proj", "mlp.down_proj"]):
        shape = (1, 144) if "down" in module else (144, 1)
        source.put(f"{module}.ia3_l", 1 + numbers(module, shape))
    try:
        converted(tmp_path, source, "adapterhub-ia3")
    except adaptertools.AdapterError as error:
        assert error.code != "AT258"


def test_mlx_without_a_base_is_not_guessed(tmp_path: Path) -> None:
    """Layers 0 and 1 of an unknown model: num_layers 2 would mean its last two layers."""
    folder = llama(llama_modules(["self_attn.q_proj"], [0, 1])).write(tmp_path)
    assert LLAMA["num_hidden_layers"] == 3
    try:
        adaptertools.convert(folder, "mlx-lora", tmp_path / "out")
    except adaptertools.AdapterError:
        return
    assert config_of(tmp_path)["num_layers"] == -1


def test_what_llama_cpp_takes_no_notice_of_is_told(tmp_path: Path) -> None:
    """A norm in a GGUF adapter is accepted by its loader and never used: a warning, no error."""
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    for key, value in (("general.type", "adapter"), ("adapter.type", "lora")):
        writer.add_string(key, value)
    writer.add_float32("adapter.lora.alpha", 4.0)
    for name, shape in (("lora_a", (2, 6)), ("lora_b", (5, 2))):
        writer.add_tensor(f"blk.0.attn_v.weight.{name}", np.ones(shape, np.float32))
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(6, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    adapter = adaptertools.open(tmp_path / "a.gguf")
    told = [(f.id, f.severity, f.where.key) for f in adapter.findings if f.id == "AT316"]
    assert told == [("AT316", "warning", "blk.0.attn_norm.weight")]
    assert not adapter.errors
    assert len(adapter.updates) == 1
