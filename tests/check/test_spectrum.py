"""The spectra of an adapter's targets, against dense singular values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from builders import decode, encode, read_safetensors, tiny_base, tiny_lora, write_safetensors

from adaptertools.check.spectrum import spectrum
from adaptertools.errors import FindingsError
from adaptertools.formats.opening import open_adapter

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
WEIGHTS = "adapter_model.safetensors"


@pytest.mark.parametrize("fixture", ["lora", "dora"])
def test_every_target_has_the_dense_singular_values(fixture: str) -> None:
    """The scale is in them; names say the layer and the kind of module."""
    folder = FIXTURES / f"tiny-llama-{fixture}"
    tensors = {k: decode(t) for k, t in read_safetensors(folder / WEIGHTS).items()}
    found = spectrum(open_adapter(folder))
    assert len(found) == 14
    for target in found:
        module = f"base_model.model.{target.name.removesuffix('.weight')}"
        up, down = (tensors[f"{module}.lora_{x}.weight"].astype(np.float64) for x in "BA")
        want = 2.0 * np.linalg.svd(up @ down, compute_uv=False)[:4]
        assert target.spectrum is not None
        got = np.array(target.spectrum.values)
        np.testing.assert_allclose(got, want[: len(got)], rtol=1e-9)
        assert want[len(got) :].sum() < 1e-9
        energy = np.cumsum(want**2) / (want**2).sum()
        assert target.spectrum.energy_rank(0.9) == int((energy < 0.9).sum()) + 1
        assert target.name.startswith(f"model.layers.{target.layer}.")
        assert target.name.endswith(f".{target.module}.weight")


def test_json_holds_all_of_it(tmp_path: Path) -> None:
    """A zero target and one with NaN, too."""
    lora = tiny_lora(tmp_path / "lora", tiny_base(tmp_path / "base", layers=1), rank=3)
    tensors = read_safetensors(lora / WEIGHTS)
    key = "base_model.model.model.layers.0.self_attn.{}_proj.lora_B.weight"
    tensors[key.format("q")] = encode(np.zeros((64, 3)), "F32")
    tensors[key.format("v")] = encode(np.full((16, 3), np.nan), "F32")
    write_safetensors(lora / WEIGHTS, tensors, {"format": "pt"})
    told = [target.to_json() for target in spectrum(open_adapter(lora))]
    json.dumps(told, allow_nan=False)
    zero, broken = told
    assert (zero["rank"], zero["finite"], zero["values"], zero["k90"]) == (3, True, [], 0)
    assert broken == {
        "name": "model.layers.0.self_attn.v_proj.weight",
        "rank": 3,
        "finite": False,
    }


def test_other_updates_have_none() -> None:
    """(IA)³ has no low-rank change."""
    assert spectrum(open_adapter(FIXTURES / "tiny-llama-ia3")) == ()


def test_a_broken_adapter_is_refused(tmp_path: Path) -> None:
    """What cannot be read in full is not measured in part."""
    lora = tiny_lora(tmp_path / "lora", tiny_base(tmp_path / "base"))
    tensors = read_safetensors(lora / WEIGHTS)
    tensors["odd"] = encode([1.0], "F32")
    write_safetensors(lora / WEIGHTS, tensors, {"format": "pt"})
    with pytest.raises(FindingsError):
        spectrum(open_adapter(lora))
