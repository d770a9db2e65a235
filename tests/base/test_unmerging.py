"""Unmerge: what comes back, what is told to be lost, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from algebra.world import World, folder
from builders import (
    Tensors,
    decode,
    encode,
    read_checkpoint,
    read_safetensors,
    tiny_base,
    tiny_ia3,
    tiny_lora,
    write_adapter,
    write_json,
    write_safetensors,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptertools
from adaptertools.base.options import make_options
from adaptertools.base.recovering import ulp
from adaptertools.base.unmerging import Unmerge, plan_unmerge, unmerge
from adaptertools.errors import AdapterError, FindingsError

from .edits import EMBED, PREFIX, adapter, make_base, read, values

ROUNDOFF = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-24}


def wide(place: Path) -> dict[str, np.ndarray]:
    """Return every tensor of a checkpoint as fp64."""
    return {name: decode(t).astype(np.float64) for name, t in read_checkpoint(place).items()}


def facts(back: Path, base: Path, name: str) -> tuple[float, float]:
    """Return the share of elements that differ in any bit, and ‖error‖/‖W‖, by numpy alone."""
    one, other = read_checkpoint(back)[name], read_checkpoint(base)[name]
    width = len(one[2]) // int(np.prod(one[1]))
    bits = [np.frombuffer(t[2], f"<u{width}") for t in (one, other)]
    found, truth = (decode(t).astype(np.float64) for t in (one, other))
    lost = float(np.mean(bits[0] != bits[1]))
    return lost, float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_the_base_comes_back_as_far_as_told(tmp_path: Path, dtype: str, kind: str) -> None:
    """Measured is what numpy finds; estimated is near it; untouched tensors are the same bytes."""
    base = tiny_base(tmp_path / "base", dtype=dtype, hidden=128, inter=192)
    make = tiny_lora if kind == "lora" else tiny_ia3
    place = make(tmp_path / "adapter", base, seed=3)
    adaptertools.merge(base, (place, 0.75), tmp_path / "merged")
    guessed = unmerge(tmp_path / "merged", (place, 0.75), tmp_path / "back")
    known = unmerge(tmp_path / "merged", (place, 0.75), tmp_path / "x", base=base, dry_run=True)
    assert not (tmp_path / "x").exists()
    assert (guessed.measured, known.measured) == (False, True)
    changed = {loss.name for loss in known.losses}
    for guess, loss in zip(guessed.losses, known.losses, strict=True):
        lost, error = facts(tmp_path / "back", base, loss.name)
        assert loss.share == pytest.approx(lost, abs=1e-12)
        assert loss.error == pytest.approx(error, rel=1e-9)
        assert 0 < loss.error < ROUNDOFF[dtype] == loss.roundoff
        assert guess.share == pytest.approx(lost, abs=0.02)
        assert guess.error == pytest.approx(error, rel=0.15)
    before, after = read_checkpoint(base), read_checkpoint(tmp_path / "back")
    assert {n for n in before if before[n] == after[n]} >= before.keys() - changed
    assert before.keys() == after.keys()
    assert adaptertools.verify(tmp_path / "back").ok


def test_a_receipt_of_an_unmerge_that_was_tampered_with(tmp_path: Path) -> None:
    """The control: verify by the receipt notices one changed element."""
    base = tiny_base(tmp_path / "base")
    place = tiny_ia3(tmp_path / "adapter", base)
    adaptertools.merge(base, place, tmp_path / "merged")
    unmerge(tmp_path / "merged", place, tmp_path / "back")
    tensors = read_checkpoint(tmp_path / "back")
    name = "model.layers.0.self_attn.k_proj.weight"
    tensors[name] = encode(decode(tensors[name]) * 1.5, "BF16")
    write_safetensors(tmp_path / "back" / "model.safetensors", tensors, {"format": "pt"})
    assert not adaptertools.verify(tmp_path / "back").ok


def test_a_chain_is_undone_backwards(tmp_path: Path) -> None:
    """(IA)³ then LoRA on the same weight, both weighted: last in, first out."""
    base = tiny_base(tmp_path / "base", dtype="F32")
    vectors = tiny_ia3(tmp_path / "ia3", base, targets=("k_proj", "v_proj"), feedforward=())
    lora = tiny_lora(tmp_path / "lora", base, targets=("k_proj", "v_proj"), seed=9)
    chain = [(vectors, 0.5), (lora, -1.5)]
    adaptertools.merge(base, chain, tmp_path / "merged")
    unmerge(tmp_path / "merged", chain, tmp_path / "back", base=base)
    before, after = wide(base), wide(tmp_path / "back")
    for name, weight in before.items():
        assert np.linalg.norm(after[name] - weight) < 1e-7 * np.linalg.norm(weight)
    with pytest.raises(FindingsError) as caught:
        unmerge(tmp_path / "merged", chain[::-1], tmp_path / "wrong", base=base)
    assert caught.value.code == "AT421"
    assert not (tmp_path / "wrong").exists()


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["BF16", "F16", "F32"]),
    st.floats(-2, 2).filter(lambda w: abs(w) > 0.01),
    st.floats(-2.5, 0.3),
    st.integers(0, 2**32 - 1),
)
def test_it_is_one_rounding_of_the_difference(
    dtype: str, weight: float, power: float, seed: int
) -> None:
    """W' = round(W̃ - w s B A) against dense fp64, for any size of the change."""
    rng = np.random.default_rng(seed)
    world = World(dtype=dtype)
    base = world.base("a.q.weight", rng.standard_normal((40, 24)) * 0.02)
    up, down = rng.standard_normal((40, 3)), rng.standard_normal((3, 24))
    up *= 10**power * np.linalg.norm(base) / np.linalg.norm(up @ down) / 2
    tensors = {"a.q.lora_A.weight": encode(down, "F32"), "a.q.lora_B.weight": encode(up, "F32")}
    world.adapter({"r": 3, "lora_alpha": 6}, tensors, weight)
    with folder() as place:
        source, pairs = world.write(place)
        adaptertools.merge(source, pairs, place / "merged", jobs=1)
        unmerge(place / "merged", pairs, place / "back", max_loss=10.0, jobs=1)
        merged, back = (wide(place / n)["a.q.weight"] for n in ("merged", "back"))
        factors = [decode(tensors[f"a.q.lora_{x}.weight"]).astype(np.float64) for x in "BA"]
        wanted = merged - 2 * weight * factors[0] @ factors[1]
        room = np.abs(wanted) + (np.abs(merged) if dtype == "BF16" else 0) * 2.0**-14
        assert (np.abs(back - wanted) <= ROUNDOFF[dtype] * (1 + 1e-5) * room + 2.0**-25).all()


def large(tmp_path: Path, times: float = 8.0, dtype: str = "BF16") -> tuple[Path, Any]:
    """Write a base, and an adapter whose change is `times` as large as the weights."""
    base = tiny_base(tmp_path / "base", dtype=dtype)
    place = tiny_lora(tmp_path / "adapter", base), 10 * times
    adaptertools.merge(base, place, tmp_path / "merged")
    return base, place


@pytest.mark.parametrize("measured", [False, True])
def test_too_much_lost_is_refused_and_says_how_much(tmp_path: Path, measured: bool) -> None:
    """Nothing is written; the hint's bound then lets it through, and a smaller one does not."""
    base, place = large(tmp_path)
    merged, truth = tmp_path / "merged", base if measured else None
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FindingsError) as caught:
        unmerge(merged, place, tmp_path / "back", base=truth)
    assert sorted(tmp_path.iterdir()) == before
    error = caught.value
    assert (error.code, len(error.findings)) == ("AT421", 4)
    assert "one rounding to BF16" in error.message
    assert ("would lose about" in error.message) is not measured
    needed = float(error.hint.rpartition(" ")[2])
    with pytest.raises(FindingsError, match="--max-loss"):
        unmerge(merged, place, tmp_path / "back", base=truth, max_loss=needed / 2)
    made = unmerge(merged, place, tmp_path / "back", base=truth, max_loss=needed)
    worst = max(made.losses, key=lambda loss: loss.error)
    assert f"{worst.error:.2g} of ‖W‖" in error.message
    assert f"{worst.share:.1%}" in error.message
    assert facts(tmp_path / "back", base, worst.name)[1] == pytest.approx(worst.error, rel=0.15)


def test_the_same_change_in_f32_is_within_a_smaller_bound(tmp_path: Path) -> None:
    """The bound goes with the dtype: what bf16 loses at once, F32 loses far later."""
    base, place = large(tmp_path, 1.0, "F32")
    made = unmerge(tmp_path / "merged", place, tmp_path / "back", base=base)
    assert max(loss.error for loss in made.losses) < 6e-8
    with pytest.raises(FindingsError):
        unmerge(tmp_path / "merged", place, tmp_path / "again", base=base, max_loss=1e-9)


def test_the_wrong_weight_is_seen_against_the_base(tmp_path: Path) -> None:
    """Without the base the receipt warns; with it the loss tells."""
    base = tiny_base(tmp_path / "base")
    place = tiny_lora(tmp_path / "adapter", base)
    adaptertools.merge(base, place, tmp_path / "merged")
    right = unmerge(tmp_path / "merged", place, tmp_path / "a")
    wrong = unmerge(tmp_path / "merged", (place, 0.5), tmp_path / "b")
    assert [n.id for n in right.notes] == []
    assert [n.id for n in wrong.notes] == ["AT424"]
    again = unmerge(tmp_path / "a", place, tmp_path / "c")
    assert [n.id for n in again.notes] == ["AT424"]
    with pytest.raises(FindingsError) as caught:
        unmerge(tmp_path / "merged", (place, 0.5), tmp_path / "d", base=base)
    assert caught.value.code == "AT421"


def spoilt(place: Path, base: Path, change: Tensors, **config: object) -> Path:
    """Write a LoRA with more tensors in it."""
    tiny_lora(place, base, **config)
    tensors = read_safetensors(place / "adapter_model.safetensors") | change
    write_safetensors(place / "adapter_model.safetensors", tensors, {"format": "pt"})
    return place


Q0 = "model.layers.0.self_attn.q_proj"
WITHOUT_INVERSE = {
    "dora": ({f"{PREFIX}{Q0}.lora_magnitude_vector": encode(np.ones(64), "F32")}, "norm"),
    "full": ({f"{PREFIX}model.norm.weight": encode(np.ones(64), "F32")}, "in full"),
    "rows": (
        {f"{PREFIX}{EMBED}.token_adapter.trainable_tokens_delta": encode(np.ones((2, 64)), "F32")},
        "rows",
    ),
}
CONFIGS = {
    "dora": {"use_dora": True, "targets": ("q_proj",)},
    "full": {"modules_to_save": ["norm"]},
    "rows": {"trainable_token_indices": {"embed_tokens": [3, 4]}},
}


@pytest.mark.parametrize("case", WITHOUT_INVERSE)
def test_what_has_no_inverse_is_refused_by_name(tmp_path: Path, case: str) -> None:
    """DoRA, full values, token rows: the name and the reason, and nothing is written."""
    base = tiny_base(tmp_path / "base")
    change, reason = WITHOUT_INVERSE[case]
    if case == "dora":
        change = change | {key.replace(".0.", ".1."): tensor for key, tensor in change.items()}
    place = spoilt(tmp_path / "adapter", base, change, **CONFIGS[case])
    merged = tmp_path / "merged"
    adaptertools.merge(base, place, merged)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FindingsError) as caught:
        unmerge(merged, place, tmp_path / "back", max_loss=10.0)
    assert caught.value.code == "AT420"
    assert reason in caught.value.message
    (key,) = {k for k in change if ".1." not in k}
    module = key.removeprefix(PREFIX).split(".lora_")[0].split(".token_adapter")[0]
    assert str(caught.value.where.key).startswith(module.removesuffix(".weight"))
    assert sorted(tmp_path.iterdir()) == before


def test_a_channel_times_zero_is_gone(tmp_path: Path) -> None:
    """(IA)³ with a zero in it, or with a weight that makes one."""
    base = tiny_base(tmp_path / "base")
    place = tiny_ia3(tmp_path / "adapter", base)
    file = place / "adapter_model.safetensors"
    tensors = read_safetensors(file)
    key = next(key for key in tensors if "v_proj" in key)
    vector = decode(tensors[key]).copy()
    for value, weight in ((0.0, 1.0), (0.5, 2.0)):
        vector[3] = value
        write_safetensors(file, tensors | {key: encode(vector, "F32")}, {"format": "pt"})
        out = tmp_path / f"merged{weight}"
        adaptertools.merge(base, (place, weight), out)
        with pytest.raises(AdapterError) as caught:
            unmerge(out, (place, weight), tmp_path / "back", max_loss=10.0)
        assert (caught.value.code, caught.value.where.key) == ("AT422", key)
        assert not (tmp_path / "back").exists()


def test_biases_are_undone_too(tmp_path: Path) -> None:
    """A LoRA's own bias is subtracted; what it trained comes off the base's."""
    base = make_base(tmp_path / "base")
    tensors = read_checkpoint(base)
    rng = np.random.default_rng(4)
    tensors[f"{Q0}.bias"] = encode(values(rng, 64), "F32")
    write_safetensors(base / "model.safetensors", tensors, {"format": "pt"})
    up, down, bias = values(rng, 64, 4), values(rng, 4, 64), values(rng, 64)
    keys = {
        f"{PREFIX}{Q0}.lora_A.weight": encode(down, "F32"),
        f"{PREFIX}{Q0}.lora_B.weight": encode(up, "F32"),
        f"{PREFIX}{Q0}.lora_B.bias": encode(bias, "F32"),
    }
    place = adapter(tmp_path / "adapter", keys, lora_bias=True)
    adaptertools.merge(base, (place, 0.5), tmp_path / "merged")
    assert not np.allclose(read(tmp_path / "merged")[f"{Q0}.bias"], read(base)[f"{Q0}.bias"])
    made = unmerge(tmp_path / "merged", (place, 0.5), tmp_path / "back", base=base, max_loss=1e-6)
    assert {loss.name for loss in made.losses} == {f"{Q0}.weight", f"{Q0}.bias"}
    for name, value in read(base).items():
        assert np.allclose(read(tmp_path / "back")[name], value, rtol=0, atol=1e-7)


def test_a_base_of_another_shape_is_refused(tmp_path: Path) -> None:
    """The base to compare with must be the base of the merge."""
    base = tiny_base(tmp_path / "base")
    place = tiny_lora(tmp_path / "adapter", base)
    adaptertools.merge(base, place, tmp_path / "merged")
    other = tiny_base(tmp_path / "other", layers=1)
    with pytest.raises(AdapterError) as caught:
        unmerge(tmp_path / "merged", place, tmp_path / "back", base=other)
    assert caught.value.code == "AT423"
    assert not (tmp_path / "back").exists()


def test_a_base_of_a_wider_dtype_is_told(tmp_path: Path) -> None:
    """Merged to bf16, an F32 base does not come back bit for bit anywhere, and that is said."""
    base = tiny_base(tmp_path / "base", dtype="F32")
    place = tiny_lora(tmp_path / "adapter", base)
    adaptertools.merge(base, place, tmp_path / "merged", dtype="bf16")
    made = unmerge(tmp_path / "merged", place, tmp_path / "back", base=base)
    assert made.exact_share == 0.0
    assert all(1e-3 < loss.error < 2.0**-8 for loss in made.losses)


@pytest.mark.parametrize("loss", [-1.0, float("nan"), float("inf")])
def test_a_bound_must_be_a_number(tmp_path: Path, loss: float) -> None:
    """No negative, infinite or undefined bound."""
    base = tiny_base(tmp_path / "base")
    place = tiny_lora(tmp_path / "adapter", base)
    with pytest.raises(AdapterError) as caught:
        unmerge(base, place, tmp_path / "back", max_loss=loss)
    assert caught.value.code == "AT500"


def test_the_same_bytes_again(tmp_path: Path) -> None:
    """Threads change nothing; the receipt says what was undone, and fits its schema."""
    base = tiny_base(tmp_path / "base", shards=2)
    place = tiny_lora(tmp_path / "adapter", base)
    adaptertools.merge(base, place, tmp_path / "merged")
    for name, jobs in (("a", 1), ("b", 3)):
        unmerge(tmp_path / "merged", (place, 1.0), tmp_path / name, jobs=jobs)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    recipe = json.loads((tmp_path / "a" / "adaptertools.json").read_text())["recipe"]
    assert (recipe["undone"], recipe["adapters"]) == (True, [{"path": str(place), "weight": 1.0}])


def test_a_journal_of_a_merge_is_not_taken_up(tmp_path: Path) -> None:
    """The digest of an unmerge is not that of the merge of the same files."""
    base = tiny_base(tmp_path / "base")
    place = tiny_ia3(tmp_path / "adapter", base)
    options = make_options()
    merge = adaptertools.merge(base, place, tmp_path / "out", dry_run=True)
    job = Unmerge(base, [(place, 1.0)], tmp_path / "out", options)
    assert plan_unmerge(job).plan.digest() != merge.digest()


def test_one_file(tmp_path: Path) -> None:
    """A base that is one file comes back as one file, with its receipt beside it."""
    rng = np.random.default_rng(0)
    base, weight = tmp_path / "base.safetensors", values(rng, 8, 6)
    write_safetensors(base, {"a.q.weight": encode(weight, "F32")})
    keys = {
        f"{PREFIX}a.q.lora_A.weight": encode(values(rng, 4, 6), "F32"),
        f"{PREFIX}a.q.lora_B.weight": encode(values(rng, 8, 4), "F32"),
    }
    place = adapter(tmp_path / "adapter", keys)
    merged, back = tmp_path / "merged.safetensors", tmp_path / "back.safetensors"
    adaptertools.merge(base, place, merged)
    unmerge(merged, place, back, base=base)
    found = decode(read_safetensors(back)["a.q.weight"])
    assert np.allclose(found, weight, rtol=0, atol=1e-8)
    assert (tmp_path / "back.adaptertools.json").is_file()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_unit_in_the_last_place(dtype: torch.dtype) -> None:
    """Against the next larger number of the dtype, subnormals and zero included."""
    word = {2: torch.int16, 4: torch.int32, 8: torch.int64}[torch.finfo(dtype).bits // 8]
    tiny = torch.finfo(dtype).tiny
    found = torch.tensor([0.0, tiny / 2, tiny, 1.0, 1.5, 2.0, 3.0, 1000.0], dtype=dtype)
    after = (found.view(word) + 1).view(dtype)
    assert torch.equal(ulp(found), after.double() - found.double())
    assert torch.equal(ulp(-found), ulp(found))


def test_a_real_merge_by_someone_else(tmp_path: Path) -> None:
    """Merged by torch in F32 and rounded, without a receipt: it comes off just the same."""
    base = tiny_base(tmp_path / "base", dtype="BF16")
    place = tiny_lora(tmp_path / "adapter", base, targets=("q_proj",))
    tensors = read_checkpoint(base)
    factors = read_safetensors(place / "adapter_model.safetensors")
    for key in [k for k in factors if "lora_A" in k]:
        down, up = decode(factors[key]), decode(factors[key.replace("lora_A", "lora_B")])
        name = key.removeprefix(PREFIX).replace(".lora_A", "")
        tensors[name] = encode(decode(tensors[name]) + 2 * (up @ down), "BF16")
    merged = tmp_path / "merged"
    write_json(merged / "config.json", json.loads((base / "config.json").read_text()))
    write_safetensors(merged / "model.safetensors", tensors, {"format": "pt"})
    made = unmerge(merged, place, tmp_path / "back", base=base)
    assert made.exact_share > 0.85
    assert not made.notes


def test_nothing_to_undo(tmp_path: Path) -> None:
    """An adapter of zeros changes nothing, which is an error as in a merge."""
    base = tiny_base(tmp_path / "base")
    keys = {
        f"{PREFIX}{Q0}.lora_A.weight": encode(np.zeros((4, 64)), "F32"),
        f"{PREFIX}{Q0}.lora_B.weight": encode(np.zeros((64, 4)), "F32"),
    }
    config = json.loads((tiny_lora(tmp_path / "x", base) / "adapter_config.json").read_text())
    place = write_adapter(tmp_path / "adapter", config | {"target_modules": ["q_proj"]}, keys)
    with pytest.raises(AdapterError) as caught:
        unmerge(base, place, tmp_path / "back")
    assert caught.value.code == "AT406"
    assert not (tmp_path / "back").exists()
