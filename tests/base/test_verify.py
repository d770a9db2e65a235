"""Verify: every verdict, for merges made by anyone, and by the receipt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import (
    Tensors,
    decode,
    encode,
    read_checkpoint,
    read_safetensors,
    tiny_base,
    tiny_lora,
    write_safetensors,
)

import adaptertools

Q0 = "model.layers.0.self_attn.q_proj.weight"
V1 = "model.layers.1.self_attn.v_proj.weight"
NORM = "model.norm.weight"
WEIGHTS = "model.safetensors"
Change = Callable[[Tensors], object]


class Made:
    """A base, an adapter and somebody's merge of them, to be changed and judged."""

    def __init__(self, root: Path, dtype: str = "BF16") -> None:
        self.base = tiny_base(root / "base", dtype=dtype)
        self.adapter = tiny_lora(root / "adapter", self.base, rank=4, alpha=8)
        self.out = root / "out"

    def merge(self, weight: float = 1.0, **options: object) -> Made:
        """Merge with the library."""
        adaptertools.merge(self.base, (self.adapter, weight), self.out, **options)
        return self

    def by_hand(self, add: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Made:
        """Merge with torch: `add` puts the F32 change onto the stored weight."""
        tensors, factors = read_checkpoint(self.base), read_safetensors(self.adapter_file)
        for key in [key for key in factors if "lora_A" in key]:
            down, up = (
                torch.from_numpy(decode(factors[k]).copy())
                for k in (key, key.replace("lora_A", "lora_B"))
            )
            name = key.removeprefix("base_model.model.").replace(".lora_A", "")
            weight = torch.from_numpy(decode(tensors[name]).copy()).to(torch.bfloat16)
            merged = add(weight, 2.0 * up @ down).to(torch.bfloat16)
            tensors[name] = encode(merged.float().numpy(), "BF16")
        return self.write(tensors)

    @property
    def adapter_file(self) -> Path:
        return self.adapter / "adapter_model.safetensors"

    def write(self, tensors: Tensors) -> Made:
        """Write the output by hand, without a receipt."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        shutil.copy(self.base / "config.json", self.out)
        write_safetensors(self.out / WEIGHTS, tensors, {"format": "pt"})
        return self

    def change(self, change: Change) -> Made:
        """Change the tensors of the output."""
        tensors = read_checkpoint(self.out)
        change(tensors)
        write_safetensors(self.out / WEIGHTS, tensors, {"format": "pt"})
        return self

    def judge(self, weight: float = 1.0) -> adaptertools.base.verify.Verification:
        """Verify by the inputs."""
        return adaptertools.verify(self.out, self.base, (self.adapter, weight))

    def verdicts(self) -> set[str]:
        """Return the verdicts on the targets."""
        return {v.verdict for v in self.judge().targets}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Inputs to be merged."""
    return Made(tmp_path)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_exact(tmp_path: Path, dtype: str) -> None:
    """The library's own merge, by the receipt and by the inputs."""
    made = Made(tmp_path, dtype).merge()
    found = made.judge()
    assert made.verdicts() == {"exact"}
    assert (found.ok, found.by_receipt) == (True, False)
    assert {v.verdict for v in found.others} == {"untouched"}
    assert all(v.equal_share == 1 and v.max_ulps == 0 for v in found.targets)
    by_receipt = adaptertools.verify(made.out)
    assert (by_receipt.ok, by_receipt.by_receipt, by_receipt.updates) == (True, True, 4)


def test_somebody_s_exact_merge(made: Made) -> None:
    """Adding in F32 and rounding once is exact, whoever does it."""
    made.by_hand(lambda weight, change: weight.float() + change)
    assert made.verdicts() == {"exact"}
    assert made.judge().ok


def test_two_roundings(made: Made) -> None:
    """PEFT's own merge rounds the change first: told, and fine."""
    made.by_hand(lambda weight, change: weight + change.to(torch.bfloat16))
    assert made.verdicts() == {"two-roundings"}
    assert made.judge().ok
    assert all(v.equal_share < 0.999 for v in made.judge().targets)


def test_not_applied(made: Made) -> None:
    """A copy of the base is no merge."""
    made.write(read_checkpoint(made.base))
    assert made.verdicts() == {"not-applied"}
    assert not made.judge().ok


@pytest.mark.parametrize(("given", "asked"), [(0.5, 1.0), (1.0, 0.5), (-1.0, 1.0), (0.8, 1.0)])
def test_other_strength(made: Made, given: float, asked: float) -> None:
    """A merge at another weight is told with that weight."""
    found = made.merge(given).judge(asked)
    assert {v.verdict for v in found.targets} == {"other-strength"}
    assert {v.strength for v in found.targets} == {given}
    assert not found.ok


def test_changed(made: Made) -> None:
    """Noise, a transposed target, another shape: changed."""
    rng = np.random.default_rng(0)
    noise = encode(rng.standard_normal((64, 64)) * 0.02, "BF16")
    made.merge().change(lambda t: t.update({Q0: noise}))
    verdicts = {v.name: v.verdict for v in made.judge().targets}
    assert verdicts.pop(Q0) == "changed"
    assert set(verdicts.values()) == {"exact"}
    made.change(lambda t: t.update({Q0: encode(np.zeros((64, 32)), "BF16")}))
    assert {v.name: v.verdict for v in made.judge().targets}[Q0] == "changed"
    assert not made.judge().ok


def test_one_wrong_element(made: Made) -> None:
    """A single element that is far off is not exact."""

    def spoil(tensors: Tensors) -> None:
        dtype, shape, data = tensors[Q0]
        tensors[Q0] = (dtype, shape, b"\x00\x40" + data[2:])

    made.merge().change(spoil)
    assert {v.name: v.verdict for v in made.judge().targets}[Q0] == "changed"
    assert not adaptertools.verify(made.out).ok


def test_missing_and_extra(made: Made) -> None:
    """A tensor that lacks, touched or not, and one too many, are told by name."""
    lost = made.merge().change(lambda t: (t.pop(Q0), t.pop(NORM), t.update(new=t[V1])))
    found = lost.judge()
    by_name = {v.name: v.verdict for v in (*found.targets, *found.others)}
    assert by_name[Q0] == by_name[NORM] == "missing"
    assert by_name["new"] == "extra"
    assert not found.ok
    assert (found.count("missing"), found.count("extra")) == (2, 1)


def test_untouched_must_be_untouched(made: Made) -> None:
    """One bit in a tensor that no update touches is a change, on both ways to verify."""

    def spoil(tensors: Tensors) -> None:
        dtype, shape, data = tensors[NORM]
        tensors[NORM] = (dtype, shape, data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])

    made.merge().change(spoil)
    for found in (made.judge(), adaptertools.verify(made.out)):
        assert {v.name for v in found.others if v.verdict == "changed"} == {NORM}
        assert not found.ok


def test_undecidable(made: Made) -> None:
    """A change that bf16 cannot show proves nothing, unless the receipt vouches for it."""
    tensors = read_safetensors(made.adapter_file)
    for key, tensor in tensors.items():
        if "layers.0.self_attn.q_proj.lora_B" in key:
            tensors[key] = encode(decode(tensor) * 1e-9, "F32")
    write_safetensors(made.adapter_file, tensors, {"format": "pt"})
    found = made.merge().judge()
    assert {v.name: v.verdict for v in found.targets}[Q0] == "undecidable"
    assert not found.ok
    assert adaptertools.verify(made.out).ok
    assert adaptertools.verify(made.out).count("undecidable") == 1


def test_another_dtype_and_shards(made: Made) -> None:
    """What OUT stores may be wider or in other files; values count."""
    made.merge(dtype="f32", shard_size="40KB")
    assert made.judge().ok
    assert adaptertools.verify(made.out).ok
    assert made.verdicts() == {"exact"}


def test_a_changed_input_is_told(made: Made) -> None:
    """AT602: by the receipt, an input must be the file that was merged, to its last byte."""
    made.merge(hash=True)
    for path in (made.adapter_file, made.adapter / "adapter_config.json", made.base / WEIGHTS):
        good = path.read_bytes()
        path.write_bytes(
            good[:-1] + bytes([good[-1] ^ 1]) if path.suffix != ".json" else good + b" "
        )
        found = adaptertools.verify(made.out)
        assert [(f.id, str(path) in f.title) for f in found.findings] == [("AT602", True)]
        assert not found.ok
        path.write_bytes(good)
    assert adaptertools.verify(made.out).ok


def test_a_touched_input_is_no_change(made: Made) -> None:
    """The time stamp of an input does not matter."""
    made.merge()
    for path in (made.adapter_file, made.base / WEIGHTS):
        path.touch()
    assert adaptertools.verify(made.out).ok


@pytest.mark.parametrize("gone", ["base", "adapter"])
def test_a_moved_input_is_told(made: Made, gone: str) -> None:
    """AT601 names it; given its new place the merge is judged."""
    made.merge()
    getattr(made, gone).rename(made.out.parent / "moved")
    with pytest.raises(adaptertools.AdapterError) as caught:
        adaptertools.verify(made.out)
    assert caught.value.code == "AT601"
    assert str(getattr(made, gone)) in str(caught.value)
    setattr(made, gone, made.out.parent / "moved")
    assert made.judge().ok


def test_without_receipt_or_inputs(made: Made) -> None:
    """AT600: there is nothing to go by; nor with half of the inputs, or a damaged receipt."""
    made.merge()
    receipt = made.out / "adaptertools.json"
    told = json.loads(receipt.read_text())
    del told["recipe"]["adapters"]
    receipt.write_text(json.dumps(told))
    with pytest.raises(adaptertools.AdapterError) as caught:
        adaptertools.verify(made.out)
    assert caught.value.code == "AT600"
    receipt.unlink()
    for arguments in ((), (made.base,), (None, made.adapter)):
        with pytest.raises(adaptertools.AdapterError) as caught:
            adaptertools.verify(made.out, *arguments)
        assert caught.value.code == "AT600"


def test_json_tells_it_all(made: Made) -> None:
    """The document has every target, and of the others those that are not untouched."""
    found = made.merge().change(lambda t: t.pop(NORM)).judge().to_json()
    assert found["ok"] is False
    assert len(found["targets"]) == 4
    assert [v["name"] for v in found["others"]] == [NORM]
    assert found["untouched"] == len(read_checkpoint(made.base)) - 4 - 1
    assert json.loads(json.dumps(found)) == found
