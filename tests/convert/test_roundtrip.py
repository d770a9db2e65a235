"""Random adapters to every format and back: the same change, by PEFT's rule on raw bytes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adaptertools

from .catalogue import llama, magnitudes
from .compare import differences, rounding_of
from .sources import LINEARS, LLAMA, Source, llama_modules, llama_shape, peft_meanings

FEW = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
ATTACHED = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"]
EVERY = list(LINEARS)
LORA = [  # format, the linears that it has a place for
    ("adapterhub-lora", [*ATTACHED, "mlp.up_proj"]),
    ("gguf-lora", EVERY),
    ("litgpt", EVERY),
    ("loralib", EVERY),
    ("mlx-lora", EVERY),
    ("nemo-lora", EVERY),
    ("nemo-canonical-lora", EVERY),
    ("torchtune", EVERY),
    ("peft-lora", EVERY),
]
ALPHAS = [0.25, 1, 3, 3.7, 6, 8, 16]


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a Llama's config; its heads need not divide its width."""
    kv_heads = draw(st.integers(1, 3))
    return {
        **LLAMA,
        "hidden_size": draw(st.sampled_from([24, 40])),
        "intermediate_size": draw(st.sampled_from([36, 56])),
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * draw(st.integers(1, 4)),
        "head_dim": draw(st.sampled_from([8, 12])),
        "num_hidden_layers": draw(st.integers(1, 3)),
    }


@st.composite
def loras(draw: st.DrawFn, names: list[str], alphas: list[float]) -> Source:
    """Draw a LoRA: any modules, ranks, alphas, dtype."""
    base = draw(models())
    every = llama_modules(names, range(base["num_hidden_layers"]))
    chosen = draw(st.lists(st.sampled_from(every), min_size=1, max_size=6, unique=True))
    dtype = draw(st.sampled_from(["F32", "F16", "BF16"]))
    rank, other = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    fields = {
        "r": rank,
        "lora_alpha": draw(st.sampled_from(alphas)),
        "target_modules": chosen,
        "use_rslora": draw(st.booleans()),
        "rank_pattern": {chosen[0]: other} if draw(st.booleans()) else {},
        "alpha_pattern": {chosen[-1]: draw(st.sampled_from(alphas))} if draw(st.booleans()) else {},
    }
    source = Source(base=base, config=fields)
    for module in chosen:
        shape = llama_shape(module, base)
        source.lora(module, *shape, fields["rank_pattern"].get(module, rank), (dtype, dtype))
    return source


def there_and_back(source: Source, to: str) -> tuple[list[str], Any]:
    """Return how the adapter that comes back differs, and the first conversion's result."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        folder, base = source.write(place), place / "base"
        result = adaptertools.convert(folder, to, place / "there", base=base, jobs=1)
        there, told = place / "there", result.plan.told
        adaptertools.convert(there, "peft-lora", place / "back", base=base, given=told, jobs=1)
        wanted, got = peft_meanings(folder), peft_meanings(place / "back")
        dtypes = {tensor[0] for tensor in source.tensors.values()}
        return differences(wanted, got, 2 * rounding_of(result, dtypes)), result


@pytest.mark.parametrize(("to", "names"), LORA)
@FEW
@given(data=st.data())
def test_lora(to: str, names: list[str], data: st.DataObject) -> None:
    """Whatever was padded, joined, folded or filled on the way."""
    told, _ = there_and_back(data.draw(loras(names, ALPHAS)), to)
    assert told == []


@pytest.mark.parametrize(("to", "names"), LORA)
@FEW
@given(data=st.data())
def test_lora_of_no_effect_somewhere(to: str, names: list[str], data: st.DataObject) -> None:
    """Some alphas are 0."""
    told, _ = there_and_back(data.draw(loras(names, [0, 6])), to)
    assert told == []


@pytest.mark.parametrize("to", ["mlx-lora", "torchtune", "adapterhub-lora"])
def test_nothing_times_a_negative_scale(to: str) -> None:
    """Zero, filled in for a module that is scaled by nothing, may become -0.0."""
    names = ["self_attn.q_proj", "self_attn.k_proj"]
    source = llama(llama_modules(names, [0]), alpha=0, alpha_pattern={"k_proj": -3})
    told, _ = there_and_back(source, to)
    assert told == []


@pytest.mark.parametrize("to", ["mlx-lora", "torchtune", "peft-lora"])
@FEW
@given(data=st.data())
def test_dora(to: str, data: st.DataObject) -> None:
    """Magnitudes beside the factors, in every layer."""
    base = data.draw(models())
    names = data.draw(st.lists(st.sampled_from(list(LINEARS)), min_size=1, unique=True))
    modules = llama_modules(names, range(base["num_hidden_layers"]))
    fields = {"r": 3, "lora_alpha": data.draw(st.sampled_from(ALPHAS)), "use_dora": True}
    source = Source(base=base, config=fields | {"target_modules": modules})
    for module in modules:
        source.lora(module, *llama_shape(module, base), 3)
    told, result = there_and_back(magnitudes(source), to)
    assert told == []
    assert not [change for change in result.plan.changes if change.kind == "folded"]
