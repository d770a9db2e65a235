"""Names, shapes and numbers of written files, against oracles of `layouts.py`: bit for bit."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from builders import decode, read_safetensors

from . import layouts
from .catalogue import CASES, llama, magnitudes
from .layouts import pairs_of
from .running import config_of, converted
from .sources import llama_modules, numbers


def equal(got: Mapping[Any, np.ndarray], wanted: Mapping[Any, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        assert got[name].dtype == array.dtype, name
        assert np.array_equal(got[name], array), name


def of_torch(data: Any) -> dict[str, np.ndarray]:
    import torch

    return {name: t.numpy() for name, t in torch.load(data, weights_only=True).items()}


def of_gguf(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(str(path))
    tensors = {t.name: np.array(t.data) for t in reader.tensors}
    assert all(t.shape.tolist() == list(t.data.shape[::-1]) for t in reader.tensors)
    return tensors, {name: field.contents() for name, field in reader.fields.items()}


def test_gguf(tmp_path: Path) -> None:
    """Rows of q and k as Meta has them, by the heads of each; the rest as it is."""
    converted(tmp_path, CASES["plain"](), "gguf-lora")
    got, keys = of_gguf(tmp_path / "out" / "adapter.gguf")
    equal(got, layouts.gguf(pairs_of(tmp_path / "source")))
    assert keys["general.architecture"] == "llama"
    assert keys["adapter.lora.alpha"] == 6


def test_gguf_embedding(tmp_path: Path) -> None:
    """A of the embedding is stored by tokens: [vocab, r]."""
    source = CASES["embeddings"]()
    converted(tmp_path, source, "gguf-lora")
    got, _ = of_gguf(tmp_path / "out" / "adapter.gguf")
    down, up = numbers("emb.A", (3, 80)), numbers("emb.B", (96, 3))
    assert np.array_equal(got["token_embd.weight.lora_a"], down.T)
    assert np.array_equal(got["token_embd.weight.lora_b"], up)
    assert {name.rpartition(".")[0] for name in got} == {"token_embd.weight", "output.weight"}


def experts(pairs: layouts.Pairs, number: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return A [E, r, in] and B [E, out, r] of one linear; an expert without one is zero."""
    path = f"model.layers.{number}.block_sparse_moe.experts"
    some = pairs[f"{path}.0.{name}"]
    found = [pairs.get(f"{path}.{e}.{name}", (some[0] * 0, some[1] * 0)) for e in range(3)]
    return np.stack([down for down, _ in found]), np.stack([up for _, up in found])


@pytest.mark.parametrize("to", ["gguf-lora", "mlx-lora"])
def test_stacked_experts(tmp_path: Path, to: str) -> None:
    """w1, w3, w2 are gate, up, down; every expert is there; nothing is transposed."""
    converted(tmp_path, CASES["experts"](), to)
    words = {"w1": "gate", "w3": "up", "w2": "down"}
    if to == "gguf-lora":
        got, _ = of_gguf(tmp_path / "out" / "adapter.gguf")
        key = "blk.{}.ffn_{}_exps.weight.lora_"
    else:
        found = read_safetensors(tmp_path / "out" / "adapters.safetensors")
        got = {name: decode(tensor).copy() for name, tensor in found.items()}
        key = "model.layers.{}.block_sparse_moe.switch_mlp.{}_proj.lora_"
    pairs, wanted = pairs_of(tmp_path / "source"), {}
    for number in range(2):
        for name, word in words.items():
            down, up = experts(pairs, number, name)
            stored = key.format(number, word)
            wanted |= {f"{stored}a": down, f"{stored}b": up}
    lone = [name for name in got if ("down" in name and name.endswith("a"))]
    for name in lone:  # the A of an expert without an update may be any: its B is zero
        got[name][1] = wanted[name][1] = 0
    equal(got, wanted)


def test_mlx(tmp_path: Path) -> None:
    """Both factors transposed; the scale itself; the modules of a layer, and which layers."""
    modules = llama_modules(["self_attn.q_proj", "mlp.down_proj"], [1, 2])
    converted(tmp_path, llama(modules, 3, 6), "mlx-lora")
    found = read_safetensors(tmp_path / "out" / "adapters.safetensors")
    equal({k: decode(t) for k, t in found.items()}, layouts.mlx(pairs_of(tmp_path / "source")))
    config = config_of(tmp_path)
    assert config["fine_tune_type"] == "lora"
    assert config["num_layers"] == 2
    told = config["lora_parameters"]
    assert (told["rank"], told["scale"], told["dropout"]) == (3, 2.0, 0.0)
    assert set(told["keys"]) == {"self_attn.q_proj", "mlp.down_proj"}


def test_mlx_fills_later_layers(tmp_path: Path) -> None:
    """num_layers counts from the end, so a later layer that lacks a module gets a zero B."""
    named = ["model.layers.1.self_attn.q_proj", "model.layers.2.self_attn.v_proj"]
    converted(tmp_path, llama(named, target_modules=named), "mlx-lora")
    found = read_safetensors(tmp_path / "out" / "adapters.safetensors")
    ups = {name: decode(tensor) for name, tensor in found.items() if name.endswith("b")}
    linears = {
        name.removesuffix(".lora_b").removeprefix("model.layers."): up.any()
        for name, up in ups.items()
    }
    assert linears == {
        "1.self_attn.q_proj": True,
        "1.self_attn.v_proj": False,
        "2.self_attn.q_proj": False,
        "2.self_attn.v_proj": True,
    }


@pytest.mark.parametrize("to", ["mlx-lora", "torchtune"])
def test_magnitudes(tmp_path: Path, to: str) -> None:
    """A DoRA magnitude is in the order of its rows."""
    modules = llama_modules(["self_attn.q_proj", "self_attn.k_proj"])
    converted(tmp_path, magnitudes(llama(modules, use_dora=True)), to)
    stored = read_safetensors(tmp_path / "source" / "adapter_model.safetensors")
    end, wanted = ".lora_magnitude_vector", {}
    for key, tensor in stored.items():
        if key.endswith(end):
            module = key.removeprefix("base_model.model.").removesuffix(end)
            number, name = layouts.layer(module)
            if to == "torchtune":
                rows = layouts.rotary(module, decode(tensor))
                wanted[f"layers.{number}.attn.{name}.magnitude"] = rows
            else:
                wanted[f"{module}.m"] = decode(tensor)
    if to == "torchtune":
        got = of_torch(tmp_path / "out" / "adapter_model.pt")
    else:
        found = read_safetensors(tmp_path / "out" / "adapters.safetensors")
        got = {name: decode(tensor) for name, tensor in found.items()}
        assert config_of(tmp_path)["fine_tune_type"] == "dora"
    equal({name: got[name] for name in got if "lora_" not in name}, wanted)


def test_torchtune(tmp_path: Path) -> None:
    """Rows of q and k as Meta has them."""
    converted(tmp_path, CASES["plain"](), "torchtune")
    wanted = layouts.torchtune(pairs_of(tmp_path / "source"))
    equal(of_torch(tmp_path / "out" / "adapter_model.pt"), wanted)
    assert (config_of(tmp_path)["r"], config_of(tmp_path)["lora_alpha"]) == (3, 6)


@pytest.mark.parametrize("case", ["plain", "attention"])
def test_litgpt(tmp_path: Path, case: str) -> None:
    """Blocks of q, k, v that are switched on; rows in the order of Hugging Face."""
    import torch

    converted(tmp_path, CASES[case](), "litgpt")
    whole = torch.load(tmp_path / "out" / "lit_model.pth.lora", weights_only=True)
    got = {name: tensor.numpy() for name, tensor in whole["model"].items()}
    equal(got, layouts.litgpt(pairs_of(tmp_path / "source")))
    told = yaml.safe_load((tmp_path / "out" / "hyperparameters.yaml").read_text())
    flags = {name.removeprefix("lora_") for name, value in told.items() if value is True}
    every = {"query", "key", "value", "projection", "mlp"}
    assert flags == (every if case == "plain" else {"query", "value"})
    assert told["lora_alpha"] / told["lora_r"] == 2


def of_nemo(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with tarfile.open(path) as archive:
        inside = {m.name.removeprefix("./"): archive.extractfile(m).read() for m in archive}
    config = yaml.safe_load(inside["model_config.yaml"])
    return of_torch(io.BytesIO(inside["model_weights.ckpt"])), config


def test_nemo(tmp_path: Path) -> None:
    """q, k, v joined at three times the rank, interleaved by groups; alpha grows as the rank."""
    converted(tmp_path, CASES["plain"](), "nemo-lora")
    got, config = of_nemo(tmp_path / "out" / "adapter.nemo")
    equal(got, layouts.nemo(pairs_of(tmp_path / "source")))
    told = config["peft"]["lora_tuning"]
    assert (told["adapter_dim"], told["alpha"]) == (9, 18)
    assert (config["num_query_groups"], config["kv_channels"]) == (2, 16)


def test_canonical_nemo(tmp_path: Path) -> None:
    """An adapter for each of q, k, v and gate, up; no rows change their places."""
    converted(tmp_path, CASES["plain"](), "nemo-canonical-lora")
    got, config = of_nemo(tmp_path / "out" / "adapter.nemo")
    wanted = {}
    for module, (down, up) in pairs_of(tmp_path / "source").items():
        number, name = layouts.layer(module)
        key = f"model.decoder.layers.{number}.{layouts.CANONICAL[name]}"
        wanted |= {f"{key}.linear_in.weight": down, f"{key}.linear_out.weight": up}
    equal(got, wanted)
    told = config["peft"]["lora_tuning"]
    assert (told["adapter_dim"], told["alpha"]) == (3, 6)


def test_nemo_keeps_a_shared_down(tmp_path: Path) -> None:
    """Where q, k and v share their A, the rank stays."""
    source = llama(llama_modules(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]))
    for n in range(3):
        for name in "qkv":
            source.put(
                f"model.layers.{n}.self_attn.{name}_proj.lora_A.weight", numbers(f"{n}", (3, 96))
            )
    converted(tmp_path, source, "nemo-lora")
    got, config = of_nemo(tmp_path / "out" / "adapter.nemo")
    assert config["peft"]["lora_tuning"]["adapter_dim"] == 3
    by_layer = layouts.by_layer(pairs_of(tmp_path / "source"))
    for number, linears in by_layer.items():
        path = f"model.decoder.layers.{number}.self_attention.adapter_layer.lora_kqv_adapter"
        rows = np.concatenate([linears[f"{x}_proj"][1] for x in "qkv"])
        assert np.array_equal(got[f"{path}.linear_in.weight"], linears["q_proj"][0])
        assert np.array_equal(got[f"{path}.linear_out.weight"], layouts.interleaved(rows))


def test_trtllm(tmp_path: Path) -> None:
    """One row a module: down, then up with the scale in it; a table of numbers, layers, ranks."""
    converted(tmp_path, CASES["plain"](), "trtllm-lora")
    table = np.load(tmp_path / "out" / "model.lora_config.npy")
    rows = np.load(tmp_path / "out" / "model.lora_weights.npy")
    assert table.dtype == np.int32
    assert table.shape == (1, 21, 3)
    got = dict(zip(map(tuple, table[0].tolist()), rows[0], strict=True))
    equal(got, layouts.trt(pairs_of(tmp_path / "source"), 2.0))


def test_names_of_adapterhub(tmp_path: Path) -> None:
    """PEFT's orientation under the adapter's name; its mlp switches are swapped on Llama."""
    names = ["self_attn.k_proj", "mlp.up_proj", "mlp.down_proj"]
    converted(tmp_path, llama(llama_modules(names)), "adapterhub-lora")
    found = read_safetensors(tmp_path / "out" / "adapter.safetensors")
    wanted = {}
    for module, (down, up) in pairs_of(tmp_path / "source").items():
        wanted |= {f"{module}.loras.adapter.lora_A": down, f"{module}.loras.adapter.lora_B": up}
    equal({name: decode(tensor) for name, tensor in found.items()}, wanted)
    whole = config_of(tmp_path)
    told = whole["config"]
    assert whole["version"] == "adapters.1.3.0"
    assert (told["r"], told["alpha"], told["composition_mode"]) == (3, 6, "add")
    assert told["attn_matrices"] == ["k"]
    assert (told["intermediate_lora"], told["output_lora"]) == (True, True)


def test_tfew_lora(tmp_path: Path) -> None:
    """T-Few divides by the rank and knows no alpha, so alpha is in B."""
    converted(tmp_path, CASES["t5"](), "tfew-lora")
    wanted = {}
    for module, (down, up) in pairs_of(tmp_path / "source").items():
        wanted |= {f"{module}.lora_a": down, f"{module}.lora_b": up * np.float32(6)}
    equal(of_torch(tmp_path / "out" / "finish.pt"), wanted)


def test_tfew_ia3(tmp_path: Path) -> None:
    """k and v as they are; what scales the input of wo scales the output of wi_1."""
    converted(tmp_path, CASES["t5-ia3"](), "tfew-ia3")
    wanted = {}
    stored = read_safetensors(tmp_path / "source" / "adapter_model.safetensors")
    for key, tensor in stored.items():
        module = key.removeprefix("base_model.model.").removesuffix(".ia3_l")
        place = module.replace(".wo", ".wi_1")
        wanted[f"{place}.multi_lora_b"] = decode(tensor).reshape(-1, 1)
    equal(of_torch(tmp_path / "out" / "finish.pt"), wanted)


def test_loralib(tmp_path: Path) -> None:
    """The bare names; alpha is told beside, as no file has it."""
    result = converted(tmp_path, CASES["plain"](), "loralib")
    wanted = {}
    for module, (down, up) in pairs_of(tmp_path / "source").items():
        wanted |= {f"{module}.lora_A": down, f"{module}.lora_B": up}
    equal(of_torch(tmp_path / "out" / "lora.pt"), wanted)
    assert result.plan.told == {"lora_alpha": 6}


def test_transposed_factors_are_not_compared_with_themselves() -> None:
    """Two transposed factors of different values are different: no memory is shared."""
    from dataclasses import replace

    from adaptertools.adapter.model import Factor
    from adaptertools.formats.factors import same

    def factor(start: int) -> Factor:
        values = np.arange(start, start + 12, dtype=np.uint32).reshape(3, 4).T
        none: Any = None
        return Factor("x", (4, 3), "F32", 48, "", none, none, none, lambda: values)

    assert same(factor(0), replace(factor(0)))
    assert not same(factor(0), factor(1))
