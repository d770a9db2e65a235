"""PEFT itself loads the configs that we write, and gives the same answers as with the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import read_safetensors

import adaptertools

from .catalogue import CASES
from .running import converted
from .sources import Source
from .test_config import stacked

pytestmark = pytest.mark.peer


def model_of(base: dict[str, Any]) -> Any:
    """Return a seeded random model of a config."""
    import torch
    import transformers

    torch.manual_seed(0)
    fields = {name: value for name, value in base.items() if name != "dtype"}
    config = transformers.AutoConfig.for_model(**fields)
    return getattr(transformers, base["architectures"][0])(config).eval()


def with_adapter(base: dict[str, Any], folder: Path) -> Any:
    """Return the model with an adapter; PEFT reads every tensor of the file."""
    import peft

    model = peft.PeftModel.from_pretrained(model_of(base), str(folder))
    read = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    assert set(read_safetensors(folder / "adapter_model.safetensors")) <= set(read)
    return model


def answers(model: Any, kind: str) -> np.ndarray:
    """Return what a model gives for twelve tokens."""
    import torch

    tokens = torch.tensor([[5, 17, 3, 44, 8, 61, 29, 12, 50, 33, 1, 2]])
    more = {"decoder_input_ids": tokens.flip(1)} if kind == "t5" else {}
    with torch.no_grad():
        return model(input_ids=tokens, **more)[0].double().numpy()


def judge(source: Source, by: str, place: Path) -> None:
    """Compare a source with what comes back of it by another format."""
    result = converted(place, source, by)
    folder, base = place / "out", place / "base"
    if not by.startswith("peft"):
        back = "peft-ia3" if source.kind == "IA3" else "peft-lora"
        folder, told = place / "back", result.plan.told
        adaptertools.convert(place / "out", back, folder, base=base, given=told, jobs=1)
    models = (
        model_of(source.base),
        with_adapter(source.base, place / "source"),
        with_adapter(source.base, folder),
    )
    plain, wanted, got = (answers(model, source.base["model_type"]) for model in models)
    assert np.abs(got - wanted).max() < 1e-5
    assert np.abs(wanted - plain).max() > 1e-3


@pytest.mark.parametrize(
    ("case", "by"),
    [
        ("plain", "gguf-lora"),
        ("mixed", "mlx-lora"),
        ("mixed", "loralib"),
        ("sparse", "litgpt"),
        ("rslora-mixed", "torchtune"),
        ("rslora-mixed", "peft-lora"),
        ("partly-no-effect", "nemo-lora"),
        ("dora", "torchtune"),
        ("sparse-dora", "peft-lora"),
        ("lora-bias", "peft-lora"),
        ("trained-bias", "peft-lora"),
        ("embeddings", "gguf-lora"),
        ("saved-head", "peft-lora"),
        ("token-rows", "peft-lora"),
        ("ia3", "peft-ia3"),
        ("ia3", "adapterhub-ia3"),
        ("t5", "tfew-lora"),
        ("t5-ia3", "tfew-ia3"),
        ("bert", "adapterhub-lora"),
        ("bert", "gguf-lora"),
        ("gpt2", "loralib"),
        ("adalora", "peft-lora"),
    ],
)
def test_the_answers_are_the_same(case: str, by: str, tmp_path: Path) -> None:
    """What is folded, joined, renamed or told by patterns on the way changes no logit."""
    judge(CASES[case](), by, tmp_path)


@pytest.mark.parametrize("pattern", [False, True])
def test_expert_parameters(pattern: bool, tmp_path: Path) -> None:
    """Expert parameters, with a rank of their own too."""
    judge(stacked(pattern), "peft-lora", tmp_path)
