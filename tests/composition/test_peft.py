"""`--compat peft` against the real `add_weighted_adapter`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import tiny_ia3, tiny_lora

from .making import apart, composed, deltas, meanings

pytestmark = pytest.mark.peer
BASE = Path(__file__).parents[2] / "fixtures" / "tiny-llama"
ALL = ("q_proj", "v_proj", "up_proj", "down_proj")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two adapters of equal rank, one with another alpha."""
    a = tiny_lora(tmp_path / "a", BASE, 4, 8, ALL, seed=1)
    return a, tiny_lora(tmp_path / "b", BASE, 4, 2, ALL, seed=2)


def peft_result(place: Path, pair: tuple, weights: Any, **options: Any) -> Path:
    """Return the folder that PEFT saves for a composition."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, pair[0], adapter_name="a0")
    for number, folder in enumerate(pair[1:], 1):
        model.load_adapter(folder, adapter_name=f"a{number}")
    names = [f"a{number}" for number in range(len(pair))]
    model.add_weighted_adapter(names, list(weights), adapter_name="both", **options)
    model.save_pretrained(place, selected_adapters=["both"])
    return place / "both"


CASES = {
    "linear": {},
    "cat": {},
    "svd": {"svd_rank": 5},
    "ties": {"density": 0.5},
    "magnitude_prune": {"density": 0.4},
    "dare_linear": {"density": 1.0},
    "dare_ties": {"density": 1.0, "majority_sign_method": "frequency"},
    "ties_svd": {"density": 0.5, "svd_rank": 6, "majority_sign_method": "frequency"},
    "magnitude_prune_svd": {"density": 0.4, "svd_rank": 6},
}


@pytest.mark.parametrize("method", CASES)
@pytest.mark.parametrize("weights", [(0.7, 0.4), (1.0, -0.5)])
def test_as_peft_does(tmp_path: Path, pair: tuple, method: str, weights: tuple) -> None:
    options = dict(CASES[method])
    theirs = peft_result(tmp_path / "peft", pair, weights, combination_type=method, **options)
    rank = options.pop("svd_rank", None) if method != "svd" else None
    ours = composed(
        tmp_path,
        *zip(pair, weights, strict=True),
        compat="peft",
        method=method,
        params=options,
        rule=None if rank is None else ("rank", rank),
    )
    assert apart(deltas(ours), deltas(theirs)) < 2e-5


def test_what_is_written_is_loaded_by_peft(tmp_path: Path, pair: tuple) -> None:
    """Also with ranks that differ by module."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    other = tiny_lora(tmp_path / "c", BASE, 2, 3, ("q_proj", "k_proj"), seed=3, use_rslora=True)
    out = composed(tmp_path, (pair[0], 0.7), (other, -1.3))
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, out)
    got = {}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight") and module.lora_A:
            got[f"{name}.weight"] = module.get_delta_weight("default").double().numpy()
    assert apart(got, deltas(out)) < 1e-6
    wanted = deltas(pair[0])
    wanted = {n: 0.7 * v for n, v in wanted.items()}
    for name, value in deltas(other).items():
        wanted[name] = wanted.get(name, 0) - 1.3 * value
    assert apart(got, wanted) < 1e-5


def test_vectors_are_loaded_by_peft(tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    a, b = tiny_ia3(tmp_path / "a", BASE, seed=1), tiny_ia3(tmp_path / "b", BASE, seed=2)
    out = composed(tmp_path, (a, 0.5), (b, 2.0))
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, out)
    x, y = meanings(a), meanings(b)
    seen = 0
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "ia3_l") and module.ia3_l:
            got = module.ia3_l["default"].detach().double().numpy().ravel()
            key = f"{name}.weight"
            wanted = 1 + 0.5 * (x[key].value - 1) + 2 * (y[key].value - 1)
            np.testing.assert_allclose(got, wanted, rtol=1e-6)
            seen += 1
    assert seen == len(x)
