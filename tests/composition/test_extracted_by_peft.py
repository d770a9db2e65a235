"""What extract writes, loaded by the real PEFT: the tuned model's own outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptertools.composition.extracting import extract

pytestmark = pytest.mark.peer
FIXTURES = Path(__file__).parents[2] / "fixtures"
NOT_FACTORED = ("embed", "wte", "wpe", "lm_head")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_peft_makes_the_tuned_model_of_it(tmp_path: Path, kind: str) -> None:
    """Linears, Conv1D, norms, biases, embedding and head (GPT-2's is tied), all changed at once."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    load = pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained
    torch.manual_seed(0)
    model = load(FIXTURES / f"tiny-{kind}", dtype=torch.float32).eval()
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and not any(word in name for word in NOT_FACTORED):
                rows, columns = weight.shape
                weight += 0.02 * torch.randn(rows, 3) @ torch.randn(3, columns)
            else:
                weight += 0.05 * torch.randn_like(weight)
    model.save_pretrained(tmp_path / "tuned")
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", rank=3)
    base = load(tmp_path / "base", dtype=torch.float32)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        wanted, before = model(tokens).logits, base(tokens).logits
        adapted = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
        found = adapted(tokens).logits
    assert (wanted - before).abs().max() > 0.1
    assert (wanted - found).abs().max() < 1e-5
